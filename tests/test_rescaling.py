"""What converters divide deep blocks of an RWKV-6 by: undone before quantizing, and llama.cpp computes the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from ggufy.core.catalog import BY_NAME
from ggufy.formats.gguf import read_head
from ggufy.llama.ggml import load
from ggufy.models.convert import convert
from ggufy.models.rwkv6 import RWKV6
from ggufy.quantize.engine import quantize
from ggufy.quantize.search.loss import dequantize
from ggufy.quantize.search.mixes import rescaling
from ggufy.quantize.task import QuantizeTask
from ggufy.system.control import Control
from tests import tiny

LAYERS = 11  # halved after each: by 1024 in the last one, as in the last one of a 14B
DIVIDED = ("time_mix_output", "channel_mix_value")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same weights converted with and without the division; F32.

    The residual stream is as large against the layer norm's epsilon, also when halved, as it is in deep models.
    """
    folder = tmp_path_factory.mktemp("deep")
    state = tiny.weights("6", width=256, ffn=256, layers=LAYERS)
    random = torch.Generator().manual_seed(1)
    state["blocks.0.ln0.weight"] *= 100
    for block in range(LAYERS):
        state[f"blocks.{block}.ffn.key.weight"] *= 10
        for name in ("att.output", "ffn.value"):
            state[f"blocks.{block}.{name}.weight"] = torch.randn((256, 256), generator=random) * 0.02
    source, vocab = tiny.save(folder / "deep.pth", state), tiny.write_vocab(folder / "vocab.txt")
    made = {every: folder / f"{every}.gguf" for every in (0, 1)}
    for every, path in made.items():
        convert(source, path, outtype="f32", vocab=vocab, name="deep", rescale_every=every)
    return made


def perplexity(llama_bin: Path, model: Path, folder: Path) -> float:
    text = folder / "text.txt"
    text.write_text('it\'s the text of a test, and "nothing else": 0123456789\n' * 12)
    command = [llama_bin / "llama-perplexity", "-m", model, "-f", text, "-c", 128, "-b", 128, "-t", 2, "--chunks", 2]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"PPL = ([\d.]+)", done.stdout + done.stderr)
    assert found
    return float(found[1])


def make(base: Path, target: Path, llama_bin: Path, *, kind: str, undo: bool) -> dict[str, np.ndarray]:
    """Quantizes all matrices of the blocks to one type; gives what the divided ones became."""
    head = read_head(base)
    square = [name for name, tensor in head.tensors.items() if tensor.shape == (256, 256)]
    order = QuantizeTask(
        base=base,
        target=target,
        recipe=dict.fromkeys(square, kind),
        ftype=BY_NAME["Q6_K"].ftype,
        scales=rescaling(head) if undo else {},
    )
    quantize(order, Control(limit=lambda: 2), ggml=load(llama_bin))
    tensors = (tensor for tensor in GGUFReader(target).tensors if any(part in tensor.name for part in DIVIDED))
    return {t.name: dequantize(np.array(t.data), t.tensor_type.name).reshape(256, 256) for t in tensors}


def test_what_was_divided_is_found_where_it_matters(bases: dict[int, Path], tmp_path: Path) -> None:
    factors = rescaling(read_head(bases[1]))
    assert factors == {f"blk.{i}.{name}.weight": 2.0**i for i in range(1, LAYERS) for name in DIVIDED}
    assert rescaling(read_head(bases[0])) == {}
    assert rescaling(read_head(tiny.converted(tmp_path, "7"))) == {}
    shallow, vocab = tiny.checkpoint(tmp_path, "6", layers=4)
    convert(shallow, tmp_path / "shallow.gguf", vocab=vocab, rescale_every=1)
    assert rescaling(read_head(tmp_path / "shallow.gguf")) == {}


@pytest.mark.parametrize(("kind", "harm"), [("Q6_K", 0.9), ("IQ4_XS", 0.9), ("Q4_K", 0.008), ("Q8_0", 0.001)])
def test_deep_blocks_lose_nothing_more(
    bases: dict[int, Path], tmp_path: Path, llama_bin: Path, kind: str, harm: float
) -> None:
    whole = {t.name: np.array(t.data) for t in GGUFReader(bases[0]).tensors}
    last = f"blk.{LAYERS - 1}.time_mix_output.weight"
    divided = make(bases[1], tmp_path / "divided.gguf", llama_bin, kind=kind, undo=False)[last] * 2 ** (LAYERS - 1)
    undone = make(bases[1], tmp_path / "undone.gguf", llama_bin, kind=kind, undo=True)
    plain = make(bases[0], tmp_path / "plain.gguf", llama_bin, kind=kind, undo=True)
    assert np.square(divided - whole[last]).sum() / np.square(whole[last]).sum() > harm
    assert undone.keys() == plain.keys()
    for name, values in undone.items():
        np.testing.assert_array_equal(values, plain[name])
    assert read_head(tmp_path / "undone.gguf").metadata[RWKV6.rescale_key] == 0
    assert read_head(tmp_path / "divided.gguf").metadata[RWKV6.rescale_key] == 1


def test_an_f16_base_has_rounded_some_and_its_quants_lose_nothing_more(
    bases: dict[int, Path], tmp_path: Path, llama_bin: Path
) -> None:
    """Divided by 1024, weights of a deviation of 0.02 are below the normal numbers of F16."""
    folder, last = bases[0].parent, f"blk.{LAYERS - 1}.time_mix_output.weight"
    whole = next(np.array(t.data) for t in GGUFReader(bases[0]).tensors if t.name == last)
    f16 = {every: tmp_path / f"{every}.gguf" for every in (0, 1)}
    for every, path in f16.items():
        vocab = folder / "vocab.txt"
        convert(folder / "deep.pth", path, outtype="f16", vocab=vocab, name="deep", rescale_every=every)

    def lost(values: np.ndarray) -> float:
        return float(np.square(values - whole).sum() / np.square(whole).sum())

    held = {e: next(np.array(t.data) for t in GGUFReader(f16[e]).tensors if t.name == last) for e in f16}
    factor = np.float32(2 ** (LAYERS - 1))
    rounded = held[1].astype(np.float32) * factor
    assert 5 * lost(held[0].astype(np.float32)) < lost(rounded) < 1e-5
    undone = make(f16[1], tmp_path / "f32.gguf", llama_bin, kind="F32", undo=True)[last]
    np.testing.assert_array_equal(undone, rounded)
    undone = make(f16[1], tmp_path / "undone.gguf", llama_bin, kind="Q6_K", undo=True)[last]
    plain = make(f16[0], tmp_path / "plain.gguf", llama_bin, kind="Q6_K", undo=True)[last]
    assert lost(undone) == pytest.approx(lost(plain) + lost(rounded), rel=0.02)


def test_llama_cpp_computes_the_same(bases: dict[int, Path], tmp_path: Path, llama_bin: Path) -> None:
    make(bases[1], tmp_path / "f32.gguf", llama_bin, kind="F32", undo=True)
    make(bases[1], tmp_path / "q8.gguf", llama_bin, kind="Q8_0", undo=True)
    before = perplexity(llama_bin, bases[1], tmp_path)
    assert perplexity(llama_bin, tmp_path / "f32.gguf", tmp_path) == perplexity(llama_bin, bases[0], tmp_path)
    # The halved stream is no longer that much larger than the layer norm's epsilon: the undone one is the training's.
    assert perplexity(llama_bin, tmp_path / "f32.gguf", tmp_path) == pytest.approx(before, rel=1e-2)
    assert perplexity(llama_bin, tmp_path / "q8.gguf", tmp_path) == pytest.approx(before, rel=5e-2)
