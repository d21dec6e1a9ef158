"""Conversion of a 0.9 GB RWKV-6 (width 1024, 24 layers, World vocabulary, random weights) to an F16 GGUF.

Against the founding document's path, whole processes on both sides: one Python loads the .pth, renames the keys and
saves them again; another runs llama.cpp's convert_hf_to_gguf.py. `cp` of the same file is printed as the floor.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from bench.measure import Run, median, run, spread
from ggufy.llama.install import Llama
from ggufy.models.vocab import world_vocab_path

HEAD_SIZE = 64
WIDTH, LAYERS, FFN, VOCAB = 1024, 24, 3584, 65536
ROUNDS = 3
# Made in a process of its own: a child's peak memory, as Linux counts it, starts at its parent's.
MAKE = f"""
import sys, torch
from tests import tiny
shape = dict(width={WIDTH}, layers={LAYERS}, ffn={FFN}, vocab={VOCAB})
tiny.save(sys.argv[1], tiny.weights("6", dtype=torch.bfloat16, **shape))
"""
# The founding document's own step, in our words: same reads, same writes.
RENAME = """
import sys, torch
source, target = sys.argv[1:]
model = torch.load(source, mmap=True, map_location="cpu")
renamed = {}
for key, value in model.items():
    new = key.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.").replace("blocks.0.ln0", "blocks.0.pre_ln")
    new = new.replace("emb.weight", "embeddings.weight")
    renamed[new if new == "head.weight" else "rwkv." + new] = value
torch.save(renamed, target)
"""  # noqa: E501
STUB = """
class AutoConfig:
    @staticmethod
    def from_pretrained(*a, **k):
        raise RuntimeError("no network")
"""


def bench(folder: Path, llama: Llama) -> list[str]:
    """Lines for the report."""
    source = folder / "bench.pth"
    run(sys.executable, "-c", MAKE, source)
    assert llama.source is not None, "the bench needs llama.cpp's converter: use the built llama.cpp"
    hf, environment = _hf_folder(folder), _environment(folder, llama.source)
    ours, theirs, copies = [], [], []
    for _ in range(ROUNDS):
        theirs.append(_founding_path(source, hf, llama.source, environment))
        for old in (folder / "ours.gguf", folder / "copy"):
            old.unlink(missing_ok=True)
        ours.append(run(sys.executable, "-m", "ggufy", "convert", source, folder / "ours.gguf"))
        copies.append(run("cp", source, folder / "copy"))
    ratio = median(ours) / median(theirs)
    peak = max(r.peak_bytes for r in ours) / 1e9
    size = source.stat().st_size / 1e9
    return [
        f"conversion of a {size:.2f} GB checkpoint to F16, {ROUNDS} rounds, whole processes",
        f"  founding path   {spread(theirs)}, peak {max(r.peak_bytes for r in theirs) / 1e9:.2f} GB",
        f"  ggufy convert   {spread(ours)}, peak {peak:.2f} GB",
        f"  cp              {spread(copies)}",
        f"  ratio           {ratio:.2f}   (bar: at most 0.35)",
        f"  peak memory     {peak:.2f} GB (bar: at most 1.0)",
    ]


def _founding_path(source: Path, hf: Path, converter: Path, environment: dict[str, str]) -> Run:
    for old in (hf / "pytorch_model.bin", hf.parent / "theirs.gguf"):
        old.unlink(missing_ok=True)
    renamed = run(sys.executable, "-c", RENAME, source, hf / "pytorch_model.bin")
    script = converter / "convert_hf_to_gguf.py"
    target = hf.parent / "theirs.gguf"
    converted = run(sys.executable, script, hf, "--outfile", target, "--outtype", "f16", env=environment)
    return Run(renamed.seconds + converted.seconds, max(renamed.peak_bytes, converted.peak_bytes))


def _hf_folder(folder: Path) -> Path:
    hf = folder / "hf"
    hf.mkdir()
    config = {
        "architectures": ["Rwkv6ForCausalLM"],
        "head_size": HEAD_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 6,
        "vocab_size": VOCAB,
    }
    (hf / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(world_vocab_path(), hf / "rwkv_vocab_v20230424.txt")
    return hf


def _environment(folder: Path, converter: Path) -> dict[str, str]:
    """The converter imports transformers at its top, for nothing that RWKV needs: four lines stand in for it."""
    stub = folder / "stub" / "transformers"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(STUB, encoding="utf-8")
    return os.environ | {"PYTHONPATH": f"{stub.parent}{os.pathsep}{converter / 'gguf-py'}"}
