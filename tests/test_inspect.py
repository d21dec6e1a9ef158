"""What a source is, from its headers: the real client against the test Hub, real checkpoints, and counted bytes."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import dataclasses
import http.server
import io
import itertools
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType

from ggufy.core.errors import CheckpointError
from ggufy.net import http_file as remote
from ggufy.net import http_get
from ggufy.net import session as hub_session
from ggufy.net.http_file import BLOCK, BlockFile, HttpFile
from ggufy.net.http_get import Address
from ggufy.sources.format import Report
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from tests import tiny
from tests.conftest import Ggufy
from tests.hub_fixture import ALICE, BOB, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

NUMBERS = itertools.count()
Look = Callable[..., Report]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_vocab(tmp_path_factory.mktemp("vocab") / "vocab.txt"))


@pytest.fixture
def look(local_hub: LocalHub, vocab: str) -> Look:
    """`inspect` with a token, or without one; the log of requests starts with it."""

    def call(text: str | Path, *, token: str | None = None, own_vocab: str | None = vocab) -> Report:
        local_hub.clear()
        settings = Settings.from_env({"HF_TOKEN": token} if token else {})
        return inspect(str(text), settings, vocab=own_vocab, endpoint=local_hub.endpoint)

    return call


@pytest.fixture
def put(local_hub: LocalHub) -> Callable[..., str]:
    """Puts a file into a repo of its own; gives the repo's name."""

    def call(data: bytes, *, path: str = "model.pth", **options: object) -> str:
        repo = f"alice/inspected-{next(NUMBERS)}"
        local_hub.put(repo, path, data, **options)
        return repo

    return call


def plain(local_hub: LocalHub, data: bytes, name: str = "model.pth") -> str:
    """The address of a file on a server that is not the Hub."""
    oid = local_hub.put("alice/plain", name, data, lfs=1)["oid"]
    return f"{local_hub.endpoint.replace('127.0.0.1', 'localhost')}/__cdn/{oid}/{name}"


