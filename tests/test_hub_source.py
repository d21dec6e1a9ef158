"""Sources on the Hub, against a local Hub: what is pinned, what is refused, and downloads that survive everything; the
latter from a local ModelScope too. What is particular to that is in test_modelscope_source.py."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import get_session

from ggufy.core.errors import BusyError, Cancelled, DiskError, SourceError
from ggufy.core.source import Source
from ggufy.net import download as ranged
from ggufy.net import session as hub_session
from ggufy.sources import hub
from ggufy.system.files import sha256
from ggufy.system.locks import lock
from tests.hub_fixture import ALICE, BOB, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.modelscope_fixture import LocalModelScope, local_modelscope  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
DATA = random.Random(0).randbytes(3_000_000)
BLOCK = 1 << 18
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)


@pytest.fixture(params=["the Hub", "ModelScope"])
def site(request: pytest.FixtureRequest, local_hub: LocalHub, local_modelscope: LocalModelScope) -> Iterator[LocalHub]:
    """Where a source is."""
    found = local_hub if request.param == "the Hub" else local_modelscope
    yield found
    found.mend()


@pytest.fixture
def source(site: LocalHub) -> Source:
    """A checkpoint in a repo of the test's own; the log starts after it."""
    repo = f"alice/source-{next(NUMBERS)}"
    site.put(repo, "model.pth", DATA)
    found = hub.resolve(f"ms:{repo}" if isinstance(site, LocalModelScope) else repo, endpoint=site.endpoint)
    site.clear()
    return found


def ranges(site: LocalHub) -> list[str]:
    return [line["range"] for line in site.log("/__cdn/")]


# ---- what is meant


def test_several_checkpoints_are_listed_with_sizes_and_one_can_be_chosen(local_hub: LocalHub) -> None:
    local_hub.put("alice/many", "RWKV-x070-0.1B.pth", DATA)
    local_hub.put("alice/many", "big/RWKV-x070-0.4B.pth", DATA * 2)
    local_hub.put("alice/many", "README.md", b"# Card", lfs=0)
    with pytest.raises(SourceError) as error:
        hub.resolve("alice/many", endpoint=local_hub.endpoint)
    for part in ("alice/many:RWKV-x070-0.1B.pth", "RWKV-x070-0.1B.pth (3.0 MB)", "big/RWKV-x070-0.4B.pth (6.0 MB)"):
        assert part in str(error.value)
    chosen = hub.resolve("alice/many:big/RWKV-x070-0.4B.pth", endpoint=local_hub.endpoint)
    assert (chosen.kind, chosen.path, chosen.size) == ("checkpoint", "big/RWKV-x070-0.4B.pth", 6_000_000)
    with pytest.raises(SourceError, match=r"has no file small\.pth: it holds RWKV-x070-0\.1B\.pth \(3\.0 MB\)"):
        hub.resolve("alice/many:small.pth", endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match=r"README\.md in alice/many is no \.pth file: choose RWKV"):
        hub.resolve("alice/many:README.md", endpoint=local_hub.endpoint)


def test_the_only_checkpoint_is_taken_and_a_gguf_must_be_named(local_hub: LocalHub) -> None:
    local_hub.put("alice/one", "model-F16.gguf", DATA)
    with pytest.raises(SourceError, match=r"alice/one holds no \.pth file"):
        hub.resolve("alice/one", endpoint=local_hub.endpoint)
    assert hub.resolve("alice/one:model-F16.gguf", endpoint=local_hub.endpoint).kind == "gguf"
    put = local_hub.put("alice/one", "model.pth", DATA)
    found = hub.resolve("alice/one", endpoint=local_hub.endpoint)
    assert (found.path, found.sha256, found.revision) == ("model.pth", put["oid"], put["sha"])
    assert found.remote and found.model_id == "alice/one" and found.size == len(DATA)


def test_a_checkpoint_that_is_no_large_file_is_refused(local_hub: LocalHub) -> None:
    local_hub.put("alice/small", "model.pth", b"version https://git-lfs", lfs=0)
    with pytest.raises(SourceError, match=r"model\.pth in alice/small is a small text file"):
        hub.resolve("alice/small", endpoint=local_hub.endpoint)


