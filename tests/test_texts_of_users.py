"""Whatever somebody types, of any length and any bytes: a sentence, never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from ggufy.core.errors import GgufyError
from ggufy.core.job_record import from_json, to_json
from ggufy.demo import CHECKPOINT, VOCAB
from ggufy.jobs import request as intake
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import is_query, make_job
from ggufy.net import session as hub_session
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings

TEXTS = {
    "bytes": "b\udce9.pth",
    "folder": "d\udce9r/m.gguf",
    "nul": "a\0b.pth",
    "only-nul": "\0",
    "line": "a\nb.gguf",
    "long": "x" * 300,
    "long-file": "x" * 300 + ".pth",
    "long-path": "/x" * 5000,
    "page": "some words of a page that was pasted " * 20_000,
    "chinese": "模" * 86,
    "chinese-file": "模" * 86 + ".gguf",
    "repo": "a/" + "b" * 300,
    "repo-bytes": "a/b\udce9:c.pth",
    "repo-nul": "a/b:c\0.pth",
    "repo-revision": "a/b@\udce9",
    "ftp": "ftp://[x",
    "url": "http://[x/m.pth",
    "url-bytes": "http://x.invalid/\udce9.pth",
    "url-nul": "http://x.invalid/\0.pth",
    "url-line": "http://x.invalid/a\nb.pth",
    "url-port": "http://x.invalid:port/m.pth",
    "url-nfkc": "http://x.invalid\u2100/m.pth",
    "url-host": "http://" + "x" * 300 + ".invalid/m.pth",
    "url-long": "http://x.invalid/" + "x" * 100_000 + ".pth",
    "url-space": "http://x .invalid/m.pth",
    "url-empty": "http:///m.pth",
    "home": "~nobody-of-this-name/m.pth",
    "colon": ":",
    "dots": "../" * 3000 + "m.pth",
    "emoji": "😀" * 64,
    "mark": "\ufeff",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.001)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the project's own texts take seconds to make."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tmp_path: Path, cache: Path) -> Settings:
    return replace(Settings.from_env({}), out=tmp_path / "out", cache=cache)


def printable(sentence: str) -> bool:
    return len(sentence) < 900 and "\0" not in sentence and sentence.encode() != b""


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_source(text: str, settings: Settings) -> None:
    report = inspect(text, settings)
    assert report.problem and printable(report.problem)
    with pytest.raises(GgufyError) as refused:
        make_job(JobOptions(source=text, quant_types=("Q8_0",)), settings)
    assert printable(str(refused.value))
    assert is_query(text) in (True, False)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("field", ["imatrix", "vocab", "calibration", "evaluation", "outtype", "targets"])
def test_any_other_field(field: str, text: str, settings: Settings) -> None:
    options = JobOptions(source=str(CHECKPOINT), quant_types=("Q8_0",), vocab=str(VOCAB), evaluate=True)
    with pytest.raises(GgufyError) as refused:
        make_job(replace(options, **{field: (text,) if field == "targets" else text}), settings)
    assert printable(str(refused.value))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_name(text: str, settings: Settings) -> None:
    options = JobOptions(
        source=str(CHECKPOINT), quant_types=("Q8_0",), vocab=str(VOCAB), imatrix="none", name=text, owner="me"
    )
    try:
        job = make_job(options, settings)
    except GgufyError as refused:
        assert printable(str(refused))
    else:
        assert from_json(to_json(job)) == job


@pytest.mark.parametrize("folder", [b"d\xe9r", "模".encode() * 85])
@pytest.mark.parametrize("stem", [b"b\xe9", "模".encode() * 83, b"a b", b"x" * 251])
@pytest.mark.parametrize("field", ["source", "vocab", "imatrix", "calibration"])
def test_files_whose_names_are_any_bytes(folder: bytes, stem: bytes, field: str, settings: Settings) -> None:
    """A name that is text works, however long; any other one is refused in a sentence."""
    path = Path(os.fsdecode(os.fsencode(settings.out.parent) + b"/" + folder)) / os.fsdecode(stem + b".pth")
    path.parent.mkdir()
    content: dict[str, Callable[[], bytes]] = {
        "source": CHECKPOINT.read_bytes,
        "vocab": VOCAB.read_bytes,
        "imatrix": lambda: b"GGUF",
        "calibration": lambda: b"some words of a text. " * 500,
    }
    path.write_bytes(content[field]())
    options = JobOptions(source=str(CHECKPOINT), quant_types=("Q8_0",), vocab=str(VOCAB))
    options = replace(options, **{field: str(path)})
    if b"\xe9" in folder + stem and b"\xe9\xe9" not in folder + stem and b"r" in folder or stem == b"b\xe9":
        with pytest.raises(GgufyError, match="is not UTF-8: rename that file or folder"):
            make_job(options, settings)
        if field == "source":
            assert "is not UTF-8: rename" in inspect(str(path), settings).problem
    else:
        job = make_job(options, settings)
        assert from_json(to_json(job)) == job
        assert json.loads(to_json(job))


def test_a_link_to_such_a_file(settings: Settings) -> None:
    there = Path(os.fsdecode(b"b\xe9.pth"))
    there.write_bytes(CHECKPOINT.read_bytes())
    Path("link.pth").symlink_to(there)
    with pytest.raises(GgufyError, match="is not UTF-8: rename"):
        make_job(JobOptions(source="link.pth", quant_types=(), vocab=str(VOCAB)), settings)


@pytest.mark.parametrize(
    ("text", "query"),
    [("rwkv world", True), ("模" * 86, True), ("a/b", False), ("", False), ("a\0", False), ("here", False)],
)
def test_words_to_search_for(text: str, *, query: bool) -> None:
    Path("here").touch()
    assert intake.is_query(text) is query
