"""The engine against llama-quantize: the same files, type by type in turn, with the same threads. And what kills cost.

One engine process makes all types, as a job does; llama-quantize is started for each. CPU time is of all threads. The
dry runs are the engine's cost too; the start of Python is not, since a job's process is there anyway.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Run, run
from ggufy import demo
from ggufy.core.catalog import make_order, parse_types
from ggufy.llama import tools
from ggufy.llama.install import Llama
from ggufy.quantize.journal import journal_of, read_journal
from ggufy.steps import partial_backup as backup
from ggufy.system.files import sha256
from ggufy.texts.calibration import PinnedTexts

THREADS = 2
ROUNDS = 5
KILLS = 50
LONG = "IQ2_XS"
_ENVIRONMENT = {"GOMP_SPINCOUNT": "0", "PATH": "/usr/bin:/bin"}


def bench_files(folder: Path, llama: Llama, texts: PinnedTexts) -> Iterator[list[str]]:
    """Lines for the report, for the demo and for the 0.9 GB model that the conversion bench has left."""
    small = folder / "engine-demo.gguf"
    run(sys.executable, "-m", "ggufy", "convert", demo.CHECKPOINT, small, "--vocab", demo.VOCAB)
    for name, base in ((f"the demo ({demo.MODEL})", small), ("the 0.96 GB F16", folder / "ours.gguf")):
        imatrix = _imatrix(folder, llama, texts, base)
        lines, ours, theirs = [f"quantizing {name}, {THREADS} threads, CPU time"], 0.0, 0.0
        peaks = [0, 0]
        with _engine(base, imatrix, llama) as engine:
            lines.append(_single(engine, base, imatrix, llama))
            for quant_type in make_order(set(parse_types("all"))):
                target, other = (base.with_name(f"{who}-{base.stem}-{quant_type}.gguf") for who in ("e", "q"))
                told = engine(quant_type, target)
                made = _llama_quantize(llama, base, imatrix, other, quant_type)
                ours, theirs = ours + told["cpu"], theirs + made.cpu_s
                peaks = [max(peaks[0], told["peak"]), max(peaks[1], made.peak_bytes)]
                other.unlink()
        for path in folder.glob(f"e-{base.stem}-*"):
            path.unlink()
        lines += [
            f"  all 29 types    {ours:.0f} s, llama-quantize {theirs:.0f} s: ratio {ours / theirs:.2f} "
            "(bar: at most 0.75)",
            f"  peak memory     {peaks[0] / 1e6:.0f} MB, llama-quantize {peaks[1] / 1e6:.0f} MB: ratio "
            f"{peaks[0] / peaks[1]:.2f} (bar: at most 1.10)",
        ]
        yield lines


def _single(engine: Any, base: Path, imatrix: Path, llama: Llama) -> str:
    """Q4_K_M alone, several times in turn, in a process that is running anyway."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        target, other = base.with_name("e-single.gguf"), base.with_name("q-single.gguf")
        target.unlink(missing_ok=True)
        ours.append(engine("Q4_K_M", target, again=True)["cpu"])
        theirs.append(_llama_quantize(llama, base, imatrix, other, "Q4_K_M").cpu_s)
    mine, other_s = statistics.median(ours), statistics.median(theirs)
    return (
        f"  Q4_K_M alone    {mine:.2f} s, llama-quantize {other_s:.2f} s, {ROUNDS} rounds: ratio {mine / other_s:.2f} "
        "(bar: at most 1.0)"
    )