def test_the_revision_is_pinned(local_hub: LocalHub, tmp_path: Path) -> None:
    first = local_hub.put("alice/moving", "model.pth", DATA)
    before = hub.resolve("alice/moving", endpoint=local_hub.endpoint)
    second = local_hub.put("alice/moving", "model.pth", DATA[::-1])
    hub.download(before, tmp_path / "model.pth", endpoint=local_hub.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    assert hub.resolve("alice/moving", endpoint=local_hub.endpoint).revision == second["sha"]
    assert hub.resolve(f"alice/moving@{first['sha']}", endpoint=local_hub.endpoint) == before
    with pytest.raises(SourceError, match="alice/moving has no revision v9"):
        hub.resolve("alice/moving@v9:model.pth", endpoint=local_hub.endpoint)


@pytest.mark.parametrize(
    "path",
    ["", "/blob/main/model.pth", "/resolve/main/model.pth?download=true", "/tree/main", "/blob/{sha}/model.pth"],
)
def test_addresses_of_the_page_and_of_the_file_are_understood(local_hub: LocalHub, path: str) -> None:
    put = local_hub.put("alice/address", "model.pth", DATA)
    address = f"{local_hub.endpoint}/alice/address{path.format(**put)}"
    assert hub.resolve(address, endpoint=local_hub.endpoint).path == "model.pth"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", True),
        ("owner/repo:file.pth", True),
        ("owner/repo@v1:folder/file.pth", True),
        ("https://huggingface.co/owner/repo", True),
        ("https://example.org/owner/repo", False),
        ("models/file.pth", False),
        ("./models/file", False),
        ("/models/file", False),
        ("a/b/c", False),
        ("demo", False),
    ],
)
def test_what_can_only_be_a_name_on_the_hub(text: str, expected: bool) -> None:
    assert hub.is_reference(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "repo",
        "a/b/c:d",
        "https://example.org/a/b",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/a/b/blob",
    ],
)
def test_other_texts_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SourceError, match="write "):
        hub.parse_reference(text)


# ---- who may read it


