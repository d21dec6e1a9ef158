"""`python -m bench.large`: a whole job on a model of a real size, random weights in the shape of an RWKV-7 G1 2.9B.

Two quants with an imatrix, both measured, on few chunks: more of them take time, not memory. Of every process of the
job, its anonymous memory (what it cannot do without) and what it maps of files (which the kernel may drop) are looked
at twice a second, and so is the disk that the results take.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.words import human_size, human_time

MAKE = """
import sys, torch
from tests import tiny
shape = dict(width=int(sys.argv[2]), layers=int(sys.argv[3]), ffn=4 * int(sys.argv[2]), vocab=65536)
tiny.save(sys.argv[1], tiny.weights("7", dtype=torch.bfloat16, **shape))
"""
WORDS = ["--types", "Q4_K_M,Q2_K", "--round", "plain", "--chunks", "2", "--evaluate", "--evaluation-chunks", "1"]
_LOOK_S = 0.5


@dataclass
class Peak:
    """The most that was seen, in bytes."""

    anonymous: int = 0
    mapped: int = 0
    disk: int = 0

    def look(self, process: int, folder: Path) -> None:
        """Takes note of what there is now."""
        memory = [_memory(one) for one in _with_children(process)]
        self.anonymous = max(self.anonymous, sum(own for own, _ in memory))
        self.mapped = max(self.mapped, sum(own + files for own, files in memory))
        self.disk = max(self.disk, sum(_taken(path) for path in folder.rglob("*")))


def bench(folder: Path, width: int, layers: int) -> list[str]:
    """Lines for the report."""
    source, out = folder / "large.pth", folder / "out"
    subprocess.run([sys.executable, "-c", MAKE, str(source), str(width), str(layers)], check=True)
    began, peak = time.monotonic(), Peak()
    command = [sys.executable, "-m", "ggufy", "-v", "quantize", str(source), *WORDS, "--out", str(out)]
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak.look(process.pid, out)
            time.sleep(_LOOK_S)
    assert process.returncode == 0
    (base,) = out.rglob("*-F16.gguf")
    return [
        f"a job of two quants, measured, of an RWKV-7 of {width} x {layers}: base {human_size(base.stat().st_size)}, "
        f"{human_time(time.monotonic() - began)}",
        f"  peak memory     {human_size(peak.anonymous)}, {human_size(peak.mapped)} with what is mapped of files",
        f"  peak disk       {human_size(peak.disk)} beside the source",
    ]


def _with_children(process: int) -> list[int]:
    try:
        lines = [task.read_text() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    return [process, *(one for line in lines for child in line.split() for one in _with_children(int(child)))]


def _memory(process: int) -> tuple[int, int]:
    """Bytes that are anonymous or shared, and that are of files."""
    try:
        lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    except OSError:
        return 0, 0
    found = {words[0]: int(words[1]) * 1024 for words in lines if words and words[0].startswith("Rss")}
    return found.get("RssAnon:", 0) + found.get("RssShmem:", 0), found.get("RssFile:", 0)


def _taken(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # renamed or deleted meanwhile
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=32)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        print(*bench(Path(name), asked.width, asked.layers), sep="\n")
