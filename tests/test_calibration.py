"""The project's own texts share nothing with what trained the demo; any other calibration text is pinned once."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.core.errors import CalibrationError, SourceError
from ggufy.demo import CALIBRATION
from ggufy.net import session as hub_session
from ggufy.system.files import sha256
from ggufy.texts import calibration
from ggufy.texts import text as demo_text
from ggufy.texts.calibration import NAMED, PinnedTexts, ensure_texts, pin_text, pinned
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

TEXT = "Some text, with an umlaut: ü.\n\n".encode() * 200
WINDOW = 8  # words


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[PinnedTexts, dict[str, str]]:
    """The project's own texts in a new cache, and the parts of the library's text that they were made of."""
    parts: dict[str, str] = {}

    def recorded(limits: dict[str, int | None]) -> dict[str, str]:
        parts.update(parts_texts(limits))
        return parts

    parts_texts = demo_text.parts_texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_text, "parts_texts", recorded)
        return ensure_texts(tmp_path_factory.mktemp("cache")), parts


@pytest.fixture
def own_texts(built: tuple[PinnedTexts, dict[str, str]]) -> PinnedTexts:
    return built[0]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)


def key(paragraph: str) -> str:
    return " ".join(paragraph.lower().split())


def keys(text: str) -> set[str]:
    return {key(paragraph) for paragraph in demo_text.split_paragraphs(text)}


def windows(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of WINDOW words, punctuation and case aside."""
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[i:] for i in range(WINDOW)), strict=False)


# ---- the project's own texts


def test_the_part_of_a_paragraph_depends_on_its_words_alone() -> None:
    rng = random.Random(0)
    words = ["Alpha", "beta", "gamma.", "Δ", "the", "of", "中文", "(x,", "y)"]
    counts = dict.fromkeys(demo_text.PARTS, 0)
    for _ in range(3000):
        sentence = [rng.choice(words) + str(rng.randrange(50)) for _ in range(12)]
        part = demo_text.part_of(" ".join(sentence))
        counts[part] += 1
        other = "\n  ".join(word.upper() if rng.random() < 0.5 else word.lower() for word in sentence)
        assert demo_text.part_of("  " + other + "\n") == part
    assert 0.80 < counts["train"] / 3000 < 0.88
    assert 0.05 < counts["calibration"] / 3000 < 0.11 and 0.05 < counts["evaluation"] / 3000 < 0.11


def test_the_parts_of_known_paragraphs_never_move() -> None:
    """The bundled checkpoint was trained with this rule."""
    known = {"paragraph 0": "train", "paragraph 14": "evaluation", "paragraph 31": "calibration"}
    assert {paragraph: demo_text.part_of(paragraph) for paragraph in known} == known


