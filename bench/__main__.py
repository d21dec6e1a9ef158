"""`python -m bench`: every figure of the README's performance section, measured now."""

from __future__ import annotations

import math
import platform
import tempfile
from pathlib import Path

from bench import conversion, first_quant
from ggufy import throttle
from ggufy.catalog import BY_NAME
from ggufy.llama.install import ensure
from ggufy.settings import Settings


def main() -> None:
    settings = Settings.from_env()
    cpus = throttle.allowed_cpus()
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
        for lines in (conversion.bench(folder, llama), first_quant.bench(folder)):
            print("\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
