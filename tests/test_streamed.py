"""A remote .pth that is converted while it is fetched, by the real client from a server that fails in every way."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ggufy.core.errors import Cancelled, CannotStream, CheckpointError, SourceChanged, SourceError
from ggufy.core.source import Source
from ggufy.formats import prefetched as streamed
from ggufy.formats.streamed_checkpoint import StreamedCheckpoint, open_streamed
from ggufy.models.convert import convert
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.net import session as hub_session
from ggufy.sources import hub
from ggufy.sources.url import resolve_url
from ggufy.system.files import sha256
from tests import tiny
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_hub: LocalHub) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(streamed, "PIECE", 100_000)  # or else every tensor of a tiny model is one
    yield
    local_hub.mend()


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint that is on the Hub."""

    source: Source
    url: str  # a plain address of the same file
    path: Path  # the same file here
    vocab: Path

    def local(self, **options: str) -> bytes:
        """Its GGUF as the local path makes it."""
        target = self.path.with_suffix(".gguf")
        convert(self.path, target, vocab=self.vocab, name="x", **options)  # type: ignore[arg-type]
        return target.read_bytes()


Publish = Callable[..., Model]


@pytest.fixture
def publish(local_hub: LocalHub, tmp_path: Path) -> Publish:
    """Puts a checkpoint into a repo of its own; the log starts after it."""

    def put(state: dict[str, torch.Tensor] | str = "7", **options: object) -> Model:
        folder = tmp_path / f"model-{next(NUMBERS)}"
        folder.mkdir()
        if isinstance(state, str):
            state = tiny.weights(state, **({"width": 256} | options))  # type: ignore[arg-type]
        path, vocab = tiny.save(folder / "model.pth", state), tiny.write_vocab(folder / "vocab.txt")
        repo = f"alice/streamed-{next(NUMBERS)}"
        oid = local_hub.put(repo, "model.pth", path.read_bytes())["oid"]
        source = hub.resolve(repo, endpoint=local_hub.endpoint)
        local_hub.clear()
        return Model(source, f"{local_hub.endpoint}/__cdn/{oid}/model.pth", path, vocab)

    return put


def stream(
    model: Model, target: Path, local_hub: LocalHub, *, source: Source | None = None, **options: object
) -> StreamedCheckpoint:
    opened = open_streamed(source or model.source, endpoint=local_hub.endpoint)
    digest = convert_streamed(opened, origins_of(opened.shapes), target, vocab=model.vocab, name="x", **options)  # type: ignore[arg-type]
    assert digest == sha256(target)
    return opened


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the same bytes


@pytest.mark.parametrize("place", ["hub", "address"])
@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_bytes_as_from_a_file(
    publish: Publish, local_hub: LocalHub, tmp_path: Path, place: str, version: str, dtype: torch.dtype
) -> None:
    model = publish(version, dtype=dtype, layers=8)  # RWKV-6 divides some weights from the seventh block on
    source = resolve_url(model.url) if place == "address" else model.source
    assert source.can_stream
    out = tmp_path / "out"
    for outtype in ("f16", "f32"):
        opened = stream(model, out / "x.gguf", local_hub, source=source, outtype=outtype)
        assert (out / "x.gguf").read_bytes() == model.local(outtype=outtype)
        assert names(out) == ["x.gguf"]
        assert opened.received < model.source.size + 600_000, "more than the file and its index"
        (out / "x.gguf").unlink()
    asked = local_hub.log("/__cdn/")
    assert all(line["range"] and not line["token"] for line in asked)
    assert len(local_hub.log("/resolve/")) <= 2 * (1 + streamed.READERS) * (place == "hub"), "the Hub is asked once"