def saved(state: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def sent(local_hub: LocalHub) -> int:
    """Bytes of files that the server has sent."""
    return sum(line["sent"] for line in local_hub.log("/__cdn/"))


def version_5(name: str) -> dict[str, torch.Tensor]:
    """As much of an older RWKV as tells its version."""
    state = {"emb.weight": torch.ones(tiny.VOCAB_ROWS, 128), "head.weight": torch.ones(tiny.VOCAB_ROWS, 128)}
    for block in ("blocks.0.", "blocks.1."):
        state |= {f"{block}att.time_mix_k": torch.ones(1, 1, 128), f"{block}att.time_decay": torch.ones(2)}
        if name != "4":
            state[f"{block}att.ln_x.weight"] = torch.ones(128)
    return state


# ---- checkpoints


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_described_without_its_weights(
    look: Look, put: Callable[..., str], local_hub: LocalHub, tmp_path: Path, version: str, dtype: torch.dtype
) -> None:
    path, _ = tiny.checkpoint(tmp_path, version, width=512, layers=3, dtype=dtype)
    data, state = path.read_bytes(), tiny.weights(version, width=512, layers=3)
    assert len(data) > 10e6
    card = b"---\nlicense: apache-2.0\n---\n# Card"
    repo = put(data)
    commit = local_hub.put(repo, "README.md", card, lfs=0)["sha"]
    report = look(repo)
    assert report.problem == ""
    assert (report.kind, report.title, report.path) == ("checkpoint", f"RWKV-{version} checkpoint", "model.pth")
    assert (report.layers, report.width, report.heads, report.head_size) == (3, 512, 8, 64)
    assert (report.vocab_size, report.architecture) == (tiny.VOCAB_ROWS, f"rwkv{version}")
    assert report.parameters == sum(tensor.numel() for tensor in state.values())
    assert (report.dtype, report.size) == ("f32" if dtype == torch.float32 else "bf16", len(data))
    assert (report.model_id, report.revision, report.license) == (repo, commit, "apache-2.0")
    assert not report.gated
    assert report.received == sent(local_hub) < 4 * BLOCK
    assert len(local_hub.log("/resolve/")) == 1  # the others go straight to where the file is stored
    here = look(path)
    facts = ("layers", "width", "heads", "vocab_size", "parameters", "dtype", "size", "problem", "version")
    assert [getattr(here, fact) for fact in facts] == [getattr(report, fact) for fact in facts]
    assert not local_hub.log()
    there = look(plain(local_hub, data))
    assert [getattr(there, fact) for fact in facts] == [getattr(report, fact) for fact in facts]
    assert not any(line["token"] for line in local_hub.log())


def test_the_demo_has_a_vocabulary_of_its_own(look: Look) -> None:
    report = look("demo", own_vocab=None)
    assert (report.problem, report.title, report.vocab_size) == ("", "RWKV-7 checkpoint", 4096)


def test_a_vocabulary_that_does_not_fit_is_a_problem(look: Look, tmp_path: Path) -> None:
    path, _ = tiny.checkpoint(tmp_path, "7")
    report = look(path, own_vocab=None)
    assert report.layers == 2
    assert "emb.weight has 320 rows, but the World vocabulary has 65530 tokens" in report.problem
    assert "nowhere.txt does not exist" in look(path, own_vocab="nowhere.txt").problem


@pytest.mark.parametrize("version", ["4", "5"])
def test_older_versions_are_named_and_described(look: Look, put: Callable[..., str], version: str) -> None:
    report = look(put(saved(version_5(version))))
    assert report.problem.startswith(f"this is RWKV-{version}, which llama.cpp cannot run")
    assert (report.version, report.layers, report.width, report.vocab_size) == (version, 2, 128, tiny.VOCAB_ROWS)


def test_other_models_are_no_rwkv(look: Look, put: Callable[..., str]) -> None:
    report = look(put(saved({"transformer.wte.weight": torch.ones(4, 4), "lm_head.weight": torch.ones(4, 4)})))
    assert report.problem.startswith("this is not an RWKV checkpoint")
    assert (report.kind, report.version, report.parameters) == ("checkpoint", "", 32)


def test_a_missing_tensor_is_named(look: Look, put: Callable[..., str]) -> None:
    state = tiny.weights("7")
    del state["blocks.1.att.w2"]
    assert "has no tensor blocks.1.att.w2" in look(put(saved(state))).problem


def test_zip64(look: Look, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    state, old = tiny.weights("7"), io.BytesIO(saved(tiny.weights("7")))
    with zipfile.ZipFile(old) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # for the writer: what it makes is what large files have
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", allowZip64=True) as archive:
        for info, data in members:
            archive.writestr(zipfile.ZipInfo(info.filename), data)
    monkeypatch.undo()
    assert b"PK\x06\x06" in new.getvalue()[-200:]
    report = look(put(new.getvalue()))
    assert (report.problem, report.parameters) == ("", sum(tensor.numel() for tensor in state.values()))


@pytest.mark.parametrize("kept", [0, 3, 5000, 200_000, -10, -70_000])
def test_a_cut_file(look: Look, put: Callable[..., str], local_hub: LocalHub, kept: int) -> None:
    data = saved(tiny.weights("7"))
    for source in (put(data[:kept]), plain(local_hub, data[:kept])):
        report = look(source)
        expected = "model.pth is empty" if kept == 0 else "not a PyTorch" if kept == 3 else "cut short or damaged"
        assert expected in report.problem
        assert report.size == len(data[:kept])


def test_a_web_page_under_the_name_of_a_model(look: Look, put: Callable[..., str], local_hub: LocalHub) -> None:
    page = b"<!DOCTYPE html><html>please log in</html>"
    assert "model.pth is not a PyTorch checkpoint" in look(put(page)).problem
    local_hub.put("alice/page", "model.html", page, lfs=0)
    with pytest.raises(remote.SourceError, match=r"model.pth is a web page, not a model: give the address"):
        at(f"{local_hub.endpoint}/alice/page/resolve/main/model.html").read(0, 10)


# ---- who may see it, and what is there


def test_several_variants_are_listed(look: Look, put: Callable[..., str], local_hub: LocalHub) -> None:
    data = saved(tiny.weights("7"))
    repo = put(data, path="big/b.pth")
    local_hub.put(repo, "a.pth", data + b"\0")
    local_hub.put(repo, "c.gguf", b"GGUF")
    local_hub.put(repo, "README.md", b"# Card", lfs=0)
    report = look(repo)
    assert report.problem == f"{repo} holds 2 .pth files: choose one, for example {repo}:a.pth."
    listed = [(variant.name, variant.size) for variant in report.variants]
    assert listed == [("a.pth", len(data) + 1), ("big/b.pth", len(data)), ("c.gguf", 4)]
    assert sent(local_hub) == 0
    assert look(f"{repo}:big/b.pth").problem == ""
    assert "has no file c.pth: it holds a.pth" in look(f"{repo}:c.pth").problem


def test_a_repo_without_checkpoints(look: Look, put: Callable[..., str]) -> None:
    repo = put(b"GGUF", path="model-F16.gguf")
    assert f"holds no .pth file, only GGUF: name an unquantized one, for example {repo}:" in look(repo).problem
    assert "holds no .pth file: look at https" in look(put(b"#", path="model.onnx")).problem


def test_gated_and_private(look: Look, put: Callable[..., str]) -> None:
    data = saved(tiny.weights("7"))
    repo = put(data, gated="auto")
    for token in (None, BOB):
        report = look(repo, token=token)
        assert report.gated and f"{repo} is gated: accept its conditions" in report.problem
        assert (report.path, report.size, len(report.variants)) == ("model.pth", len(data), 1)
    assert (look(repo, token=ALICE).problem, look(repo, token=ALICE).gated) == ("", True)
    secret = put(data, private=1)
    assert f"the Hub has no model {secret}, or it is private" in look(secret).problem
    assert look(secret, token=ALICE).layers == 2


def test_the_token_goes_to_the_hub_only(look: Look, put: Callable[..., str], local_hub: LocalHub) -> None:
    assert look(put(saved(tiny.weights("7", width=256))), token=ALICE).problem == ""
    asked = local_hub.log()
    assert {line["token"] for line in asked if "/__cdn/" not in line["path"]} == {ALICE}
    assert {line["token"] for line in asked if "/__cdn/" in line["path"]} == {""}
    assert look(plain(local_hub, saved(tiny.weights("7"))), token=ALICE).problem == ""
    assert {line["token"] for line in local_hub.log()} == {""}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nowhere/at/all.pth", "does not exist"),
        ("tests", "is a folder"),
        ("nobody/nothing", "the Hub has no model nobody/nothing"),
        ("a b:c", "is no name on the Hub"),
        ("https://example.org/model.zip", "is not the address of a model"),
        ("https://[x/model.pth", "is no address that can be fetched"),
        ("https://x.invalid/model.pth", "cannot be reached"),
        ("x" * 300 + "/model.pth", "does not exist"),
        ("~nobody-at-all/model.pth", "there is no home folder for ~nobody-at-all/"),
        ("", "is no path"),
        ("\0", "is no path"),
        ("ftp://[x", "is no address that can be fetched"),
        ("https://me:secret@example.org/model.pth", "an address with a password"),
    ],
)
def test_what_is_not_there(look: Look, text: str, problem: str) -> None:
    report = look(text)
    assert problem in report.problem
    assert report.path == "" or text.endswith("invalid/model.pth")


