"""RWKV-5 with a gate as RWKV-6: the same logits in BlinkDL's package and in llama.cpp, and what is no such model.
test_convert.py compares llama.cpp's perplexities."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from ggufy.cli.inspect import report_table
from ggufy.core.errors import CheckpointError, DiskError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.models.convert import convert, write_skeleton
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.models.registry import detect
from ggufy.models.upgrade import upgrade
from ggufy.sources import hub
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from ggufy.ui.i18n import TEXTS
from ggufy.ui.source_parts import report as page_report
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - a fixture
from tests.reference import reference_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
TOKENS = [1 + (7 * number * number + 3 * number) % 255 for number in range(60)]
LOGITS = """
import sys
import numpy as np
from rwkv.model import RWKV

checkpoint, out, *tokens = sys.argv[1:]
model, state, rows = RWKV(model=checkpoint, strategy="cpu fp32"), None, []
for token in tokens:
    logits, state = model.forward([int(token)], state)
    rows.append(logits.numpy().copy())
np.save(out, np.array(rows))
"""


def logits(checkpoint: Path, folder: Path, tokens: list[int]) -> Any:
    """[tokens, V], by BlinkDL's package."""
    out = folder / "logits.npy"
    command = [sys.executable, "-c", LOGITS, checkpoint.with_suffix(""), out, *map(str, tokens)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return np.load(out)


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


# ---- the same model


@pytest.mark.parametrize("version", ["5.1", "5.2"])
def test_an_upgraded_checkpoint_has_the_same_logits(tmp_path: Path, version: str) -> None:
    source, _ = tiny.checkpoint(tmp_path, version, layers=3)
    upgrade(source, tmp_path / "v6.pth")
    old, new = (logits(path, tmp_path, TOKENS) for path in (source, tmp_path / "v6.pth"))
    assert np.abs(new - old).max() < 1e-4
    assert np.abs(old[1:] - old[:-1]).max() > 1, "a model whose logits depend on what it read"


def test_the_reference_models_logits(tmp_path: Path) -> None:
    """Those of the package on the v5.2 file; and those of our own GGUF are compared by llama.cpp below."""
    source = reference_file("rwkvcpp/derived/tiny-rwkv-5v2-730K.pth")
    text = json.loads(reference_file("rwkvcpp/reference/reference.json").read_text())["text"]
    expected = np.load(reference_file("rwkvcpp/reference/v5-upstream-eps.npz"))["5v2-730K/upstream/logits_all"]
    upgrade(source, tmp_path / "v6.pth")
    assert np.abs(logits(tmp_path / "v6.pth", tmp_path, list(text.encode())) - expected).max() < 2e-5


@pytest.mark.tools
def test_llama_cpp_continues_the_reference_model_as_rwkv_cpp_does(tmp_path: Path, llama_bin: Path) -> None:
    reference = json.loads(reference_file("rwkvcpp/reference/reference.json").read_text())
    source, vocab = (reference_file(f"rwkvcpp/derived/{n}") for n in ("tiny-rwkv-5v2-730K.pth", "byte.vocab.txt"))
    convert(source, tmp_path / "x.gguf", outtype="f32", vocab=vocab)
    (tmp_path / "prompt.txt").write_text(reference["text"])
    options = ["-n", "32", "-no-cnv", "--no-display-prompt", "-t", "1", "--temp", "0", "--ignore-eos", "--no-escape"]
    command = [llama_bin / "llama-completion", "-m", tmp_path / "x.gguf", "-f", tmp_path / "prompt.txt", *options]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(bytes(reference["files"]["5v2-730K/FP32"]["greedy32"]).decode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_is_f32(tmp_path: Path, dtype: torch.dtype) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "5.2", dtype=dtype)
    state = tiny.weights("5.2", dtype=dtype)
    convert(source, tmp_path / "x.gguf", vocab=vocab, outtype="f16", rescale_every=0)
    found = tensors(tmp_path / "x.gguf")
    for block in range(2):
        att, gguf = f"blocks.{block}.att.", f"blk.{block}."
        fused = found[f"{gguf}time_mix_lerp_fused.weight"].reshape(5, -1)
        assert not fused[0].any(), "w"
        for row, letter in enumerate("kvrg", start=1):
            assert np.array_equal(fused[row], (1 - state[f"{att}time_mix_{letter}"].float()).flatten().numpy())
        lerp = 1 - state[f"blocks.{block}.ffn.time_mix_r"].float()
        assert np.array_equal(found[f"{gguf}channel_mix_lerp_r.weight"], lerp.flatten().numpy())
        assert np.array_equal(found[f"{gguf}time_mix_decay.weight"], state[f"{att}time_decay"].float().flatten())
        assert np.array_equal(found[f"{gguf}time_mix_first.weight"], state[f"{att}time_faaaa"].float())
        low_rank = [name for name in found if name.startswith(gguf) and name.endswith(("_w1.weight", "_w2.weight"))]
        assert len(low_rank) == 4 and not any(found[name].any() for name in low_rank)
    assert tiny.fields(tmp_path / "x.gguf")["general.architecture"] == "rwkv6"
    assert tiny.fields(tmp_path / "x.gguf")["rwkv6.time_mix_extra_dim"] == 1


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_a_decay_a_head_in_every_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = tiny.weights("5.1")
    for name, tensor in state.items():
        if name.endswith((".time_decay", ".time_first")):
            state[name] = tensor.reshape(shape)
    vocab = tiny.write_vocab(tmp_path / "vocab.txt")
    convert(tiny.save(tmp_path / "x.pth", state), tmp_path / "x.gguf", vocab=vocab)
    found = tensors(tmp_path / "x.gguf")
    assert np.array_equal(
        found["blk.1.time_mix_first.weight"],
        state["blocks.1.att.time_first"].exp().reshape(2, 1).expand(2, tiny.HEAD_SIZE).numpy(),
    )
    decays = state["blocks.1.att.time_decay"].reshape(2, 1).expand(2, tiny.HEAD_SIZE).flatten()
    assert np.array_equal(found["blk.1.time_mix_decay.weight"], decays.numpy())


def test_streamed_and_forecast_it_is_the_same_file(tmp_path: Path, local_hub: LocalHub) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "5.2", width=256, layers=8)
    convert(source, tmp_path / "here.gguf", vocab=vocab, name="x")
    local_hub.put("alice/five", "model.pth", source.read_bytes())
    remote = open_streamed(hub.resolve("alice/five", endpoint=local_hub.endpoint), endpoint=local_hub.endpoint)
    convert_streamed(remote, origins_of(remote.shapes), tmp_path / "there.gguf", vocab=vocab, name="x")
    made = (tmp_path / "here.gguf").read_bytes()
    assert (tmp_path / "there.gguf").read_bytes() == made
    write_skeleton(remote.shapes, tmp_path / "skeleton.gguf", outtype="f16", vocab=vocab, name="x")
    start = GGUFReader(tmp_path / "here.gguf").data_offset
    skeleton = (tmp_path / "skeleton.gguf").read_bytes()
    assert len(skeleton) == len(made) and skeleton[:start] == made[:start]


