"""Converting while downloading: the 0.9 GB checkpoint of conversion.py, over lines of 75 and 150 MB/s.

A download alone (hf_transfer), a conversion alone of the file that it brings, with the digest that a job notes of it,
and both at once by ranges; each in a process of its own, timed without its start. 1.0 would be perfect overlap.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.conversion import MAKE
from bench.measure import Run, median, run, spread
from bench.slow_server import serving
from ggufy.net import fast_download
from ggufy.system.files import sha256

ROUNDS = 3
LINES = (75e6, 150e6)  # bytes a second
WORK = f"""
import json, resource, subprocess, sys, time
from pathlib import Path
from ggufy.system.files import sha256
from ggufy.models.convert import convert
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.sources.url import resolve_url
what, source, target = sys.argv[1:]
started = time.perf_counter()
if what == "download":
    command = [sys.executable, "-I", {fast_download.__file__!r}, source, target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
elif what == "convert":
    convert(Path(source), Path(target))
    sha256(Path(target))
else:
    remote = open_streamed(resolve_url(source))
    convert_streamed(remote, origins_of(remote.shapes), Path(target), name="bench")
print(json.dumps([time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def bench(folder: Path) -> list[str]:
    """Lines for the report."""
    source = folder / "bench.pth"
    if not source.exists():
        run(sys.executable, "-c", MAKE, source)
    target = folder / "local.gguf"
    alone = [_work("convert", source, target) for _ in range(ROUNDS)]
    size = source.stat().st_size / 1e9
    lines = [f"conversion while downloading a {size:.2f} GB checkpoint, {ROUNDS} rounds"]
    return lines + [line for rate in LINES for line in _line(source, target, alone, rate)]


def _line(source: Path, local: Path, alone: list[Run], rate: float) -> list[str]:
    streamed, fetched = local.with_name("streamed.gguf"), local.with_name("fetched.pth")
    downloads, both = [], []
    with serving(source, rate) as url:
        for _ in range(ROUNDS):
            downloads.append(_work("download", url, fetched))
            both.append(_work("stream", url, streamed))
    assert sha256(streamed) == sha256(local), "not the same bytes"
    ratio = median(both) / max(median(alone), median(downloads))
    return [
        f"  a line of {rate / 1e6:.0f} MB/s",
        f"    download alone   {spread(downloads)}",
        f"    conversion alone {spread(alone)}",
        f"    streamed         {spread(both)}, peak memory {max(r.peak_bytes for r in both) / 1e9:.2f} GB",
        f"    ratio            {ratio:.2f}   (bar: at most 1.15)",
    ]


def _work(what: str, source: Path | str, target: Path) -> Run:
    target.unlink(missing_ok=True)
    command = [sys.executable, "-c", WORK, what, str(source), str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds, peak = json.loads(done.stdout)
    return Run(seconds, peak)