def test_a_private_repo_needs_the_token_of_somebody_who_may_read_it(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.put("alice/secret", "model.pth", DATA, private=1)
    monkeypatch.setenv("HF_TOKEN", ALICE)  # is not looked at: only what is given counts
    with pytest.raises(SourceError, match="alice/secret, or it is private: .*HF_TOKEN"):
        hub.resolve("alice/secret", endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="a private one needs a token that may read it"):
        hub.resolve("alice/secret", token=BOB, endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="check HF_TOKEN"):
        hub.resolve("alice/secret", token="hf_unknown", endpoint=local_hub.endpoint)
    found = hub.resolve("alice/secret", token=ALICE, endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="or it is private"):
        hub.download(found, tmp_path / "model.pth", endpoint=local_hub.endpoint)
    local_hub.clear()
    hub.download(found, tmp_path / "model.pth", token=ALICE, endpoint=local_hub.endpoint)
    assert [line["token"] for line in local_hub.log("/resolve/")] == [ALICE]
    assert [line["token"] for line in local_hub.log("/__cdn/")] == [""], "the token went to another host"


def test_a_gated_repo_says_where_its_conditions_are(local_hub: LocalHub) -> None:
    local_hub.put("alice/gate", "model.pth", DATA, gated="auto")
    with pytest.raises(SourceError, match=r"is gated: .*huggingface\.co/alice/gate and set HF_TOKEN"):
        hub.resolve("alice/gate", endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="use the token of that account"):
        hub.resolve("alice/gate", token=BOB, endpoint=local_hub.endpoint)
    assert hub.resolve("alice/gate", token=ALICE, endpoint=local_hub.endpoint).path == "model.pth"


def test_a_missing_repo_and_an_unreachable_hub_are_one_sentence_each(local_hub: LocalHub) -> None:
    with pytest.raises(SourceError, match=r"^the Hub has no model nobody/nothing, or it is private: [^.]+\.$"):
        hub.resolve("nobody/nothing", endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match=r"^the Hub cannot be reached \(.+\): check the network"):
        hub.resolve("alice/any", endpoint="http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"allows no such name"):
        hub.resolve("alice/a--b", endpoint=local_hub.endpoint)


# ---- the download


def test_a_download_reports_its_bytes_and_leaves_only_the_file(site: LocalHub, tmp_path: Path, source: Source) -> None:
    seen: list[int] = []
    hub.download(source, tmp_path / "new" / "model.pth", progress=seen.append, endpoint=site.endpoint)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pth"]
    assert sha256(tmp_path / "new" / "model.pth") == source.sha256
    assert seen[0] == 0 and seen[-1] == source.size and seen == sorted(seen)


def test_a_cut_connection_goes_on_where_it_was_cut(site: LocalHub, tmp_path: Path, source: Source) -> None:
    site.fault("GET /__cdn/", cut=1_000_000, times=2)
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    whole = 1_000_000 // BLOCK * BLOCK
    assert ranges(site) == ["", f"bytes={whole}-", f"bytes={2 * whole}-"]


def test_the_next_process_continues_after_kill_9(site: LocalHub, tmp_path: Path, source: Source) -> None:
    target = tmp_path / "model.pth"
    script = (
        "import sys; from pathlib import Path; from ggufy.core.job import Source; from ggufy.sources import hub\n"
        f"hub.download({source!r}, Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(target)]
    environment = site.environment(tmp_path)
    site.fault("GET /__cdn/", cut=2_000_000, delay=120)
    part = tmp_path / "model.pth.download"
    whole = 2_000_000 // BLOCK * BLOCK
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (part.exists() and part.stat().st_size == whole):
            time.sleep(0.02)
        process.kill()
    assert part.stat().st_size == whole and not target.exists()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    assert target.read_bytes() == DATA and not part.exists()
    assert ranges(site) == ["", f"bytes={whole}-"]


def test_a_server_that_ignores_ranges_starts_over(site: LocalHub, tmp_path: Path, source: Source) -> None:
    (tmp_path / "model.pth.download").write_bytes(DATA[:1000])
    site.fault("GET /__cdn/", no_range=True)
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    assert [line["sent"] for line in site.log("/__cdn/")] == [len(DATA)]


@pytest.mark.parametrize("kept", [len(DATA), len(DATA) + 5])
def test_a_partial_file_of_full_or_greater_size_is_not_trusted(
    site: LocalHub, tmp_path: Path, source: Source, kept: int
) -> None:
    (tmp_path / "model.pth.download").write_bytes((DATA + b"-more")[:kept])
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    assert len(ranges(site)) == (0 if kept == len(DATA) else 1)


def test_a_damaged_partial_file_is_removed_and_fetched_anew(site: LocalHub, tmp_path: Path, source: Source) -> None:
    (tmp_path / "model.pth.download").write_bytes(b"x" * 1000)
    with pytest.raises(SourceError, match=r"arrived damaged .* run the same command again"):
        hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert list(tmp_path.iterdir()) == []
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA


def test_content_with_another_digest_never_gets_the_name(site: LocalHub, tmp_path: Path) -> None:
    site.put("alice/wrong", "model.pth", DATA, oid="ab" * 32)
    name = "ms:alice/wrong" if isinstance(site, LocalModelScope) else "alice/wrong"
    found = hub.resolve(name, endpoint=site.endpoint)
    with pytest.raises(SourceError, match="arrived damaged"):
        hub.download(found, tmp_path / "model.pth", endpoint=site.endpoint)
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_the_pinned_one_is_refused(site: LocalHub, tmp_path: Path, source: Source) -> None:
    (tmp_path / "model.pth.download").write_bytes(DATA[:1000])
    for size, digest in ((len(DATA) + 1, source.sha256), (len(DATA) - 1, source.sha256), (len(DATA), "cd" * 32)):
        pinned = Source(**{**vars(source), "size": size, "sha256": digest})
        with pytest.raises(SourceError, match=r"the server sends another file than model\.pth"):
            hub.download(pinned, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth.download").read_bytes() == DATA[:1000]


@pytest.mark.parametrize("path", ["/source-", "/(resolve|repo)", "/__cdn/"])
def test_a_busy_hub_is_asked_again(site: LocalHub, tmp_path: Path, source: Source, path: str) -> None:
    site.fault(f"GET .*{path}", status=429, headers={"Retry-After": "0"})
    site.fault(f"GET .*{path}", status=503)
    assert hub.resolve(source.model_id, endpoint=site.endpoint) == source
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    assert [line["status"] for line in site.log() if line["status"] >= 400] == [429, 503]


def test_how_long_the_hub_asks_to_wait_is_respected() -> None:
    def wait(status: int, **headers: str) -> float | None:
        response = httpx2.Response(status, headers=headers, request=httpx2.Request("GET", "http://hub"))
        return hub_session.wait_s(hub_session.HfHubHTTPError("", response=response), planned=1.0)

    assert wait(503) == 1.0 and wait(404) is None and wait(403) is None
    assert wait(429, **{"Retry-After": "7"}) == 7.0
    assert wait(429, RateLimit='"resolvers";r=0;t=20') == 21.0
    assert wait(429, RateLimit='"api";r=900;t=200') == 1.0  # another limit than this one was hit
    assert wait(429, **{"Retry-After": "86400"}) == 301.0


def test_a_hub_that_stays_away_ends_in_one_sentence_and_the_bytes_stay(
    site: LocalHub, tmp_path: Path, source: Source
) -> None:
    site.fault("GET /__cdn/", cut=600_000)
    site.fault("GET /__cdn/", status=502, times=hub_session.DOWNLOAD_TRIES)
    with pytest.raises(SourceError, match="HTTP status 502: wait, or try again later; what has arrived stays"):
        hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    whole = 600_000 // BLOCK * BLOCK
    assert (tmp_path / "model.pth.download").stat().st_size == whole and not (tmp_path / "model.pth").exists()
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert ranges(site)[-1] == f"bytes={whole}-"


def test_more_cuts_than_tries_are_survived_as_long_as_bytes_arrive(
    site: LocalHub, tmp_path: Path, source: Source
) -> None:
    cuts = len(DATA) // BLOCK
    assert cuts > hub_session.DOWNLOAD_TRIES
    site.fault("GET /__cdn/", cut=BLOCK + 10, times=cuts)
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA and len(ranges(site)) == cuts + 1


def test_a_silent_server_is_left_and_asked_again(
    site: LocalHub, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_session.use_timeouts()
    assert None not in (get_session().timeout.connect, get_session().timeout.read)
    monkeypatch.setattr(ranged, "DOWNLOAD_TIMEOUT", httpx2.Timeout(0.5))
    site.fault("GET /__cdn/", delay=60)
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert (tmp_path / "model.pth").read_bytes() == DATA


def test_a_silent_hub_is_asked_again(site: LocalHub, source: Source) -> None:
    site.fault("GET /api/", delay=60)
    hub_session.use_timeouts(httpx2.Timeout(0.5))
    try:
        assert hub.resolve(source.model_id, endpoint=site.endpoint) == source
    finally:
        hub_session.use_timeouts(hub_session.SESSION_TIMEOUT)


def test_a_stop_keeps_what_arrived(site: LocalHub, tmp_path: Path, source: Source) -> None:
    seen: list[int] = []
    with pytest.raises(Cancelled):
        hub.download(
            source,
            tmp_path / "model.pth",
            progress=seen.append,
            stopped=lambda: len(seen) > 4,
            endpoint=site.endpoint,
        )
    assert (tmp_path / "model.pth.download").stat().st_size == seen[-1] == 4 * BLOCK
    hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert ranges(site) == ["", f"bytes={4 * BLOCK}-"]


def test_a_full_disk_and_a_second_run_are_told_before_anything_is_asked(
    site: LocalHub, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = pytest.raises(BusyError, match=r"another run is downloading model\.pth")
    with lock(tmp_path / "model.pth.download"), busy:
        hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    monkeypatch.setattr(ranged, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(DiskError, match=r"model\.pth needs 3\.0 MB more and 1\.0 MB are free"):
        hub.download(source, tmp_path / "model.pth", endpoint=site.endpoint)
    assert site.log() == []
