"""Conversion: against llama.cpp's own converter byte for byte, against BlinkDL's reference in perplexity, and bad input."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from ggufy.errors import Cancelled, CheckpointError, UsageError, VocabError
from ggufy.rwkv.convert import convert, write_skeleton
from ggufy.rwkv.names import detect
from tests import tiny

LAYERS = {"6": 7, "7": 3}  # Version 6 needs a seventh block for the first division by 2.
# Several threads spin on each other when the cores are busy; these models are too small to gain from them.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def _made(folder: Path, version: str = "7", *, outtype: str = "f32", **state_options: Any) -> Path:
    source, vocab = tiny.checkpoint(folder, version, **state_options)
    target = folder / "made.gguf"
    convert(source, target, outtype=outtype, vocab=vocab)
    return target


def _fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def _tensors(path: Path) -> dict[str, tuple[list[int], str, bytes]]:
    """Name to shape (in GGUF's order), type and data."""
    tensors = GGUFReader(path).tensors
    return {t.name: ([int(n) for n in t.shape], t.tensor_type.name, t.data.tobytes()) for t in tensors}


# ---------------------------------------------------------------------- the official converter


def _official(version: str, state: dict[str, torch.Tensor], *, outtype: str, source: Path, folder: Path) -> Path:
    """Runs llama.cpp's convert_hf_to_gguf.py on the same weights, laid out and named as it wants them."""
    model = folder / "hf"
    model.mkdir()
    config = {"head_size": tiny.HEAD_SIZE, "hidden_size": 128, "layer_norm_epsilon": 1e-5, "intermediate_size": 384}
    config |= {"num_hidden_layers": LAYERS[version], "vocab_size": tiny.VOCAB_ROWS}
    if version == "6":
        config |= {"architectures": ["Rwkv6ForCausalLM"], "rescale_every": 6}
        prefix, first_norm = "rwkv.", "blocks.0.pre_ln"
    else:
        names = ("decay", "iclr", "value_residual_mix", "gate")
        ranks = {f"lora_rank_{name}": rank for name, rank in zip(names, tiny.RANKS_7.values(), strict=True)}
        config |= {"architectures": ["Rwkv7ForCausalLM"]} | ranks
        prefix, first_norm = "model.", "pre_ln"
    (model / "config.json").write_text(json.dumps(config))
    renamed = {}
    for name, tensor in state.items():
        new = name.replace("blocks.0.ln0", first_norm).replace("emb.", "embeddings.")
        new = new.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        renamed[new if name == "head.weight" else prefix + new] = tensor
    torch.save(renamed, model / "pytorch_model.bin")
    tiny.write_vocab(model / "rwkv_vocab_v20230424.txt")
    # The converter imports transformers at its top; RWKV needs nothing from it.
    stub = folder / "stub" / "transformers"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(
        "class AutoConfig:\n    @staticmethod\n    def from_pretrained(*a, **k):\n        raise RuntimeError('stub')\n"
    )
    target = folder / "official.gguf"
    subprocess.run(
        [sys.executable, source / "convert_hf_to_gguf.py", model, "--outfile", target, "--outtype", outtype],
        env=ENVIRONMENT | {"PYTHONPATH": f"{stub.parent}{os.pathsep}{source / 'gguf-py'}"},
        check=True,
        capture_output=True,
    )
    return target


@pytest.mark.tools
@pytest.mark.parametrize(
    ("version", "outtype", "saved"),
    [
        ("6", "f16", "bf16"),
        ("6", "bf16", "f32"),
        ("6", "f32", "f16"),
        ("7", "f16", "f32"),
        ("7", "bf16", "f16"),
        ("7", "f32", "bf16"),
    ],
)
def test_tensors_equal_the_official_converters(
    tmp_path: Path, llama_source: Path, version: str, outtype: str, saved: str
) -> None:
    options = {"layers": LAYERS[version], "dtype": DTYPES[saved]}
    ours = _made(tmp_path, version, outtype=outtype, **options)
    state = tiny.weights(version, **options)
    official = _official(version, state, outtype=outtype, source=llama_source, folder=tmp_path)
    found, expected = _tensors(ours), _tensors(official)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name] == tensor, name

    found_fields, expected_fields = _fields(ours), _fields(official)
    assert found_fields.keys() == expected_fields.keys()
    different = {name for name, value in expected_fields.items() if found_fields[name] != value}
    # Its name comes from the folder, the template is ours, it knows one vocabulary only, and it guesses v6's ranks.
    known = {"general.name", "tokenizer.chat_template", "tokenizer.ggml.eot_token_id"}
    known |= {"rwkv6.time_mix_extra_dim", "rwkv6.time_decay_extra_dim"}
    assert different <= known