def test_the_evaluation_text_is_long_and_shares_no_paragraph_with_anything(
    own_texts: PinnedTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as a paragraph nor word for word inside one: against all that training reads, and both calibration
    texts."""
    monkeypatch.setenv("GOMP_SPINCOUNT", os.environ.get("GOMP_SPINCOUNT", "0"))  # set when the next line is run
    from tools import train_demo

    prose, code = train_demo.train_documents()
    calibration_text = own_texts.calibration.read_text(encoding="utf-8")
    learned = [*prose, *code, calibration_text, CALIBRATION.read_text(encoding="utf-8")]
    evaluation = own_texts.evaluation.read_text(encoding="utf-8")
    assert len(evaluation.encode()) >= 100_000
    assert sum(map(len, learned)) > 3_000_000

    assert not keys(evaluation) & {k for text in learned for k in keys(text)}
    paragraphs = {paragraph: set(windows(paragraph)) for paragraph in demo_text.split_paragraphs(evaluation)}
    wanted = set().union(*paragraphs.values())
    seen = {window for text in learned for window in windows(text) if window in wanted}
    inside = [paragraph for paragraph, own in paragraphs.items() if own and own <= seen]
    assert inside == []


def test_the_calibration_text_is_our_own_mixed_with_the_library(built: tuple[PinnedTexts, dict[str, str]]) -> None:
    texts, parts = built
    mixed = texts.calibration.read_text(encoding="utf-8")
    ours = CALIBRATION.read_text(encoding="utf-8")
    added, left = demo_text.cut(parts["calibration"], 40_000)
    assert texts.probe.read_text(encoding="utf-8") == left and f"{added}\n{left}" == parts["calibration"]
    assert 38_000 < len(added.encode()) <= 40_000
    assert keys(mixed) == keys(ours) | keys(added)
    assert abs(len(mixed.encode()) - len(ours.encode()) - len(added.encode())) < 200
    first = keys(mixed[: len(mixed) // 8])
    assert len(first & keys(ours)) > 5 and len(first & keys(added)) > 5
    blocks = re.findall(r"^```.*?^```", ours, flags=re.MULTILINE | re.DOTALL)
    assert blocks and all(block in mixed for block in blocks), "a block of code was cut in two"


def test_a_part_holds_long_paragraphs_of_that_part_once(built: tuple[PinnedTexts, dict[str, str]]) -> None:
    _, parts = built
    for part, text in parts.items():
        paragraphs = demo_text.split_paragraphs(text)
        assert min(map(len, paragraphs)) >= demo_text.MIN_PARAGRAPH_CHARS
        assert len({key(paragraph) for paragraph in paragraphs}) == len(paragraphs) > 50
        if part == "calibration":  # the evaluation text also holds what only C modules say, whatever its part
            assert {demo_text.part_of(paragraph) for paragraph in paragraphs} == {part}
    with pytest.raises(ValueError, match="unknown part 'test'"):
        demo_text.part_text("test")


def test_texts_are_built_once(own_texts: PinnedTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = own_texts.evaluation.stat().st_mtime_ns
    assert ensure_texts(own_texts.evaluation.parents[2]) == own_texts
    assert own_texts.evaluation.stat().st_mtime_ns == before
    monkeypatch.setattr(calibration, "_GENERATOR", 10**6)  # another generator: another folder
    monkeypatch.setattr(demo_text, "parts_texts", lambda limits: {"calibration": "a\n", "evaluation": "b" * 100_000})
    assert ensure_texts(own_texts.evaluation.parents[2]) != own_texts


def test_a_python_without_its_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_text, "_library_sources", lambda: iter(()))
    monkeypatch.setattr(demo_text, "_C_MODULES", "")
    with pytest.raises(SourceError, match=r"carries .* kB of text to evaluate on, 100 kB are needed"):
        ensure_texts(tmp_path)
    assert not list(tmp_path.rglob("*.txt"))


# ---- pinned texts


def test_the_bundled_text_and_a_file_are_pinned_by_digest(own_texts: PinnedTexts, tmp_path: Path) -> None:
    cache = own_texts.calibration.parents[2]
    bundled = pin_text("bundled", cache)
    assert bundled.path.read_bytes() == own_texts.calibration.read_bytes() and bundled.name == "ggufy-calibration"

    mine = tmp_path / "my notes!.txt"
    mine.write_bytes(TEXT)
    text = pin_text(str(mine), cache)
    assert (text.path.name, text.name, text.sha256) == ("my-notes.txt", "my-notes", sha256(mine))
    mine.write_bytes(TEXT + b"more")  # a resumed job still reads what was pinned
    assert pinned(cache, text.sha256) == text.path and text.path.read_bytes() == TEXT
    assert pin_text(str(mine), cache).sha256 != text.sha256

    text.path.write_bytes(b"touched")
    assert pinned(cache, text.sha256) is None
    assert pinned(cache, "0" * 64) is None


def test_a_url_is_fetched_once_and_gets_no_token(local_hub: LocalHub, tmp_path: Path) -> None:
    local_hub.put("alice/page", "a text.txt", TEXT, lfs=0)
    url = f"{local_hub.endpoint}/alice/page/resolve/main/a%20text.txt"
    local_hub.clear()
    local_hub.fault("GET /alice/page/", status=503)
    first = pin_text(url, tmp_path, token=ALICE)
    assert (first.name, first.path.read_bytes()) == ("a-text", TEXT)
    assert [(line["status"], line["token"]) for line in local_hub.log("/resolve/")] == [(503, ""), (200, "")]
    assert pin_text(url, tmp_path, token=ALICE) == first
    assert len(local_hub.log("/resolve/")) == 2
    first.path.unlink()  # gone from the cache: fetched again
    assert pin_text(url, tmp_path) == first
    assert len(local_hub.log("/resolve/")) == 3


def test_a_named_text_is_fetched_once_from_its_address(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NAMED["calibration_datav3"].startswith("https://") and NAMED["calibration_datav3"].endswith(".txt")
    local_hub.put("alice/gist", "calibration_datav3.txt", TEXT, lfs=0)
    monkeypatch.setitem(
        NAMED, "calibration_datav3", f"{local_hub.endpoint}/alice/gist/resolve/main/calibration_datav3.txt"
    )
    local_hub.clear()
    assert pin_text("calibration_datav3", tmp_path) == pin_text("calibration_datav3", tmp_path)
    assert pin_text("calibration_datav3", tmp_path).path.name == "calibration_datav3.txt"
    assert len(local_hub.log("/resolve/")) == 1


def test_a_dataset_is_named_by_id_or_by_id_and_file(local_hub: LocalHub, tmp_path: Path) -> None:
    local_hub.put("alice/corpus", "data/wiki.txt", TEXT, type="dataset", private=1)
    local_hub.put("alice/corpus", "README.md", b"# Data", type="dataset", lfs=0)
    there = {"token": ALICE, "endpoint": local_hub.endpoint}
    with pytest.raises(SourceError, match="the Hub has no dataset alice/corpus, or it is private: .*HF_TOKEN"):
        pin_text("alice/corpus", tmp_path, endpoint=local_hub.endpoint)
    local_hub.clear()
    text = pin_text("alice/corpus", tmp_path, **there)
    assert (text.name, text.path.read_bytes()) == ("wiki", TEXT)
    assert [line["token"] for line in local_hub.log("/__cdn/")] == [""]  # the storage's host gets no token
    assert pin_text("alice/corpus:data/wiki.txt", tmp_path, **there) == text

    local_hub.put("alice/corpus", "data/books.txt", TEXT[:4000], type="dataset", lfs=0)
    assert pin_text("alice/corpus", tmp_path, **there) == text  # as it was first fetched
    with pytest.raises(SourceError, match=r"holds 2 \.txt files.*alice/corpus:data/books\.txt; .*data/wiki\.txt \("):
        pin_text("alice/corpus", tmp_path / "another cache", **there)
    assert pin_text("alice/corpus:data/books.txt", tmp_path, **there).name == "books"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"short", r"is too short \(5 B\): at least 1,024 tokens are needed, 10 to 20 thousand"),
        ("Grüße, ".encode("latin-1") * 1000, r"is not UTF-8 \(byte 2\): save it as UTF-8 text"),
        (b"GGUF\0\0\0" * 1000, "holds zero bytes, so it is not a text"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_and_not_kept(
    local_hub: LocalHub, tmp_path: Path, data: bytes, message: str
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(data)
    local_hub.put("alice/bad", "mine.txt", data, lfs=0)
    for choice in (str(mine), f"{local_hub.endpoint}/alice/bad/resolve/main/mine.txt"):
        with pytest.raises(CalibrationError, match=message):
            pin_text(choice, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_a_text_that_is_too_long_is_refused(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MAX_BYTES", 5_000)
    mine = tmp_path / "mine.txt"
    mine.write_bytes(TEXT)
    with pytest.raises(CalibrationError, match=r"has 6\.4 kB, more than 5\.0 kB"):
        pin_text(str(mine), tmp_path)
    local_hub.put("alice/long", "mine.txt", TEXT, lfs=0)
    with pytest.raises(SourceError, match=r"mine\.txt is larger than 5\.0 kB"):
        pin_text(f"{local_hub.endpoint}/alice/long/resolve/main/mine.txt", tmp_path)


def test_what_cannot_be_fetched_is_one_sentence(local_hub: LocalHub, tmp_path: Path) -> None:
    local_hub.put("alice/site", "index.html", TEXT, lfs=0)
    address = f"{local_hub.endpoint}/alice/site/resolve/main"
    cases = {
        f"{address}/index.html": r"is a web page, not a text file: give the address of the raw file",
        f"{address}/none.txt": r"none\.txt answers with HTTP status 404: check the name",
        "http://127.0.0.1:9/a.txt": r"^http://127\.0\.0\.1:9/a\.txt cannot be reached",
        "http://": "is no address that can be fetched",
        "file:///etc/passwd": "there is no calibration text file:///etc/passwd: give bundled, calibration_datav3, w",
        "notes/none.txt": "there is no calibration text notes/none.txt",
        "no-such-name": "there is no calibration text no-such-name",
    }
    for choice, message in cases.items():
        with pytest.raises((CalibrationError, SourceError), match=message):
            pin_text(choice, tmp_path, endpoint=local_hub.endpoint)
