"""How long a user of `make demo` waits for the first finished quant, once everything is set up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ggufy import demo

LIMIT_S = 60


def bench(folder: Path) -> list[str]:
    """Lines for the report."""
    command = [sys.executable, "-m", "ggufy", "quantize", "demo", "--types", "all", "--out", str(folder)]
    first = folder / f"{demo.MODEL}-GGUF" / f"{demo.MODEL}-Q4_K_M.gguf"
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not first.exists() and process.poll() is None:
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    assert first.exists(), "the demo ended without its first quant"
    process.wait()
    total = time.perf_counter() - started
    return [
        f"make demo, once set up: first finished quant after {seconds:.1f} s (bar: under {LIMIT_S} s)",
        f"  all 31 files, 29 of them measured, after {total:.0f} s",
    ]