def test_the_way_a_tensor_was_saved_does_not_matter(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    """A storage shared by many, transposed and spread-out strides, F64, vectors of one dimension."""
    state = tiny.weights("7")
    shared, other, start = torch.cat([tensor.flatten() for tensor in state.values()]), {}, 0
    for number, (name, tensor) in enumerate(state.items()):
        if number % 3 == 0:
            other[name] = shared[start : start + tensor.numel()].view(tensor.shape)
        elif number % 3 == 1:
            other[name] = tensor.squeeze().double()
        else:
            other[name] = torch.stack([tensor.t() if tensor.ndim == 2 else tensor] * 2)[1]
            other[name] = other[name].t() if tensor.ndim == 2 else other[name]
        start += tensor.numel()
    model = publish(other)
    stream(model, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()


def test_a_private_source_is_read_with_the_token_and_only_the_hub_gets_it(
    publish: Publish, local_hub: LocalHub, tmp_path: Path
) -> None:
    model = publish()
    local_hub.put("alice/private-source", "model.pth", model.path.read_bytes(), private=1)
    source = hub.resolve("alice/private-source", token=ALICE, endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="or it is private"):
        open_streamed(source, endpoint=local_hub.endpoint)
    local_hub.clear()
    opened = open_streamed(source, token=ALICE, endpoint=local_hub.endpoint)
    convert_streamed(opened, origins_of(opened.shapes), tmp_path / "x.gguf", vocab=model.vocab, name="x")
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert {line["token"] for line in local_hub.log("/resolve/")} == {ALICE}
    assert {line["token"] for line in local_hub.log("/__cdn/")} == {""}


# ---- a network that fails


def test_cut_connections_and_busy_servers(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    model = publish()
    local_hub.fault("GET /__cdn/", cut=30_000, skip=3, times=40)
    local_hub.fault("GET /__cdn/", status=503, skip=20, times=5)
    opened = stream(model, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert opened.received < model.source.size + 600_000, "what had arrived was asked for again"


def test_an_address_that_expires_is_asked_for_again(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    model = publish()
    for skip in (5, 20, 35):
        local_hub.fault("GET /__cdn/", status=403, skip=skip)
    stream(model, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert len(local_hub.log("/resolve/")) >= 4


def test_a_plain_address_that_redirects(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    """Such as one of a mirror of the Hub, which names a digest that nobody has pinned. Where it leads is asked from
    then on, until it is refused there."""
    model = publish()
    url = f"{local_hub.endpoint}/{model.source.model_id}/resolve/main/model.pth"
    source = resolve_url(url)
    local_hub.fault("GET /__cdn/", status=403, skip=20)
    local_hub.clear()
    stream(model, tmp_path / "x.gguf", local_hub, source=source)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert 2 <= len(local_hub.log("/resolve/")) <= 2 + 2 * streamed.READERS


def test_a_server_that_is_gone_leaves_what_is_whole_for_the_next_run(
    publish: Publish, local_hub: LocalHub, tmp_path: Path
) -> None:
    model = publish()
    local_hub.fault("GET /__cdn/", status=502, skip=40, times=9999)
    with pytest.raises(SourceError, match="HTTP status 502: wait, or try again later; what has arrived stays"):
        stream(model, tmp_path / "out" / "x.gguf", local_hub)
    assert names(tmp_path / "out") == ["x.gguf.journal.part", "x.gguf.part"]
    local_hub.mend()
    opened = stream(model, tmp_path / "out" / "x.gguf", local_hub)
    assert (tmp_path / "out" / "x.gguf").read_bytes() == model.local()
    assert opened.received < 0.8 * model.source.size


# ---- something else than was pinned


@pytest.mark.parametrize("place", ["hub", "address"])
def test_another_file_under_the_same_name(publish: Publish, local_hub: LocalHub, tmp_path: Path, place: str) -> None:
    """At the start, and in the middle: nothing is left, since no part of it belongs to what was pinned."""
    model, out = publish(), tmp_path / "out"
    source = resolve_url(model.url) if place == "address" else model.source
    other = {"etag": '"other"'} if place == "address" else {"sha256": "0" * 64}
    with pytest.raises(SourceChanged, match="another file than"):
        stream(model, out / "x.gguf", local_hub, source=dataclasses.replace(source, **other))
    local_hub.fault("GET /__cdn/", says={"ETag": '"other"'}, skip=20, times=9999)
    with pytest.raises(SourceChanged, match="another file than"):
        stream(model, out / "x.gguf", local_hub, source=source)
    local_hub.mend()
    size = {"Content-Range": f"bytes 0-99/{source.size + 1}"}
    local_hub.fault("GET /__cdn/", says=size, skip=20, times=9999)
    with pytest.raises(SourceChanged, match="another file than"):
        stream(model, out / "x.gguf", local_hub, source=source)
    assert names(out) == []


@pytest.mark.parametrize("fault", [{"no_range": True}, {"says": {"Content-Range": "bytes 7-8/{size}"}}])
@pytest.mark.parametrize("skip", [0, 20])
def test_a_server_without_ranges_or_with_wrong_ones_cannot_stream(
    publish: Publish, local_hub: LocalHub, tmp_path: Path, fault: dict[str, object], skip: int
) -> None:
    model, out = publish(), tmp_path / "out"
    if isinstance(says := fault.get("says"), dict):
        fault = {"says": {name: text.format(size=model.source.size) for name, text in says.items()}}
    local_hub.fault("GET /__cdn/", **fault, skip=skip, times=9999)
    with pytest.raises(CannotStream, match=r":model\.pth (does not send parts|sends another part)"):
        stream(model, out / "x.gguf", local_hub)
    assert not out.exists() or names(out) == []


def test_a_server_that_names_no_version_cannot_stream(publish: Publish, local_hub: LocalHub) -> None:
    model = publish()
    source = dataclasses.replace(resolve_url(model.url), etag="")
    assert not source.can_stream
    with pytest.raises(CannotStream):
        open_streamed(source)


def test_damaged_bytes_are_noticed_and_fetched_again(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    model = publish()
    local_hub.fault("GET /__cdn/", damage=700, skip=40)  # in the values, also of a vector
    with pytest.raises(SourceError, match=r"arrived damaged \(its CRC-32 is another\)"):
        stream(model, tmp_path / "x.gguf", local_hub)
    assert not (tmp_path / "x.gguf").exists()
    opened = stream(model, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert opened.received < model.source.size


# ---- stopped, and taken up again


def lines(target: Path) -> int:
    """Tensors that the journal of an unfinished target knows."""
    journal = target.with_name(target.name + ".journal.part")
    return journal.stat().st_size // 65 - 1 if journal.exists() else -1


@contextlib.contextmanager
def converting(model: Model, target: Path, local_hub: LocalHub) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that streams, and is killed."""
    script = (
        "import sys; from pathlib import Path; from ggufy.core.job import Source\n"
        "from ggufy.formats import prefetched as streamed\n"
        "from ggufy.formats.streamed_checkpoint import open_streamed\n"
        "from ggufy.models.convert_streamed import convert_streamed\n"
        "from ggufy.models.origin import identity\n"
        "streamed.PIECE = 100_000\n"
        f"opened = open_streamed({model.source!r})\n"
        "convert_streamed(opened, identity(opened.shapes), Path(sys.argv[1]), vocab=Path(sys.argv[2]), name='x')\n"
    )
    command = [sys.executable, "-c", script, str(target), str(model.vocab)]
    with subprocess.Popen(command, cwd=ROOT, env=local_hub.environment(target.parent)) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_next_process_continues_after_kill_9(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    model, target = publish(layers=4), tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    for skip in (30, 60, 90):
        before = lines(target)
        local_hub.fault("GET /__cdn/", cut=0, delay=120, skip=skip, times=9999)  # hangs there
        with converting(model, target, local_hub) as process:
            deadline = time.monotonic() + 60
            while lines(target) <= max(before, 0) + 5 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.poll() is None, "it was faster than the test"
        assert lines(target) > before + 5
        assert names(target.parent) == ["x.gguf.journal.part", "x.gguf.part"]
        local_hub.mend()
    local_hub.clear()
    reported: list[int] = []
    opened = stream(model, target, local_hub, progress=lambda done, total: reported.append(done))
    assert target.read_bytes() == model.local()
    assert names(target.parent) == ["x.gguf"]
    assert opened.received < 0.95 * model.source.size
    assert reported == sorted(reported), "what is checked first counts as done"


@pytest.mark.parametrize("change", ["part", "journal", "cut", "torn", "other", "gone"])
def test_what_was_left_is_checked(publish: Publish, local_hub: LocalHub, tmp_path: Path, change: str) -> None:
    model, target = publish(), tmp_path / "x.gguf"
    part, journal = tmp_path / "x.gguf.part", tmp_path / "x.gguf.journal.part"

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        stream(model, target, local_hub, progress=stop)
    assert lines(target) > 10
    data = bytearray(part.read_bytes())
    if change == "part":
        data[-200_000] ^= 1
        part.write_bytes(data)
    elif change == "cut":
        os.truncate(part, len(data) // 2)
    elif change == "gone":
        part.unlink()
    elif change == "journal":
        journal.write_bytes(journal.read_bytes()[:-3] + b"zzz")
    elif change == "torn":
        os.truncate(journal, journal.stat().st_size - 7)
    opened = stream(model, target, local_hub, outtype="bf16" if change == "other" else "f16")
    assert target.read_bytes() == model.local(outtype="bf16" if change == "other" else "f16")
    started_anew = opened.received > 0.9 * model.source.size
    assert started_anew == (change in ("other", "gone"))
    assert not part.exists()
    assert not journal.exists()


def test_weights_that_cannot_work_leave_nothing(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    state = tiny.weights("7")
    state["blocks.1.att.k_a"].flatten()[3] = float("nan")
    model = publish(state)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.k_a holds NaN values"):
        stream(model, tmp_path / "out" / "x.gguf", local_hub)
    assert names(tmp_path / "out") == []


# ---- what it takes


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_is_bounded_and_the_source_is_never_on_the_disk(
    publish: Publish, local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "PIECE", 1 << 20)
    monkeypatch.setattr(streamed, "AHEAD", 8 << 20)
    model = publish("7", width=256, ffn=16384, layers=6, dtype=torch.float32)
    assert model.source.size > 190e6
    out = tmp_path / "out"
    model.path.unlink()
    resident: list[int] = []

    def progress(done: int, total: int) -> None:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        assert set(names(out)) <= {"x.gguf.part", "x.gguf.journal.part"}
        held = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())
        assert held < done + 1_000_000, "more on the disk than what was made"

    stream(model, out / "x.gguf", local_hub, progress=progress)
    assert max(resident) - resident[0] < 50e6


def test_a_checksum_that_torch_left_out_is_not_missed(publish: Publish, local_hub: LocalHub, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        model = publish()
    finally:
        torch.serialization.set_crc32_options(True)
    assert zlib.crc32(b"") == 0
    stream(model, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.local()
    assert sha256(model.path) == model.source.sha256
