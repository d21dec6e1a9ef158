"""Tiny models as files of rwkv.cpp, and what the package `rwkv` on PyPI says about their checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from tests.rwkvcpp_files import expected, write

VERSIONS = ("4", "5", "5.2", "6", "7")  # as the package counts; rwkv.cpp's 5.1 is its 5
# Takes the checkpoints as JSON, an .npz to write, and tokens.
_PACKAGE = """
import json, sys
import numpy as np
from rwkv.model import RWKV

paths, out, *tokens = sys.argv[1:]
found = {}
for version, path in json.loads(paths).items():
    model, state, rows = RWKV(model=path, strategy="cpu fp32"), None, []
    for token in tokens:
        logits, state = model.forward([int(token)], state)
        rows.append(logits.float().numpy().copy())
    found[version] = np.array(rows)
np.savez(out, **found)
"""


def file_of(folder: Path, version: str, *, half: bool = False, **options: int) -> Path:
    """A tiny model's FP32 or FP16 file, written from the description of the format. Options are those of
    `tiny.weights`."""
    state = tiny.weights(version, **options)  # type: ignore[arg-type]
    vocab, width = state["emb.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    return write(
        folder / f"tiny-{version}-{'FP16' if half else 'FP32'}.bin",
        expected(state, version, half=half),
        tokens=vocab,
        width=width,
        layers=layers,
        type_number=int(half),
    )


def package_logits(folder: Path, tokens: Sequence[int], **options: int) -> Mapping[str, Any]:
    """By version the logits after each token, F32 [T, V]; RWKV-5's group norm has 64e-5 there."""
    found: dict[str, Any] = {}
    for v7 in ("0", "1"):
        paths = {
            version: str(tiny.save(folder / f"{version}.pth", tiny.weights(version, **options)))[: -len(".pth")]  # type: ignore[arg-type]
            for version in VERSIONS
            if (version == "7") == (v7 == "1")
        }
        out = folder / "found.npz"
        switches = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": v7, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _PACKAGE, json.dumps(paths), out, *map(str, tokens)]
        subprocess.run(command, env=os.environ | switches, check=True, capture_output=True)
        with np.load(out) as arrays:
            found |= dict(arrays)
    return found
