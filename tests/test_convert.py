"""Conversion against two oracles: llama.cpp's own converter, byte for byte, and BlinkDL's reference, in perplexity."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggufy.models.convert import convert
from tests import tiny
from tests.official import ENVIRONMENT, run_converter, tensors_of

LAYERS = {"5.1": 3, "5.2": 7, "6": 7, "7": 3}  # Version 6 needs a seventh block for the first division by 2.
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


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
    return run_converter(model, source, outtype=outtype)


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
    ours = tiny.converted(tmp_path, version, outtype=outtype, **options)
    state = tiny.weights(version, **options)
    official = _official(version, state, outtype=outtype, source=llama_source, folder=tmp_path)
    found, expected = tensors_of(ours), tensors_of(official)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name] == tensor, name

    found_fields, expected_fields = tiny.fields(ours), tiny.fields(official)
    assert found_fields.keys() == expected_fields.keys()
    different = {name for name, value in expected_fields.items() if found_fields[name] != value}
    # Its name comes from the folder, the template is ours, a blank line ends its turns, and it guesses v6's ranks.
    known = {"general.name", "tokenizer.chat_template", "tokenizer.ggml.eot_token_id"}
    known |= {"rwkv6.time_mix_extra_dim", "rwkv6.time_decay_extra_dim"}
    assert different <= known


# ---------------------------------------------------------------------- BlinkDL's reference

TEXT = (
    'The keeper of the light said: "it\'s the sound of the sea, and the wind."\n\n'
    "User: what of the path C:\\new and the rest?\n\nAssistant: 中文, café, the end.\t\tThen the thing ended.\r\n"
    "def f(x):\n    return {'a': \"b\", '\"': x ** 2}\n\nNothing in the north, or anything in the south.\n"
) * 3
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
@pytest.mark.parametrize("version", ["5.1", "5.2", "6", "7"])
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
    target, prompts = tiny.converted(tmp_path), tmp_path / "prompts"
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
