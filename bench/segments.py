"""What it costs to make an imatrix in segments: the time that each start of the tool adds, on the 0.9 GB model."""

from __future__ import annotations

from pathlib import Path

from bench.measure import run
from ggufy.llama import tools
from ggufy.llama.install import Llama
from ggufy.steps.imatrix import SECONDS_A_SEGMENT
from ggufy.texts.calibration import PinnedTexts

CHUNKS = 6


def bench(folder: Path, llama: Llama, texts: PinnedTexts) -> list[str]:
    """Lines for the report; `folder` holds the model that the conversion bench has left."""
    model = folder / "ours.gguf"
    whole = _seconds(folder, llama, texts, model, [CHUNKS])
    halves = _seconds(folder, llama, texts, model, [CHUNKS // 2, CHUNKS // 2])
    cost = max(0.0, halves - whole)
    return [
        f"imatrix in segments of about {SECONDS_A_SEGMENT:.0f} s, {model.stat().st_size / 1e9:.2f} GB F16, 2 threads",
        f"  {CHUNKS} chunks at once {whole:.1f} s, in two segments {halves:.1f} s: one more start costs {cost:.1f} s",
        f"  overhead        {cost / SECONDS_A_SEGMENT:.1%}  (bar: at most 5 %)",
    ]


def _seconds(folder: Path, llama: Llama, texts: PinnedTexts, model: Path, sizes: list[int]) -> float:
    done, before, seconds = 0, None, 0.0
    for size in sizes:
        out = folder / f"segment-{done + size}.gguf"
        command = tools.imatrix_command(
            llama.tool("llama-imatrix"),
            model=model,
            text=texts.calibration.name,
            out=out,
            threads=2,
            chunks=size,
            first=done,
            before=before,
        )
        environment = {"GOMP_SPINCOUNT": "0", "PATH": "/usr/bin:/bin"}
        seconds += run(*command, env=environment, cwd=texts.calibration.parent).seconds
        done, before = done + size, out
    return seconds
