"""Scales folded into models: llama.cpp computes the same, with the imatrix that was computed from the one before; and
the scales that are found lose less."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from ggufy.core.errors import Cancelled, SourceError, UsageError
from ggufy.formats.gguf import read_head
from ggufy.llama.ggml import Ggml, load
from ggufy.llama.install import Llama
from ggufy.quantize.awq.folding import RULES, Group, fold, groups
from ggufy.quantize.awq.scales import find_scales, scaling_of
from ggufy.quantize.engine import quantize
from ggufy.quantize.factors import Factors, scaled_imatrix
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.search.loss import dequantize
from ggufy.quantize.task import QuantizeTask
from ggufy.system.control import Control
from tests import families, small, tiny

MODELS = (*families.FAMILIES, "rwkv6", "rwkv7")
TOKENS = [1, 70, 105, 110, 35, 104, 75, 200, 35, 118]
CONTROL = Control(limit=lambda: 2)


def base_of(folder: Path, model: str) -> Path:
    if model.startswith("rwkv"):
        return tiny.converted(folder, model[-1])
    return families.make(folder / "base.gguf", model)


def logits(llama: Llama, model: Path) -> Any:
    """[tokens, V] of llama.cpp, with attention in F32: rounded to F16, scaled values would round otherwise."""
    (library,) = list(llama.bin.glob("libllama.so")) or list(llama.bin.glob("libllama.dylib"))
    out = model.with_suffix(".npy")
    command = [sys.executable, "-m", "tests.llama_logits", library, model, "f32", out, *TOKENS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], check=True, capture_output=True, env=environment)
    return np.load(out)


def some_scales(found: list[Group], *, exact: bool = False) -> list[tuple[Group, Any]]:
    """From 1/7 to 7; `exact`: powers of 4, which round nothing, nor do their roots."""
    random = np.random.default_rng(2)
    if exact:
        return [(group, 4.0 ** random.integers(-1, 2, group.channels)) for group in found]
    return [(group, np.exp(random.uniform(-2, 2, group.channels))) for group in found]


def folded(base: Path, target: Path, scaling: Mapping[str, Factors], ggml: Ggml) -> Path:
    """The model itself, scaled; F32 as its base."""
    quantize(QuantizeTask(base=base, target=target, recipe={}, ftype=0, scaling=scaling), CONTROL, ggml=ggml)
    return target


@pytest.mark.tools
@pytest.mark.parametrize("model", MODELS)
def test_the_scaled_model_computes_the_same(model: str, llama: Llama, tmp_path: Path) -> None:
    base, ggml = base_of(tmp_path, model), load(llama.bin)
    found = groups(read_head(base), base.name)
    assert len(found) == 2 * 4  # in each of two blocks
    chosen = some_scales(found, exact=True)
    expected = logits(llama, base)
    assert np.ptp(expected, axis=1).min() > 2
    assert np.array_equal(logits(llama, folded(base, tmp_path / "folded.gguf", fold(chosen), ggml)), expected)
    other = fold(some_scales(found))
    got = logits(llama, folded(base, tmp_path / "other.gguf", other, ggml))
    assert 0 < np.abs(got - expected).max() < 1e-4
    readers = {reader.name for group in found for reader in group.readers}
    half = {name: factors for name, factors in fold(chosen).items() if name in readers}
    got = logits(llama, folded(base, tmp_path / "half.gguf", half, ggml))
    assert np.abs(got - expected).max() > 1


@pytest.mark.tools
@pytest.mark.parametrize("model", MODELS)
def test_the_imatrix_of_the_scaled_model_follows(model: str, llama: Llama, tmp_path: Path) -> None:
    base = base_of(tmp_path, model)
    scaling = fold(some_scales(groups(read_head(base), base.name)))
    scaled = folded(base, tmp_path / "folded.gguf", scaling, load(llama.bin))
    text = tmp_path / "text.txt"
    text.write_text("It is the text of a test, 0123456789, and nothing else at all. " * 12, encoding="utf-8")
    for path in (base, scaled):
        command = [llama.tool("llama-imatrix"), "-m", path, "-f", text, "-o", path.with_suffix(".imatrix")]
        command += ["-c", 128, "-b", 128, "-t", 1, "--chunks", 2, "-fa", "off", "-ctk", "f32", "-ctv", "f32"]
        subprocess.run([*map(str, command)], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    plain, measured = (read_imatrix(path.with_suffix(".imatrix")) for path in (base, scaled))
    computed = scaled_imatrix(plain, scaling)
    assert computed.weights.keys() == measured.weights.keys() and len(measured.weights) >= 8
    for name, values in measured.weights.items():
        np.testing.assert_allclose(computed.weights[name], values, rtol=5e-4, atol=1e-12, err_msg=name)
    changed = [name for name, values in plain.weights.items() if np.abs(computed.weights[name] / values - 1).max() > 1]
    assert len(changed) >= 8


@pytest.mark.tools
@pytest.mark.parametrize(
    ("model", "kind"), [("llama", "Q4_0"), ("mixtral", "Q4_0"), ("phi3", "Q5_1"), ("rwkv7", "Q4_0")]
)
def test_what_is_expected_of_the_scales_is_what_the_files_lose(
    model: str, kind: str, llama: Llama, tmp_path: Path
) -> None:
    base, ggml = base_of(tmp_path, model), load(llama.bin)
    head = read_head(base)
    imatrix = read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", base))
    quantized = {
        one.name for group in groups(head, base.name) for one in group.readers if "time_mix_v1" not in one.name
    }
    recipe = {name: kind for name in quantized if "gate_inp" not in name}
    plain = QuantizeTask(base=base, target=tmp_path / "plain.gguf", recipe=recipe, ftype=2, imatrix=imatrix)
    found = find_scales(plain, ggml=ggml, control=CONTROL)
    assert found and any(one.kept for one in found)
    assert all(one.error < one.plain_error if one.kept else one.error == one.plain_error for one in found)
    scaling = scaling_of(found)
    order = replace(plain, target=tmp_path / "scaled.gguf", imatrix=scaled_imatrix(imatrix, scaling), scaling=scaling)
    for one in (plain, order):
        quantize(one, CONTROL, ggml=ggml)
    weights, before, after = (_weights(path) for path in (base, plain.target, order.target))
    for one in found:
        names = [reader.name for reader in one.group.readers if reader.name in recipe]
        importance = {name: imatrix.weights[name].reshape(-1, 1, weights[name].shape[-1]) for name in names}
        lost = dict.fromkeys(("plain", "scaled"), 0.0)
        for path, made, scales in (("plain", before, {}), ("scaled", after, scaling)):
            for name in names:
                columns, rows = _factors(scales.get(name), weights[name].shape)
                noise = (importance[name] * (made[name] / columns / rows - weights[name]) ** 2).sum()
                signal = (importance[name] * weights[name] ** 2).sum()
                lost[path] += noise / signal * weights[name].size
        assert lost["plain"] == pytest.approx(one.plain_error, rel=0.02)
        assert lost["scaled"] == pytest.approx(one.error, rel=0.02)


def _factors(factors: Factors | None, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Of columns and of rows, as they multiply [matrices, rows, columns]."""
    columns = 1.0 if factors is None or factors.columns is None else factors.columns[:, None]
    rows = 1.0 if factors is None or factors.rows is None else factors.rows.reshape(-1, shape[1], 1)
    return columns, rows


