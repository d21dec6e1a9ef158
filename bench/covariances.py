"""What covariances cost: CPU time of `ggufy gram`, which makes the imatrix too, against llama-imatrix, on the 0.9 GB
model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.measure import run
from ggufy.llama import tools
from ggufy.llama.install import Llama
from ggufy.texts.calibration import PinnedTexts

CHUNKS = 10
ROUNDS = 2


def bench(folder: Path, llama: Llama, texts: PinnedTexts) -> list[str]:
    """Lines for the report; `folder` holds the model that the conversion bench has left."""
    return compare(folder / "ours.gguf", folder, llama, texts.calibration)


def compare(model: Path, folder: Path, llama: Llama, text: Path) -> list[str]:
    """The same for any base; both in turn, so that both meet the same neighbours."""
    out = folder / "covariances.gguf"
    words = ["gram", model, "--text", text, "--out", out, "--chunks", CHUNKS, "--threads", 2, "--json"]
    ours = [sys.executable, "-m", "ggufy", *words]
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    environment |= {"GGUFY_LLAMA_DIR": str(llama.bin), "PYTHONPATH": str(Path.cwd())}
    theirs = tools.imatrix_command(
        llama.tool("llama-imatrix"), model=model, text=text.name, out=folder / "i.gguf", threads=2, chunks=CHUNKS
    )
    pairs = [
        (
            run(*ours, env=environment),
            run(*theirs, env={"GOMP_SPINCOUNT": "0", "PATH": "/usr/bin:/bin"}, cwd=text.parent),
        )
        for _ in range(ROUNDS)
    ]
    cpu, tool = (min(pair[side].cpu_s for pair in pairs) for side in (0, 1))
    same = (folder / "i.gguf").read_bytes() == out.with_name(f"{out.stem}-imatrix.gguf").read_bytes()
    return [
        f"covariances and imatrix in one pass, {model.stat().st_size / 1e9:.2f} GB F16, {CHUNKS} chunks, 2 threads",
        f"  ggufy gram      {cpu:.1f} s of CPU, peak {pairs[0][0].peak_bytes / 1e9:.2f} GB, "
        f"{out.stat().st_size / 1e9:.2f} GB of covariances",
        f"  llama-imatrix   {tool:.1f} s of CPU; its file is {'the same' if same else 'ANOTHER'}",
        f"  ratio           {cpu / tool:.2f}   (bar: at most 2.2)",
    ]
