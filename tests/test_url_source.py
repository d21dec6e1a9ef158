"""A source at a plain address: pinned; with a digest in the address, fetched by the real hf_transfer in a process of
its own, and checked (without one it is streamed: see test_streamed.py)."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ggufy.core.errors import SourceError
from ggufy.net import session as hub_session
from ggufy.sources.url import check_download, download_command, resolve_url
from ggufy.system.files import sha256
from tests import tiny
from tests.conftest import Ggufy
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def files(local_hub: LocalHub, tmp_path: Path) -> tuple[str, Path, Path]:
    """The plain address of a tiny checkpoint, the checkpoint itself, and its vocabulary."""
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint, vocab = tiny.checkpoint(folder, "7", width=256)
    oid = local_hub.put("alice/plain", checkpoint.name, checkpoint.read_bytes(), lfs=1)["oid"]
    address = local_hub.endpoint.replace("127.0.0.1", "localhost")
    local_hub.clear()
    return f"{address}/__cdn/{oid}/{checkpoint.name}", checkpoint, vocab


def cached(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.tools
def test_it_is_quantized_like_the_same_file_here(
    ggufy: Ggufy, files: tuple[str, Path, Path], local_hub: LocalHub, tmp_path: Path
) -> None:
    url, checkpoint, vocab = files
    more = ["--vocab", vocab, "--types", "Q8_0", "--imatrix", "none"]
    assert ggufy("quantize", checkpoint, "--out", tmp_path / "a", *more).code == 0
    cache = tmp_path / "cache"
    url = f"{url}#sha256={sha256(checkpoint)}"
    done = ggufy("quantize", url, "--out", tmp_path / "b", *more, GGUFY_CACHE=str(cache), HF_TOKEN="hf_alice")
    assert done.code == 0, done.err
    first, second = ({path.name: sha256(path) for path in (tmp_path / out).rglob("*.gguf")} for out in ("a", "b"))
    assert len(first) == 2
    assert first == second
    asked = local_hub.log("/__cdn/")
    assert asked
    assert all(line["range"] and not line["token"] for line in asked)


@pytest.mark.tools
def test_a_wrong_digest_leaves_nothing(ggufy: Ggufy, files: tuple[str, Path, Path], tmp_path: Path) -> None:
    url, _, vocab = files
    cache = tmp_path / "cache"
    more = ["--vocab", vocab, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "o"]
    done = ggufy("quantize", f"{url}#sha256={'0' * 64}", *more, GGUFY_CACHE=str(cache))
    assert done.code == 1
    assert "its sha256 is another" in done.err
    assert not cached(cache / "sources")
    assert not list((tmp_path / "o").rglob("*.gguf"))


@pytest.mark.tools
def test_a_server_that_fails_in_the_middle(
    ggufy: Ggufy, files: tuple[str, Path, Path], local_hub: LocalHub, tmp_path: Path
) -> None:
    url, checkpoint, vocab = files
    url = f"{url}#sha256={sha256(checkpoint)}"
    local_hub.fault("GET /__cdn/", status=404, skip=3, times=99)  # pinned, looked at again, probed; then it is gone
    cache = tmp_path / "cache"
    more = ["--vocab", vocab, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "o"]
    done = ggufy("quantize", url, *more, GGUFY_CACHE=str(cache))
    local_hub.mend()
    assert done.code == 1
    assert [line for line in done.err.splitlines() if "could not be fetched" in line] == done.err.splitlines()[1:]
    assert not cached(cache / "sources")


def test_pinned_by_size_and_version(files: tuple[str, Path, Path], tmp_path: Path) -> None:
    url, checkpoint, _ = files
    source = resolve_url(url)
    assert (source.kind, source.path, source.size) == ("checkpoint", checkpoint.name, checkpoint.stat().st_size)
    assert source.remote
    assert not source.sha256
    assert resolve_url(url).key == source.key
    given = resolve_url(f"{url}#sha256={'A' * 64}")
    assert given.sha256 == given.key == "a" * 64
    with pytest.raises(SourceError, match="another file than when the job was made"):
        download_command(dataclasses.replace(source, etag='"other"'), tmp_path / "part")
    (tmp_path / "part").write_bytes(b"short")
    with pytest.raises(SourceError, match="its size is another"):
        check_download(source, tmp_path / "part")
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.org/model.zip", "ends in .pth, .safetensors or .gguf"),
        ("https://example.org/model.pth#sha256=12", "64 hex digits"),
        ("https://me:secret@example.org/model.pth", "password"),
        ("http://127.0.0.1:9/model.pth", "127.0.0.1:9"),
    ],
)
def test_addresses_that_cannot_work(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as error:
        resolve_url(text)
    assert "secret" not in str(error.value)


def test_a_server_without_ranges(files: tuple[str, Path, Path], local_hub: LocalHub) -> None:
    local_hub.fault("GET /__cdn/", no_range=True)
    with pytest.raises(SourceError, match="does not send parts"):
        resolve_url(files[0])
    local_hub.mend()
