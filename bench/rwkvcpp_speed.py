"""Tokens a second of a model of RWKV-4-Pile-169M's shape (random weights) in files of rwkv.cpp, one token at a time.

    python -m bench.rwkvcpp_speed [THREADS]

Beside it the same weights in the package `rwkv` on PyPI (strategy "cpu fp32") and in plain torch: what the formulas
need, and nothing around them. Each run is a process of its own with the same number of threads; engines take turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ggufy.formats.checkpoint import open_checkpoint
from ggufy.llama import ggml
from ggufy.llama.install import Llama, find
from ggufy.models.layouts import origins_of
from ggufy.rwkvcpp.convert import convert_tensors
from ggufy.rwkvcpp.quantize import quantize
from ggufy.system.settings import Settings

BAR = 20.0  # tokens a second in Q5_1, on 2 cores
TYPES = ("FP32", "FP16", "Q8_0", "Q5_1")
_ROUNDS, _TOKENS = 3, 40


@dataclass(frozen=True)
class Shape:
    """Sizes of an RWKV-4; `width` in whole heads of 64, which the made weights come from."""

    layers: int = 12
    width: int = 768
    vocab: int = 50277


MAKE = """
import sys
from tests import tiny
target, layers, width, vocab = sys.argv[1], *map(int, sys.argv[2:])
tiny.save(target, tiny.weights("4", layers=layers, width=width, ffn=4 * width, vocab=vocab))
"""
# Each takes a file, threads, tokens and the folder of llama.cpp, and prints tokens a second. `step` is what is timed.
_TIMED = """
step(1), step(2)
began = time.perf_counter()
for token in range(count):
    step(token)
print(count / (time.perf_counter() - began))
"""
_START = """
import sys, time
from pathlib import Path
path, threads, count, llama = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
state = None
"""
OURS = """
from ggufy.rwkvcpp.engine import Engine
engine = Engine(Path(path), threads=threads, ggml_folder=Path(llama) if llama else None)
def step(token):
    global state
    _, state = engine.eval([token], state)
"""
PACKAGE = """
import torch
from rwkv.model import RWKV
torch.set_num_threads(threads)
model = RWKV(model=path[:-4], strategy="cpu fp32")
def step(token):
    global state
    _, state = model.forward([token], state)
"""
TORCH = """
import torch
torch.set_num_threads(threads)
w = torch.load(path, weights_only=True)
layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
width = w["ln_out.weight"].shape[0]
w = {name: value.squeeze() for name, value in w.items()}
state = [[torch.zeros(width) for _ in range(4)] + [torch.full((width,), -1e30)] for _ in range(layers)]
def norm(x, name):
    return torch.layer_norm(x, (width,), w[name + ".weight"], w[name + ".bias"])
def mixed(x, before, name):
    return x * w[name] + before * (1 - w[name])
@torch.inference_mode()
def step(token):
    x = norm(w["emb.weight"][token], "blocks.0.ln0")
    for i, (channel, time_, over, under, most) in enumerate(state):
        b = f"blocks.{i}."
        a, f = b + "att.", b + "ffn."
        y = norm(x, b + "ln1")
        r, k, v = (w[a + name + ".weight"] @ mixed(y, time_, a + "time_mix_" + name[0]) for name in
                   ("receptance", "key", "value"))
        top = torch.maximum(most, k + w[a + "time_first"])
        past, now = torch.exp(most - top), torch.exp(k + w[a + "time_first"] - top)
        out = (past * over + now * v) / (past * under + now)
        faded = most - torch.exp(w[a + "time_decay"])
        top = torch.maximum(faded, k)
        past, now = torch.exp(faded - top), torch.exp(k - top)
        kept = [y, past * over + now * v, past * under + now, top]
        x = x + w[a + "output.weight"] @ (torch.sigmoid(r) * out)
        y = norm(x, b + "ln2")
        k = torch.relu(w[f + "key.weight"] @ mixed(y, channel, f + "time_mix_k")) ** 2
        r = torch.sigmoid(w[f + "receptance.weight"] @ mixed(y, channel, f + "time_mix_r"))
        x = x + r * (w[f + "value.weight"] @ k)
        state[i] = [y, *kept]
    return w["head.weight"] @ norm(x, "ln_out")
"""


def bench(folder: Path, llama: Llama, *, shape: Shape = Shape(), threads: int = 2, rounds: int = _ROUNDS) -> list[str]:
    """Lines for the report."""
    checkpoint = folder / "rwkv-4.pth"
    sizes = [str(size) for size in (shape.layers, shape.width, shape.vocab)]
    subprocess.run([sys.executable, "-c", MAKE, checkpoint, *sizes], check=True)
    files = _files(checkpoint, llama)
    runs: dict[str, Callable[[], float]] = {
        "rwkv 0.8": lambda: _speed(PACKAGE, checkpoint, threads, ""),
        "torch": lambda: _speed(TORCH, checkpoint, threads, ""),
        **{name: partial(_speed, OURS, path, threads, str(llama.bin)) for name, path in files.items()},
        "FP32, NumPy": lambda: _speed(OURS, files["FP32"], threads, ""),
    }
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return [
        f"tokens a second, one at a time: RWKV-4, {shape.layers} layers, width {shape.width}, {shape.vocab} tokens, "
        f"{threads} threads, {rounds} rounds, load {os.getloadavg()[0]:.1f}",
        *_lines({name: statistics.median(rates) for name, rates in found.items()}, files),
    ]


def _lines(rates: dict[str, float], files: dict[str, Path]) -> list[str]:
    lines = [f"  {name:12}{rates[name]:7.1f}" for name in ("rwkv 0.8", "torch")]
    for name in [*files, "FP32, NumPy"]:
        ratios = f"{rates[name] / rates['rwkv 0.8']:.2f} of rwkv's, {rates[name] / rates['torch']:.2f} of torch's"
        size = f", {files[name].stat().st_size / 1e6:.0f} MB" if name in files else ""
        bar = f"   (bar: at least {BAR:.0f})" if name == "Q5_1" else ""
        lines.append(f"  {name:12}{rates[name]:7.1f}, {ratios}{size}{bar}")
    return lines


def _files(checkpoint: Path, llama: Llama) -> dict[str, Path]:
    """The file of each type; quantized ones from FP16, whose head they keep, as people make them."""
    files = {name: checkpoint.with_name(f"rwkv-4-{name}.bin") for name in TYPES}
    with open_checkpoint(checkpoint) as file:
        for name in ("FP32", "FP16"):
            convert_tensors(file, origins_of(file.shapes), files[name], type_name=name)
    for name in TYPES[2:]:
        quantize(files["FP16"], files[name], name, ggml=ggml.load(llama.bin))
    return files


def _speed(engine: str, path: Path, threads: int, llama: str) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    environment |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"}
    command = [sys.executable, "-c", _START + engine + _TIMED, str(path), str(threads), str(_TOKENS), llama]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    settings = Settings.from_env()
    llama = find(settings.cache, settings.llama_dir)
    assert llama is not None, "build llama.cpp first: make setup"
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        print("\n".join(bench(Path(name), llama, threads=threads)))


if __name__ == "__main__":
    main()