# ---------------------------------------------------------------------- BlinkDL's reference

TEXT = (
    'The keeper of the light said: "it\'s the sound of the sea, and the wind."\n\n'
    "User: what of the path C:\\new and the rest?\n\nAssistant: 中文, café, the end.\t\tThen the thing ended.\r\n"
    "def f(x):\n    return {'a': \"b\", '\"': x ** 2}\n\nNothing in the north, or anything in the south; over and out.\n"
) * 2
CHUNK = 128

# Prints, for each chunk, the perplexity as llama-perplexity computes it: only the second half of a chunk is scored.
REFERENCE = """
import json, math, sys
import torch
from rwkv.model import RWKV
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

checkpoint, vocab, text, out, chunk = *sys.argv[1:5], int(sys.argv[5])
tokens = TRIE_TOKENIZER(vocab).encode(open(text, newline="", encoding="utf-8").read())
model = RWKV(model=checkpoint, strategy="cpu fp32")
total, count, running = 0.0, 0, []
for start in range(0, len(tokens) // chunk * chunk, chunk):
    part = tokens[start : start + chunk]
    logits, _ = model.forward(part, None, full_output=True)
    losses = -torch.log_softmax(logits.double(), -1)[torch.arange(chunk - 1), part[1:]]
    total, count = total + losses[chunk // 2 :].sum().item(), count + chunk // 2 - 1
    running.append(math.exp(total / count))
json.dump(running, open(out, "w"))
"""


def _reference_perplexity(version: str, checkpoint: Path, vocab: Path, text: Path) -> list[float]:
    out = text.with_name("reference.json")
    switches = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"} | ({"RWKV_V7_ON": "1"} if version == "7" else {})
    arguments = [checkpoint.with_suffix(""), vocab, text, out, str(CHUNK)]
    command = [sys.executable, "-c", REFERENCE, *arguments]
    subprocess.run(command, env=ENVIRONMENT | switches, check=True, capture_output=True)
    return json.loads(out.read_text())


