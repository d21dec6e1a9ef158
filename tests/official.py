"""llama.cpp's own converter, and what it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gguf import GGUFReader

# Several threads spin on each other when the cores are busy; these models are too small to gain from them.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


def run_converter(model: Path, source: Path, *, outtype: str) -> Path:
    """Runs convert_hf_to_gguf.py of the llama.cpp in `source` on a folder; gives the path of the GGUF."""
    # It imports transformers at its top; RWKV needs nothing from it.
    stub = model.parent / "stub" / "transformers"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(
        "class AutoConfig:\n    @staticmethod\n    def from_pretrained(*a, **k):\n        raise RuntimeError('stub')\n"
    )
    target = model.parent / "official.gguf"
    subprocess.run(
        [sys.executable, source / "convert_hf_to_gguf.py", model, "--outfile", target, "--outtype", outtype],
        env=ENVIRONMENT | {"PYTHONPATH": f"{stub.parent}{os.pathsep}{source / 'gguf-py'}"},
        check=True,
        capture_output=True,
    )
    return target


def tensors_of(path: Path) -> dict[str, tuple[list[int], str, bytes]]:
    """Name to shape (in GGUF's order), type and data."""
    tensors = GGUFReader(path).tensors
    return {t.name: ([int(n) for n in t.shape], t.tensor_type.name, t.data.tobytes()) for t in tensors}