def _weights(path: Path) -> dict[str, Any]:
    """F64 [matrices, rows, columns] of every matrix."""
    return {
        tensor.name: dequantize(np.array(tensor.data).reshape(-1), tensor.tensor_type.name)
        .astype(np.float64)
        .reshape(-1, *reversed([int(size) for size in tensor.shape[:2]]))
        for tensor in GGUFReader(path).tensors
        if len(tensor.shape) > 1
    }


@pytest.mark.tools
def test_finding_scales_can_be_stopped(llama: Llama, tmp_path: Path) -> None:
    base = families.make(tmp_path / "base.gguf", "llama")
    imatrix = read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", base))
    order = QuantizeTask(
        base=base,
        target=tmp_path / "q.gguf",
        recipe={"blk.0.ffn_down.weight": "Q4_0"},
        ftype=2,
        imatrix=imatrix,
    )
    with pytest.raises(Cancelled):
        find_scales(order, ggml=load(llama.bin), control=Control(limit=lambda: 1, stopped=lambda: True))


@pytest.mark.fast
def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the architecture gpt2 could go.*llama, qwen2.*rwkv7"):
        groups(read_head(_of(tmp_path / "gpt2.gguf", "gpt2", {"token_embd.weight": np.float32})), "gpt2.gguf")
    names: dict[str, type] = {"blk.0.attn_norm.weight": np.float32, "blk.0.attn_sinks.weight": np.float32}
    with pytest.raises(UsageError, match=r"odd.gguf has the tensor blk.0.attn_sinks.weight"):
        groups(read_head(_of(tmp_path / "odd.gguf", "llama", names)), "odd.gguf")
    names = {"blk.0.attn_norm.weight": np.float32, "output.weight": np.uint8}
    with pytest.raises(SourceError, match=r"quantized already \(output.weight is Q8_0\)"):
        groups(read_head(_of(tmp_path / "q.gguf", "llama", names)), "q.gguf")


def _of(path: Path, architecture: str, tensors: Mapping[str, type]) -> Path:
    """A GGUF with these tensors; those of bytes are Q8_0."""
    writer = GGUFWriter(path, architecture)
    for name, kind in tensors.items():
        raw = GGMLQuantizationType.Q8_0 if kind is np.uint8 else None
        writer.add_tensor(name, np.zeros((2, 34 if raw else 32), dtype=kind), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.fast
def test_where_metadata_do_not_say_the_heads_values_stay(tmp_path: Path) -> None:
    base = families.make(tmp_path / "base.gguf", "llama")
    head = read_head(base)
    assert any("attn_v" in group.name for group in groups(head, base.name))
    for changes in ({"llama.attention.head_count": 3}, {"llama.attention.head_count": [4]}):
        other = replace(head, metadata=head.metadata | changes)
        assert not any("attn_v" in group.name and ".1." in group.name for group in groups(other, base.name))


@pytest.mark.fast
def test_the_docs_name_every_architecture() -> None:
    text = (Path(__file__).parent.parent / "docs" / "awq.md").read_text(encoding="utf-8")
    for name, rules in RULES.items():
        assert f"`{name}`" in text
        divided = {tensor.split(".")[0] for rule in rules for tensor in rule.divided.split()}
        assert all(f"`{tensor}`" in text for tensor in divided), name
