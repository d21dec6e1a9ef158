"""Data set files as texts: what pyarrow has written, columns, hubs, and files that are broken or made to harm."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import base64
import json
import random
import zlib
from pathlib import Path

import pytest
from arro3.core import Array, DataType, Table
from arro3.io import write_ipc, write_parquet

from ggufy.core.errors import CalibrationError
from ggufy.jobs.texts import split_texts
from ggufy.net import session as hub_session
from ggufy.sources.hub import parse_reference
from ggufy.texts import dataset
from ggufy.texts.calibration import NAMED, pin_text
from ggufy.texts.dataset import split_column, text_of
from tests import chatty
from tests.conftest import Ggufy
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

# A table of a text (one row is null) and a number, as pyarrow 26.0.1 writes it: Parquet by snappy, an Arrow stream.
PARQUET = base64.b64decode(
    "UEFSMRUEFUwVUEwVCBUAEgAAJpQLAAAAID0gSGVhZCA9IAoAAAAABgAAAOS4reaWhwUAAABhZ2FpbhUAFRQVGCwVDhUQFQYVBhwAAAAKJAIAAAADew"
    "ID5A8VBBU4FTxMFQ4VABIAABxsAAAAAAEAAAACAAAAAwAAAAQAAAAFAAAABgAAABUAFRYVGiwVDhUQFQYVBhwAAAALKAIAAAAOAQMDiMYaFQQZPDUA"
    "GAZzY2hlbWEVBAAVDCUCGAR0ZXh0JQBMHAAAABUCJQIYAW4lHkysEwgRAAAAFg4ZHBksJgAcFQwZNQAGEBkYBHRleHQVAhYOFqIBFqoBJnQmCCksFQ"
    "QVABUCABUAFRAVAgA8FkAZBhkmAgwAAAAmABwVAhk1AAYQGRgBbhUCFg4WkAEWmAEmigImsgEpLBUEFQAVAgAVABUQFQIAPCkGGSYADgAAABayAhYO"
    "JggWwgIAKCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRksHAAAHAAAAOIAAABQQVIx"
)
ARROW = zlib.decompress(
    base64.b64decode(
        "eNptUTsKwkAQfYmbGOIWCkEELVJ6CXsLC68QMIggVhaCB/AGnsHG3iNYeAzxGuvbcSRrcODNmzfZ+WzWOecuAPrwlsMiRYKMES0y1KDK6I16ICYW"
        "Gj9Yz4Oxr59oTkqJndRaoiu1Pp3JrII6ZdaK+syOknYPz/v6sP/ERjTHuTu50DMWQ93YSjd0DEakJb6WU1vZ3t9pq3ftorEkiCNl3Rel8rSl5/i1"
        "rw77xoGO/nz3dgziXoABMSTGOrOclfO6WpHy5+36Op+qdbXZNY5P0DFJKv/H93oD0YolxA=="
    )
)
WORDS = "a river bends and carries sand where trees stand in its old bed of grey stones".split()
TEXT = " = Head = \n\n中文\nagain\nagain\nagain\n"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)


def several(folder: Path, rows: int = 200) -> Path:
    """A Parquet file with two columns of texts and one of numbers."""
    path = folder / "several.parquet"
    texts = {name: Array([f"{name} {n}" for n in range(rows)], DataType.utf8()) for name in ("prompt", "answer")}
    write_parquet(Table.from_pydict({**texts, "n": Array(list(range(rows)), DataType.int64())}), path)
    return path


def refusal(data: bytes, column: str = "") -> str:
    with pytest.raises(CalibrationError) as caught:
        text_of(data, column, name="x.parquet", limit=1000)
    return str(caught.value)


@pytest.mark.parametrize("data", [PARQUET, ARROW])
def test_rows_of_the_only_column_of_texts(data: bytes) -> None:
    assert text_of(data, "", name="x", limit=1000).decode() == TEXT
    assert text_of(data, "text", name="x", limit=1000).decode() == TEXT


def test_an_arrow_file(tmp_path: Path) -> None:
    table = Table.from_pydict({"text": Array(["one", None, "two\n"], DataType.large_utf8())})
    write_ipc(table, tmp_path / "x.arrow")
    assert text_of((tmp_path / "x.arrow").read_bytes(), "", name="x", limit=1000) == b"one\ntwo\n"


def test_a_long_one_is_cut_after_a_whole_row() -> None:
    assert text_of(PARQUET, "", name="x", limit=len(TEXT.encode()) - 1).decode() == TEXT.removesuffix("again\n")


def test_a_column_is_chosen(tmp_path: Path) -> None:
    path = several(tmp_path)
    with pytest.raises(CalibrationError, match="several columns of texts, prompt, answer: choose one, as several.par"):
        pin_text(str(path), tmp_path / "cache")
    with pytest.raises(CalibrationError, match="no column n of texts: choose of prompt, answer, as several.parquet#p"):
        pin_text(f"{path}#n", tmp_path / "cache")
    text = pin_text(f"{path}#answer", tmp_path / "cache")
    assert text.name == "several" and text.path.read_text().startswith("answer 0\nanswer 1\n")
    assert pin_text(f"{path}#answer", tmp_path / "cache") == text
    numbers = Table.from_pydict({"n": Array([1], DataType.int8())})
    write_parquet(numbers, path)
    assert "no column of texts" in refusal(path.read_bytes())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("choice", "place", "column"),
    [
        ("a.parquet#text", "a.parquet", "text"),
        ("o/r:d/a.Parquet#", "o/r:d/a.Parquet", ""),
        ("https://x/a.arrow#b c", "https://x/a.arrow", "b c"),
        ("a.parquet", "a.parquet", ""),
        ("a#b.txt", "a#b.txt", ""),
        ("https://x/a.txt#part", "https://x/a.txt#part", ""),
    ],
)
def test_a_column_stands_behind_a_data_set_alone(choice: str, place: str, column: str) -> None:
    assert split_column(choice) == (place, column)


@pytest.mark.fast
def test_several_texts_with_columns() -> None:
    assert split_texts("bundled,o/r:a.parquet#text,wikitext") == ["bundled", "o/r:a.parquet#text", "wikitext"]


def test_on_the_hub(local_hub: LocalHub, tmp_path: Path) -> None:
    data = several(tmp_path).read_bytes()
    local_hub.put("alice/talks", "data/test.parquet", data, type="dataset", private=1)
    there = {"token": ALICE, "endpoint": local_hub.endpoint}
    text = pin_text("alice/talks:data/test.parquet#prompt", tmp_path / "cache", **there)
    assert text.name == "test" and text.path.read_text().startswith("prompt 0\n")
    local_hub.clear()
    assert pin_text("alice/talks:data/test.parquet#prompt", tmp_path / "cache", **there) == text
    assert not local_hub.log("/resolve/")
    url = f"{local_hub.endpoint}/alice/page/resolve/main/test.parquet"
    local_hub.put("alice/page", "test.parquet", data)
    assert pin_text(f"{url}#prompt", tmp_path / "other").sha256 == text.sha256


def test_wikitext_is_named(local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = parse_reference(NAMED["wikitext"], repo_type="dataset")
    assert (wanted.repo_id, len(wanted.revision or "")) == ("Salesforce/wikitext", 40)
    assert wanted.file == "wikitext-2-raw-v1/test-00000-of-00001.parquet"
    path = tmp_path / "x.parquet"
    write_parquet(Table.from_pydict({"text": Array([" = A = \n", "", " Words . \n"] * 200, DataType.utf8())}), path)
    put = local_hub.put("Salesforce/wikitext", wanted.file, path.read_bytes(), type="dataset")
    monkeypatch.setitem(NAMED, "wikitext", f"Salesforce/wikitext@{put['sha']}:{wanted.file}")
    text = pin_text("wikitext", tmp_path / "cache", endpoint=local_hub.endpoint)
    assert text.name == "wikitext"
    assert text.path.read_text() == " = A = \n\n Words . \n" * 200


@pytest.mark.tools
def test_perplexity_over_a_column(ggufy: Ggufy, tmp_path: Path) -> None:
    """The figures are those over the same text in a plain file, by `evaluate` and in a job."""
    rows = [f"Row {n}: {' '.join(random.Random(n).choices(WORDS, k=20))}." for n in range(60)]
    table = {"text": Array(rows, DataType.utf8()), "title": Array(["x"] * 60, DataType.utf8())}
    write_parquet(Table.from_pydict(table), tmp_path / "x.parquet")
    (tmp_path / "plain.txt").write_text("".join(f"{row}\n" for row in rows))
    base = chatty.write(tmp_path / "m.gguf")
    words = ["--types", "Q8_0", "--imatrix", "none", "--evaluate", "--evaluation-chunks", "4", "--json"]
    made = ggufy("quantize", base, *words, "--evaluation", f"{tmp_path}/x.parquet#text", "--out", tmp_path)
    (row,) = [row for row in json.loads(made.out)["files"] if "evaluation" in row]
    quant = next(tmp_path.glob("*-GGUF/*Q8_0.gguf"))
    found = {}
    for text in ("x.parquet#text", "plain.txt"):
        words = ["--chunks", "4", "--text", str(tmp_path / text), "--no-speed", "--json", "--out", tmp_path / text[:3]]
        done = ggufy("evaluate", base, quant, *words)  # in another folder, where nothing is measured yet
        assert done.code == 0, done.err
        found[text] = json.loads(done.out)["evaluations"][0]
    ours, plain = found.values()
    assert ours["quality"] == plain["quality"] == row["evaluation"]["quality"]
    assert (ours["text"], plain["text"]) == ("x.txt", "plain.txt")
    assert "has several columns of texts" in ggufy("evaluate", base, quant, "--text", tmp_path / "x.parquet").err


def test_broken_files_are_refused_in_a_sentence() -> None:
    assert "as a data set (Invalid Parquet file. Corrupt footer): give" in refusal(PARQUET[:200])
    noise = random.Random(1)
    for data in (b"", b"PAR1", b"ARROW1", bytes(200), noise.randbytes(300), b"PAR1" + noise.randbytes(300) + b"PAR1"):
        assert refusal(data).startswith("x.parquet cannot be read as a data set (")


def test_damage_anywhere_gives_a_text_or_a_sentence() -> None:
    noise = random.Random(2)
    for _ in range(12):
        data = bytearray(PARQUET)
        for _ in range(noise.randrange(1, 8)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        try:
            text_of(bytes(data), "", name="x.parquet", limit=1000)
        except CalibrationError as error:
            assert len(str(error)) < 900


def test_a_file_that_unfolds_to_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_MEMORY", 300_000_000)
    path = tmp_path / "bomb.parquet"
    table = Table.from_pydict({"text": Array(["a" * 200_000_000], DataType.large_utf8())})
    write_parquet(table, path, compression="zstd(3)", dictionary_enabled=False)
    assert path.stat().st_size < 100_000
    assert "(it takes too much memory or time)" in refusal(path.read_bytes())