# ---- servers


def at(url: str) -> HttpFile:
    return HttpFile(Address(url=url, shown="model.pth"))


def test_a_server_without_ranges_is_left_at_once(look: Look, local_hub: LocalHub) -> None:
    url = plain(local_hub, saved({"emb.weight": torch.zeros(10_000_000)}))
    local_hub.fault("GET /__cdn/", times=9, no_range=True)
    report = look(url)
    local_hub.mend()
    assert "does not send parts of files: download it yourself" in report.problem
    assert len(local_hub.log("/__cdn/")) == 1
    assert report.received == 0


def test_a_failure_that_passes_is_survived(look: Look, put: Callable[..., str], local_hub: LocalHub) -> None:
    repo = put(saved(tiny.weights("7", width=256)))
    local_hub.fault("GET /__cdn/", status=503)
    local_hub.fault("GET /__cdn/", cut=100, skip=1)
    assert look(repo).problem == ""


def test_a_redirect_that_holds_no_longer_is_asked_for_again(
    look: Look, put: Callable[..., str], local_hub: LocalHub
) -> None:
    repo = put(saved(tiny.weights("7", width=256)), gated="auto")
    local_hub.fault("GET /__cdn/", status=403, skip=1)
    assert look(repo, token=ALICE).problem == ""
    assert [line["token"] for line in local_hub.log("/resolve/")] == [ALICE, ALICE]
    assert {line["token"] for line in local_hub.log("/__cdn/")} == {""}