def _llama_perplexity(tool: Path, model: Path, text: Path) -> list[float]:
    command = [tool, "-m", model, "-f", text, "-c", str(CHUNK), "-b", str(CHUNK), "-t", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return [float(value) for value in re.findall(r"\[\d+\]([\d.]+),", done.stdout)]


@pytest.mark.tools
@pytest.mark.parametrize("version", ["6", "7"])
def test_perplexity_equals_the_references(tmp_path: Path, llama_bin: Path, version: str) -> None:
    source, vocab = tiny.checkpoint(tmp_path, version, layers=LAYERS[version])
    target, text = tmp_path / "made.gguf", tmp_path / "text.txt"
    convert(source, target, outtype="f32", vocab=vocab)
    text.write_text(TEXT, encoding="utf-8", newline="")
    expected = _reference_perplexity(version, source, vocab, text)
    found = _llama_perplexity(llama_bin / "llama-perplexity", target, text)
    assert len(expected) >= 3
    # 0.1 % is what ggufy promises; they agree ten times better even with the divisions of version 6.
    assert found == pytest.approx(expected, rel=1e-4)
    # Far from guessing all tokens alike, so that a wrong weight could not hide.
    assert expected[-1] > 3 * tiny.VOCAB_ROWS


@pytest.mark.tools
@pytest.mark.parametrize("template", ["--jinja", "--no-jinja"])
def test_chat_prompt_is_the_world_format(tmp_path: Path, llama_bin: Path, template: str) -> None:
    target, prompts = _made(tmp_path), tmp_path / "prompts"
    prompts.mkdir()
    options = ["-sys", " Be good. ", "-p", " hello ", "-st", "-n", "1", "-t", "1", "--log-prompts-dir", prompts]
    subprocess.run(
        [llama_bin / "llama-cli", "-m", target, "--simple-io", template, *options],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (prompt,) = [path.read_text() for path in prompts.iterdir()]
    assert prompt == "System: Be good.\n\nUser: hello\n\nAssistant:"


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("version", ["6", "7"])
def test_hyper_parameters_come_from_the_shapes(tmp_path: Path, version: str) -> None:
    fields = _fields(_made(tmp_path, version, width=192, ffn=448))
    ranks = {
        "6": {"time_mix_extra_dim": 24, "time_decay_extra_dim": 40, "rescale_every_n_layers": 6},
        "7": {
            "attention.decay_lora_rank": 24,
            "attention.iclr_lora_rank": 40,
            "attention.value_residual_mix_lora_rank": 16,
            "attention.gate_lora_rank": 56,
        },
    }[version]
    sizes = {"embedding_length": 192, "block_count": 2, "feed_forward_length": 448, "wkv.head_size": 64}
    for name, value in (ranks | sizes).items():
        assert fields[f"rwkv{version}.{name}"] == value
    assert fields["general.name"] == f"tiny-v{version}"
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{tiny.VOCAB_ROWS - 1}]"
    assert fields["tokenizer.ggml.eot_token_id"] == 1 + tiny.vocab_tokens().index(b"\n\n")


@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
def test_skeleton_is_the_same_file_with_a_hole(tmp_path: Path, outtype: str) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "6", width=512)
    convert(source, tmp_path / "made.gguf", outtype=outtype, vocab=vocab, name="A model")
    write_skeleton(source, tmp_path / "skeleton.gguf", outtype=outtype, vocab=vocab, name="A model")
    made, skeleton = (tmp_path / "made.gguf").read_bytes(), (tmp_path / "skeleton.gguf").read_bytes()
    start = GGUFReader(tmp_path / "made.gguf").data_offset
    assert len(made) == len(skeleton)
    assert made[:start] == skeleton[:start]
    assert not any(skeleton[start:])
    assert (tmp_path / "skeleton.gguf").stat().st_blocks * 512 < start + 65536


def test_skeleton_reads_no_weights(tmp_path: Path) -> None:
    state = tiny.weights("7")
    state["emb.weight"][:] = float("nan")
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    write_skeleton(source, tmp_path / "skeleton.gguf", vocab=vocab)
    assert _fields(tmp_path / "skeleton.gguf")["general.name"] == "x"


def test_vocabulary_without_a_blank_line_has_no_end_of_turn(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "x.pth", tiny.weights("7", vocab=300))
    vocab = tiny.write_vocab(tmp_path / "vocab.txt", [bytes([byte]) for byte in range(256)])
    convert(source, tmp_path / "x.gguf", vocab=vocab)
    assert "tokenizer.ggml.eot_token_id" not in _fields(tmp_path / "x.gguf")


