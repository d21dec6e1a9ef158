"""The engine in a process of its own: of each line `[type, target, no siblings]`, a quant; tells CPU and memory.

With BENCH_SAFE, a folder, it saves unfinished work there as a job saves it to the state repo.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from ggufy.core.catalog import BY_NAME
from ggufy.llama import ggml
from ggufy.llama.tools import ToolRun
from ggufy.quantize import engine
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.recipe import stock_recipe
from ggufy.quantize.task import QuantizeTask
from ggufy.steps.partial_backup import PartialBackup
from ggufy.system.control import Control


class FolderSafe:
    """A folder in place of the state repo."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> Collection[str]:
        return [path.name for path in self.folder.iterdir()]

    def put(self, path: Path, drop: Collection[str] = ()) -> None:
        shutil.copyfile(path, self.folder / path.name)

    def get(self, name: str, target: Path) -> None:
        shutil.copyfile(self.folder / name, target)

    def wait_s(self) -> float:
        return 0.0


def cpu_s() -> float:
    """Of this process and the tools that it ran."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Of this process since it became Python."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    base, imatrix, llama_bin, threads = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    known = read_imatrix(imatrix)
    made: list[Path] = []
    before = cpu_s()  # a job's process is there anyway
    for line in sys.stdin:
        quant_type, target, again = json.loads(line)
        run = ToolRun(environment={"PATH": "/usr/bin:/bin"}, cwd=base.parent)
        recipe = stock_recipe(llama_bin / "llama-quantize", run, base, quant_type, imatrix=str(imatrix))
        order = QuantizeTask(
            base=base,
            target=Path(target),
            recipe=recipe,
            ftype=BY_NAME[quant_type].ftype,
            imatrix=known,
            siblings=[] if again else made,
        )
        safe = os.environ.get("BENCH_SAFE")
        part = Path(f"{target}.part")
        backup = PartialBackup(FolderSafe(Path(safe)), part, base.parent / "sent", lambda: threads) if safe else None

        def report(_: float, backup: PartialBackup | None = backup) -> None:
            if backup:
                backup.looked()

        engine.quantize(order, Control(limit=lambda: threads, report=report), ggml=ggml.load(llama_bin))
        if not again:
            made.append(Path(target))
        print(json.dumps({"cpu": cpu_s() - before, "peak": peak_bytes()}), flush=True)
        before = cpu_s()


if __name__ == "__main__":
    main()