def bench_kills(folder: Path, llama: Llama, texts: PinnedTexts) -> list[str]:
    """Lines for the report: CPU time that is lost with a kill, on the 0.9 GB model."""
    base = folder / "ours.gguf"
    imatrix = _imatrix(folder, llama, texts, base)
    whole = folder / "whole.gguf"
    with _engine(base, imatrix, llama) as engine:
        cpu = engine(LONG, whole)["cpu"]
    weights = _bytes_made(None, whole)
    losses, target, chance = [], folder / "killed.gguf", random.Random(1)
    for _ in range(KILLS):
        before = _bytes_made(target)
        used = _killed(base, imatrix, llama, target, chance.uniform(0, 1.5 * cpu / THREADS / KILLS) + 3)
        losses.append(used - cpu * (_bytes_made(target) - before) / weights)
        if target.exists():
            target.unlink()
    with _engine(base, imatrix, llama) as engine:
        engine(LONG, target)
    assert sha256(target) == sha256(whole), "not the same bytes"
    wiped = _unsafe_work(base, imatrix, llama, folder / "watched.gguf", cpu / weights)
    return [
        f"SIGKILL at {KILLS} random moments of {LONG} of the 0.96 GB F16 ({cpu:.0f} s of CPU time undisturbed)",
        f"  disk kept       CPU time lost with a kill: {sum(losses) / len(losses):.1f} s, at most {max(losses):.1f} s "
        "(bar: 60 s)",
        f"  disk lost       CPU time not yet in the state repo at {KILLS} random moments of one run: "
        f"{sum(wiped) / len(wiped):.0f} s, at most {max(wiped):.0f} s (bar: 180 s)",
    ]


def _imatrix(folder: Path, llama: Llama, texts: PinnedTexts, base: Path) -> Path:
    out = folder / f"{base.stem}-imatrix.gguf"
    if not out.exists():
        command = tools.imatrix_command(
            llama.tool("llama-imatrix"),
            model=base,
            text=texts.calibration.name,
            out=out,
            threads=THREADS,
            chunks=4,
        )
        run(*command, env=_ENVIRONMENT, cwd=texts.calibration.parent)
    return out


def _llama_quantize(llama: Llama, base: Path, imatrix: Path, out: Path, quant_type: str) -> Run:
    tool = llama.tool("llama-quantize")
    command = [tool, "--imatrix", imatrix.name, base, out, quant_type, THREADS]
    return run(*command, env=_ENVIRONMENT, cwd=imatrix.parent)


def _process(base: Path, imatrix: Path, llama: Llama) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.engine_process", str(base), str(imatrix), str(llama.bin), str(THREADS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def _engine(base: Path, imatrix: Path, llama: Llama) -> Iterator[Any]:
    """A function of a quant type and a target that has the engine make it; it returns CPU seconds and peak bytes."""
    with _process(base, imatrix, llama) as process:
        assert process.stdin and process.stdout

        def make(quant_type: str, target: Path, *, again: bool = False) -> dict[str, float]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps([quant_type, str(target), again]) + "\n")
            process.stdin.flush()
            told: dict[str, float] = json.loads(process.stdout.readline())
            return told

        yield make
        process.stdin.close()


def _killed(base: Path, imatrix: Path, llama: Llama, target: Path, after_s: float) -> float:
    """Kills the engine after so many seconds; CPU seconds that it had used."""
    process = _process(base, imatrix, llama)
    assert process.stdin
    process.stdin.write(json.dumps([LONG, str(target), True]) + "\n")
    process.stdin.flush()
    time.sleep(after_s)
    used = _cpu(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return used


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _bytes_made(target: Path | None, whole: Path | None = None) -> int:
    """Bytes of the quant that the journal names; or of a whole one."""
    if whole is not None:
        return whole.stat().st_size
    assert target is not None
    if target.exists():
        return target.stat().st_size
    return sum(size for _, size in read_journal(journal_of(target.with_name(target.name + ".part")))[1].values())


def _unsafe_work(base: Path, imatrix: Path, llama: Llama, target: Path, a_byte: float) -> list[float]:
    """CPU seconds of work that is not in the state repo, at random moments of a run that saves as a job does."""
    safe = target.with_name("safe")
    safe.mkdir()
    os.environ["BENCH_SAFE"] = str(safe)
    process = _process(base, imatrix, llama)
    del os.environ["BENCH_SAFE"]
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([LONG, str(target), True]) + "\n")
    process.stdin.flush()
    samples = []
    while not target.exists():
        time.sleep(0.2)
        there = sum(path.stat().st_size for path in safe.glob(f"*{backup.SUFFIX}"))
        samples.append(_cpu(process.pid) - there * a_byte)
    process.kill()
    process.communicate()
    return random.Random(2).sample(samples, KILLS)
