"""`python -m bench`: every figure of docs/performance.md, measured now."""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import (
    clicks,
    conversion,
    covariances,
    engine,
    first_quant,
    forecast,
    mixes,
    overlap,
    page,
    rwkvcpp_speed,
    segments,
    streamed,
)
from ggufy.core.catalog import BY_NAME
from ggufy.llama.install import ensure
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts


def main() -> None:
    settings = Settings.from_env()
    cpus = resources.allowed_cpus()
    llama = ensure(
        settings.cache,
        override=settings.llama_dir,
        threads=max(1, math.floor(cpus)),
        pip_environment=settings.pip_environment,
        types=BY_NAME,
    )
    print(f"{platform.machine()}, {cpus:g} CPUs allowed, Python {platform.python_version()}, llama.cpp {llama.commit}")
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        folder = Path(name)
        texts = ensure_texts(settings.cache)
        benches: list[Callable[[], list[str]]] = [
            lambda: conversion.bench(folder, llama),
            lambda: streamed.bench(folder),
            lambda: segments.bench(folder, llama, texts),
            lambda: covariances.bench(folder, llama, texts),
            lambda: first_quant.bench(folder),
            lambda: forecast.bench(folder, llama, settings),
            lambda: overlap.bench(folder, llama, settings),
            lambda: page.bench(folder, llama),
            lambda: clicks.bench(folder, llama),
            lambda: mixes.bench(folder, llama, settings, texts),
            lambda: rwkvcpp_speed.bench(folder, llama),
            lambda: engine.bench_kills(folder, llama, texts),
        ]
        for bench in benches:
            print("\n" + "\n".join(bench()), flush=True)
        for lines in engine.bench_files(folder, llama, texts):
            print("\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