def test_the_way_a_tensor_was_saved_does_not_matter(tmp_path: Path) -> None:
    """Vectors of one dimension, transposed and spread-out strides, a storage shared by all, F64."""
    state = tiny.weights("7")
    shared = torch.cat([tensor.flatten() for tensor in state.values()])
    other, start = {}, 0
    for number, (name, tensor) in enumerate(state.items()):
        if number % 3 == 0:
            other[name] = shared[start : start + tensor.numel()].view(tensor.shape)
        elif number % 3 == 1:
            other[name] = tensor.squeeze().double()
        else:
            other[name] = torch.stack([tensor.t() if tensor.ndim == 2 else tensor] * 2)[0]
            other[name] = other[name].t() if tensor.ndim == 2 else other[name]
        start += tensor.numel()
    vocab = tiny.write_vocab(tmp_path / "vocab.txt")
    for name, content in (("plain", state), ("other", other)):
        convert(tiny.save(tmp_path / f"{name}.pth", content), tmp_path / f"{name}.gguf", vocab=vocab, name="x")
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_first_block_value_residual_is_ignored(tmp_path: Path) -> None:
    state, vocab = tiny.weights("7"), tiny.write_vocab(tmp_path / "vocab.txt")
    extra = {f"blocks.0.att.{name}": torch.full((3,), float("nan")) for name in ("v0", "v1", "v2")}
    for name, content in (("without", state), ("with", state | extra)):
        convert(tiny.save(tmp_path / f"{name}.pth", content), tmp_path / f"{name}.gguf", vocab=vocab, name="x")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


def test_a_single_block_of_version_7_has_all_keys(tmp_path: Path) -> None:
    assert _fields(_made(tmp_path, layers=1))["rwkv7.attention.value_residual_mix_lora_rank"] == tiny.RANKS_7["iclr"]


def test_rescaling_can_be_left_out(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "6", layers=7)
    found = {}
    for every in (0, 3):
        target = tmp_path / f"{every}.gguf"
        convert(source, target, outtype="f32", vocab=vocab, rescale_every=every)
        assert _fields(target)["rwkv6.rescale_every_n_layers"] == every
        tensors = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(target).tensors}
        found[every] = tensors["blk.6.channel_mix_value.weight"]
    assert torch.equal(found[0], tiny.weights("6", layers=7)["blocks.6.ffn.value.weight"])
    assert torch.equal(found[3], found[0] / 4)


def test_leftovers_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tiny.weights("7") | {"blocks.0.att.time_state": torch.ones(2, 64, 64), "blocks.1.att.extra": torch.ones(1)}
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    with caplog.at_level(logging.WARNING, "ggufy"):
        convert(source, tmp_path / "x.gguf", vocab=vocab)
    assert "att.time_state is a tuned state, not a weight: left out" in caplog.text
    assert "RWKV-7 has no tensors blocks.1.att.extra: left out" in caplog.text
    assert len(caplog.records) == 2


