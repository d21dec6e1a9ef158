"""`make lock`: requirements.lock, every package that requirements.txt needs, pinned by hash, for the image.

PyTorch is left out, with what only its builds for GPUs need: which build an index serves under one version differs, so
no hash would hold everywhere. The Dockerfile installs its exact version before the lock.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
PYTHON = "3.11"  # the oldest that the program runs on
_APART = re.compile(r"(?m)^((?:torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+))==")
_NAMED = re.compile(r"(?m)^([A-Za-z0-9._-]+)==")
_HEAD = "# Made by `make lock` from requirements.txt; torch is installed before it.\n"


def compiled(lock: Path, apart: list[str]) -> str:
    """What uv finds; versions that `lock` already has stay."""
    words = ["pip", "compile", "requirements.txt", "--universal", "--python-version", PYTHON, "--no-header"]
    words += ["--generate-hashes", "--no-annotate", "--quiet", "--output-file", str(lock)]
    words += [word for name in apart for word in ("--no-emit-package", name)]
    subprocess.run([sys.executable, "-m", "uv", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return lock.read_text(encoding="utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "requirements.lock"
        part.write_text(LOCK.read_text("utf-8") if LOCK.exists() else "", encoding="utf-8")
        apart = sorted(set(_APART.findall(compiled(part, []))))
        text = compiled(part, apart)
    LOCK.write_text(_HEAD + text, encoding="utf-8")
    print(f"{LOCK.name}: {len(_NAMED.findall(text))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