@pytest.mark.fast
def test_a_look_says_what_it_becomes(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "5.2")
    report = inspect(str(source), Settings.from_env({}), vocab=str(vocab))
    assert (report.problem, report.title, report.becomes) == ("", "RWKV-5.2 checkpoint", "RWKV-6")
    assert "converted as RWKV-6" in report_table(report)
    assert "converted as RWKV-6" in page_report(report, TEXTS["en"]) and "转换为 RWKV-6" in page_report(
        report, TEXTS["zh"]
    )
    assert (report.architecture, report.heads, report.head_size, report.layers) == ("rwkv6", 2, tiny.HEAD_SIZE, 2)


# ---- the upgraded checkpoint


@pytest.mark.fast
def test_weights_that_stay_keep_their_type_and_a_state_comes_along(tmp_path: Path) -> None:
    state = tiny.weights("5.2", dtype=torch.bfloat16)
    state["blocks.0.att.time_state"] = torch.ones(2, 64, 64, dtype=torch.bfloat16)
    state["blocks.0.att.key.weight"] = state["blocks.0.att.key.weight"].t().contiguous().t()
    upgrade(tiny.save(tmp_path / "x.pth", {f"module.{name}": one for name, one in state.items()}), tmp_path / "6.pth")
    made = torch.load(tmp_path / "6.pth", weights_only=True)
    for name in ("emb.weight", "blocks.0.att.key.weight", "blocks.0.att.time_state", "blocks.1.ffn.value.weight"):
        assert made[name].dtype == torch.bfloat16 and torch.equal(made[name], state[name])
    assert {name for name, one in made.items() if one.dtype == torch.float32} == {
        name for name in made if ".time_" in name and "time_state" not in name
    }
    assert made["blocks.0.att.time_maa_w2"].shape == (5, 32, 128), "the usual rank"
    with open_checkpoint(tmp_path / "6.pth") as checkpoint:
        assert detect(checkpoint.shapes).architecture.name == "rwkv6"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("6", "is RWKV-6, which needs no upgrade: convert or quantize it as it is"),
        ("7", "is RWKV-7, which needs no upgrade"),
        ("5", "this is RWKV-5, .* no gate"),
        ("4", "this is RWKV-4, .* no matrix"),
    ],
)
def test_what_cannot_be_upgraded(tmp_path: Path, version: str, message: str) -> None:
    state = tiny.weights("5.1" if version in "45" else version)
    dropped = {"5": ("gate.weight", "mix_g"), "4": ("gate.weight", "mix_g", "ln_x.weight", "ln_x.bias")}.get(
        version, ()
    )
    source = tiny.save(tmp_path / "x.pth", {name: one for name, one in state.items() if not name.endswith(dropped)})
    with pytest.raises(CheckpointError, match=message):
        upgrade(source, tmp_path / "out" / "6.pth")
    assert not (tmp_path / "out").exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.att.time_decay": (3, 5)}, r"blocks\.1\.att\.time_decay has the shape 3 x 5, which does not fit"),
        ({"blocks.1.att.time_faaaa": (0,)}, r"blocks\.1\.att\.time_faaaa has the shape 0, which does not fit"),
        ({"blocks.1.att.time_faaaa": None}, r"the checkpoint has no tensor blocks\.1\.att\.time_faaaa"),
        ({"blocks.99999.att.time_mix_k": (128,)}, r"the checkpoint has no tensor blocks\.2\.att\.time_decay"),
        ({"blocks.1.att.time_maa_x": (128,)}, r"the checkpoint has no tensor|belongs to no RWKV-6"),
    ],
)
def test_damaged_ones_are_named(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    shapes = {name: tuple(one.shape) for name, one in tiny.weights("5.2").items()} | change
    with pytest.raises(CheckpointError, match=message):
        detect({name: shape for name, shape in shapes.items() if shape is not None})


@pytest.mark.fast
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = tiny.checkpoint(tmp_path, "5.2")

    def save(tensors: object, file: Any) -> None:
        file.write(b"begun")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskError, match=r"6\.pth"):
        upgrade(source, tmp_path / "out" / "6.pth")
    assert not list((tmp_path / "out").iterdir())