def test_progress_counts_every_byte_of_the_weights(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7", width=512, ffn=2048)
    calls: list[tuple[int, int]] = []
    convert(source, tmp_path / "x.gguf", vocab=vocab, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert (
        {call[1] for call in calls} == {sum(t.n_bytes for t in GGUFReader(tmp_path / "x.gguf").tensors)} == {done[-1]}
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_grows_with_the_largest_tensor_not_with_the_file(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7", width=256, ffn=16384, layers=5)
    resident: list[int] = []

    def progress(done: int, total: int) -> None:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    convert(source, tmp_path / "x.gguf", outtype="f16", vocab=vocab, progress=progress)
    assert source.stat().st_size > 160e6
    assert max(resident) - resident[0] < 50e6


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb.weight": float("nan")}, r"emb\.weight holds NaN values"),
        ({"blocks.1.att.k_a": float("inf")}, r"blocks\.1\.att\.k_a holds infinite values"),
        ({"blocks.0.att.x_v": float("-inf")}, r"blocks\.0\.att\.x_v holds infinite values"),
        ({"blocks.1.ffn.key.weight": -65520.0}, r"blocks\.1\.ffn\.key\.weight holds 65520, .*F16.*--outtype bf16"),
    ],
)
def test_values_that_would_be_lost(tmp_path: Path, change: dict[str, float], message: str) -> None:
    state = tiny.weights("7")
    for name, value in change.items():
        state[name].flatten()[-1] = value
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    target = tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    with pytest.raises(CheckpointError, match=message):
        convert(source, target, outtype="f16", vocab=vocab)
    assert not list(target.parent.iterdir())


def test_the_largest_values_that_fit(tmp_path: Path) -> None:
    state, vocab = tiny.weights("7"), tiny.write_vocab(tmp_path / "vocab.txt")
    state["emb.weight"][0, 0] = 65519.0  # Rounds to 65504, the largest F16.
    state["blocks.0.att.k_k"].flatten()[0] = 1e30  # F32 in the GGUF.
    source = tiny.save(tmp_path / "x.pth", state)
    convert(source, tmp_path / "x.gguf", outtype="f16", vocab=vocab)
    state["emb.weight"][0, 0] = 1e30
    convert(tiny.save(tmp_path / "y.pth", state), tmp_path / "y.gguf", outtype="bf16", vocab=vocab)
    state["emb.weight"][0, 0] = 3.4e38
    with pytest.raises(CheckpointError, match="too large for BF16: convert with --outtype f32"):
        convert(tiny.save(tmp_path / "z.pth", state), tmp_path / "z.gguf", outtype="bf16", vocab=vocab)


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_missing_tensor_is_named(version: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.weights(version).items()}
    assert detect(shapes).parameters == sum(tensor.numel() for tensor in tiny.weights(version).values())
    for name in shapes:
        with pytest.raises(CheckpointError, match=rf"the checkpoint has no tensor {re.escape(name)}:"):
            detect({other: shape for other, shape in shapes.items() if other != name})


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_wrong_shape_is_refused(version: str) -> None:
    """A size that others are derived from shows at the first of those; all others by their own name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.weights(version).items()}
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            for wrong in (0, size + 2):
                with pytest.raises(CheckpointError, match=r"has the shape .* (expected|matrix)|not a multiple"):
                    detect(shapes | {name: (*shape[:axis], wrong, *shape[axis + 1 :])})
    with pytest.raises(
        CheckpointError, match=r"blocks\.1\.att\.key\.weight has the shape 128 x 64, but 128 x 128 was"
    ):
        detect(shapes | {"blocks.1.att.key.weight": (128, 64)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["emb.weight", "blocks.0.att.time_mix_k", "blocks.0.att.time_first"], "this is RWKV-4"),
        (["emb.weight", "blocks.0.att.time_mix_k", "blocks.0.att.ln_x.weight"], "this is RWKV-5"),
        (["emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight"], "DeepEmbed"),
        (["emb.weight", "blocks.0.att.other"], "a variety of RWKV that ggufy does not know"),
        (
            ["model.embed_tokens.weight", "lm_head.weight"],
            r"not an RWKV checkpoint \(its first tensors are model.embed",
        ),
        (["model.blocks.0.att.r_k"], "not an RWKV checkpoint"),
    ],
)
def test_other_models_are_named(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        detect({name: (64, 64) for name in names})


def test_nothing_is_left_after_a_cancel_and_an_older_file_stays(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7")
    target = tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    target.write_bytes(b"older")

    def progress(done: int, total: int) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        convert(source, target, vocab=vocab, progress=progress)
    assert [path.name for path in target.parent.iterdir()] == ["x.gguf"]
    assert target.read_bytes() == b"older"
    assert torch.get_num_threads() == THREADS


THREADS = torch.get_num_threads()


def test_wrong_requests(tmp_path: Path) -> None:
    source, _ = tiny.checkpoint(tmp_path, "7")
    with pytest.raises(UsageError, match="unknown outtype 'f8': choose one of f16, bf16, f32"):
        convert(source, tmp_path / "x.gguf", outtype="f8")
    with pytest.raises(VocabError, match="has 320 rows, but the World vocabulary"):
        convert(source, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