def test_a_file_that_changes_while_it_is_looked_at(look: Look, local_hub: LocalHub) -> None:
    url = plain(local_hub, saved(tiny.weights("7", width=256)))
    local_hub.fault("GET /__cdn/", says={"ETag": '"other"'}, skip=1)
    assert "sends another part than was asked for: try again later" in look(url).problem
    local_hub.mend()


def test_a_server_that_stays_away(look: Look, put: Callable[..., str], local_hub: LocalHub) -> None:
    repo = put(saved(tiny.weights("7")))
    local_hub.fault("GET /__cdn/", status=503, times=20)
    report = look(repo)
    local_hub.mend()
    assert "the Hub answers with HTTP status 503" in report.problem
    assert report.size > 0  # what the listing said


def test_a_server_that_asks_for_patience_is_not_waited_for(
    look: Look, put: Callable[..., str], local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = put(saved(tiny.weights("7")))
    monkeypatch.setattr(remote.Deadline.__init__, "__defaults__", (0.5,))
    local_hub.fault("GET /api/models/", status=429, times=20, headers={"Retry-After": "300"})
    assert look(repo).problem == "the Hub did not answer in time: try again later."
    local_hub.mend()
    local_hub.fault("GET /__cdn/", status=429, times=20, headers={"Retry-After": "300"})
    assert "was not answered within" in look(repo).problem
    local_hub.mend()


def test_a_silent_hub_is_not_waited_for(
    look: Look, put: Callable[..., str], local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = put(saved(tiny.weights("7")))
    monkeypatch.setattr(remote.Deadline.__init__, "__defaults__", (0.5,))
    monkeypatch.setattr("ggufy.sources.inspect.SILENCE_S", 0.6)
    local_hub.fault("GET /api/models/", status=500, times=20, delay=30)
    assert look(repo).problem == "the Hub did not answer in time: try again later."
    local_hub.mend()


def test_on_a_space_only_the_public_internet_is_asked(
    look: Look, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = plain(local_hub, saved(tiny.weights("7")))
    local_hub.clear()
    on_space = Settings.from_env({"SPACE_ID": "alice/space", "SYSTEM": "spaces"})
    assert "is not on the public internet" in inspect(url, on_space).problem
    assert not local_hub.log()
    # 127.0.0.1 passes for a public server, which redirects to localhost.
    local_hub.put("alice/redirects", "model.pth", b"secret")
    monkeypatch.setattr(http_get, "is_public", lambda host: host == "127.0.0.1")
    redirecting = f"{local_hub.endpoint}/alice/redirects/resolve/main/model.pth"
    local_hub.clear()
    assert "is not on the public internet" in inspect(redirecting, on_space).problem
    assert len(local_hub.log()) == 1
    assert "not a PyTorch checkpoint" in look(redirecting).problem


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1",
     "::ffff:10.0.0.1", "fd00::1"],
)  # fmt: skip
def test_addresses_inside_are_not_public(host: str) -> None:
    assert not http_get.is_public(host)


def test_addresses_outside_are_public() -> None:
    assert http_get.is_public("8.8.8.8") and http_get.is_public("2001:4860:4860::8888")


def test_redirects_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/model.pth")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        report = inspect(f"http://127.0.0.1:{server.server_port}/model.pth", Settings.from_env({}))
        server.shutdown()
        thread.join()
    assert "is redirected again and again" in report.problem


def test_no_more_than_the_budget_is_read(local_hub: LocalHub) -> None:
    url = plain(local_hub, bytes(4 << 20))
    local_hub.clear()
    file = at(url)
    reader = BlockFile(file, budget=1 << 20)
    with pytest.raises(remote.SourceError, match=r"has more than 1.0 MB of headers"):
        while reader.read(10_000):
            pass
    assert sent(local_hub) == file.received <= 1 << 20


def test_a_ranged_file_is_the_file(local_hub: LocalHub) -> None:
    data = np.random.default_rng(0).bytes(1_000_003)
    file = at(plain(local_hub, data))
    reader = BlockFile(file, budget=4 << 20)
    random = np.random.default_rng(1)
    for _ in range(60):
        position, count = int(random.integers(len(data) + 100)), int(random.integers(1, 150_000))
        reader.seek(position)
        assert reader.read(count) == data[position : position + count]
    assert reader.seek(-5, io.SEEK_END) == len(data) - 5
    assert reader.read() == data[-5:]
    assert file.received <= len(data) * 2


# ---- GGUF


def test_a_gguf_is_described_by_its_head(
    look: Look, put: Callable[..., str], local_hub: LocalHub, tmp_path: Path
) -> None:
    path = tiny.converted(tmp_path, "7", outtype="bf16", width=512, layers=3)
    data = path.read_bytes()
    repo = put(data, path="model-BF16.gguf")
    report = look(f"{repo}:model-BF16.gguf")
    assert (report.problem, report.title, report.dtype) == ("", "RWKV-7 GGUF", "bf16")
    assert (report.layers, report.width, report.heads, report.head_size) == (3, 512, 8, 64)
    assert (report.vocab_size, report.size) == (tiny.VOCAB_ROWS, len(data))
    assert sent(local_hub) == report.received <= 4 * BLOCK
    facts = dataclasses.asdict(look(path))
    assert facts | {"received": 0} == dataclasses.asdict(look(plain(local_hub, data, "made.gguf"))) | {
        "source": facts["source"],
        "received": 0,
    }


def gguf_file(path: Path, *, tokens: int = 10, kind: GGMLQuantizationType | None = None, **texts: str) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_token_list([f"a longer token {number}" for number in range(tokens)])
    for key, value in texts.items():
        writer.add_string(f"general.{key}", value)
    shape = np.zeros((64, 34), dtype=np.uint8) if kind else np.zeros((64, 32), dtype=np.float16)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        writer.add_tensor(name, shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_long_head_is_read_in_few_requests(look: Look, local_hub: LocalHub, tmp_path: Path) -> None:
    data = gguf_file(tmp_path / "x.gguf", tokens=60_000).read_bytes() + bytes(1 << 20)
    report = look(plain(local_hub, data, "x.gguf"))
    assert (report.problem, report.title, report.vocab_size) == ("", "llama GGUF", 60_000)
    assert report.heads == 4
    assert len(local_hub.log("/__cdn/")) <= 7
    assert sent(local_hub) < len(data)


def test_ggufs_that_cannot_be_quantized(look: Look, put: Callable[..., str], tmp_path: Path) -> None:
    quantized = gguf_file(tmp_path / "q.gguf", kind=GGMLQuantizationType.Q8_0)
    report = look(quantized)
    assert "q.gguf is quantized already: start from its F16" in report.problem
    assert report.dtype == "Q8_0"
    repo = put(quantized.read_bytes(), path="q.gguf")
    assert look(f"{repo}:q.gguf").problem == report.problem
    assert "is an imatrix, not a model" in look(gguf_file(tmp_path / "i.gguf", type="imatrix")).problem
    cut = quantized.read_bytes()[:-2000]
    assert "it is cut off" in look(f"{put(cut, path='q.gguf')}:q.gguf").problem
    assert "does not start with GGUF" in look(f"{put(b'<html>', path='q.gguf')}:q.gguf").problem


def test_texts_of_a_file_do_not_reach_the_terminal_as_they_are(look: Look, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"ll\x1b[m"))
    assert look(path).title == "ll?[m GGUF"


# ---- the command


def test_the_command(ggufy: Ggufy, local_hub: LocalHub, put: Callable[..., str], vocab: str, tmp_path: Path) -> None:
    repo = put(saved(tiny.weights("7")))
    done = ggufy("inspect", repo, "--vocab", vocab, HF_ENDPOINT=local_hub.endpoint)
    assert done.code == 0, done.err
    assert "kind       RWKV-7 checkpoint\n" in done.out
    assert "shape      2 layers, width 128, 2 heads of 64\n" in done.out
    done = ggufy("inspect", repo, "--json", HF_ENDPOINT=local_hub.endpoint)
    assert done.code == 1
    assert json.loads(done.out)["problem"] in done.err
    local_hub.put(repo, "other.pth", b"")
    done = ggufy("inspect", repo, HF_ENDPOINT=local_hub.endpoint)
    assert done.code == 1
    assert "\nholds      model.pth (" in done.out and "\nholds      other.pth (0 B)" in done.out
    assert "choose one, for example" in done.err
    assert CheckpointError.__name__ not in done.err
