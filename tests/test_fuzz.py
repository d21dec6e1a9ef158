"""Hostile files, by the hundred here and by the thousand in `make fuzz`: each is read or refused, and nothing else.

They are read in child processes, a batch each (tests/fuzz_child.py), so that a crash of the interpreter, a hang or
too much memory is one case's failure. A failure is shown with the command that runs this one case alone.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ggufy.core.errors import SourceError, ToolError
from ggufy.formats.gguf import read_head
from ggufy.llama import tools
from tests import tiny
from tests.conftest import ROOT
from tests.fuzz_child import is_sentence

CASES = int(os.environ.get("GGUFY_TEST_FUZZ", "0"))  # of each kind; `make fuzz`: 5,000
SEED = int(os.environ.get("GGUFY_TEST_FUZZ_SEED", "5"))
BATCH = 500
USUALLY = {"gguf": 500, "imatrix": 300, "pickled": 150, "checkpoint": 150, "safetensors": 300, "rwkvcpp": 300}


@pytest.mark.parametrize("target", USUALLY)
def test_hostile_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    total = CASES or USUALLY[target]
    ends: Counter[str] = Counter()
    failures: dict[int, str] = {}
    first = 0
    while first < total:
        first = run_batch(target, first, min(BATCH, total - first), ends, failures, tmp_path)
    sys.stdout.write(f"{target}: {total} cases, {dict(ends)}\n")  # shown by pytest -rP, as in `make fuzz`
    shown = [f"{command(target, case)}\n{why}" for case, why in list(failures.items())[:5]]
    assert not failures, f"{len(failures)} of {total} cases failed:\n\n" + "\n\n".join(shown)
    assert ends["refused"] > total // 3
    assert ends["read"] > total // 50


def test_the_tool_takes_or_refuses_what_the_reader_takes(llama_bin: Path, tmp_path: Path) -> None:
    path = tiny.converted(tmp_path, "7", outtype="f16")
    whole, head = path.read_bytes(), read_head(path)
    run = tools.ToolRun(environment={}, cwd=tmp_path)
    ends: Counter[str] = Counter()
    for case in range(80):
        rng, data = random.Random(f"tool {SEED} {case}"), bytearray(whole)
        for _ in range(rng.choice((1, 2, 4))):
            place = rng.choice((rng.randrange(24, 600), rng.randrange(head.metadata_end, head.data_start)))
            data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[place] ^ 1))
        path.write_bytes(data)
        try:
            read_head(path)
            tools.run_tool(tools.dry_run_command(llama_bin / "llama-quantize", base=path, quant_type="Q4_K_M"), run)
            ends["taken"] += 1
        except SourceError:
            ends["not read"] += 1
        except ToolError as error:
            ends["refused"] += 1
            assert is_sentence(str(error)), (case, str(error))
    assert min(ends["taken"], ends["refused"], ends["not read"]) > 3, ends


def run_batch(target: str, first: int, count: int, ends: Counter[str], failures: dict[int, str], folder: Path) -> int:
    """Runs a batch, or what of it comes before a case that ends the process; gives the number of the next case."""
    called = [sys.executable, "-m", "tests.fuzz_child", target, "--seed", str(SEED)]
    called += ["--first", str(first), "--count", str(count)]
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        done = subprocess.run(called, stdout=out, stderr=err, cwd=ROOT, env=kept | {"PYTHONPATH": str(ROOT)})
        lines = [json.loads(line) for line in (folder / "out").read_text().splitlines()]
        said = (folder / "err").read_text(errors="replace")
    assert lines, f"no case was begun: {said[-3000:]}"
    for line in lines:
        if "ended" in line:
            ends[line["ended"]] += 1
            if line["ended"] == "failed":
                failures[line["case"]] = line["why"]
    last = lines[-1]
    if "ended" not in last:
        ends["failed"] += 1
        failures[last["case"]] = f"the process ended with {done.returncode}: {said[-3000:]}"
    else:
        assert done.returncode == 0, said[-3000:]
        assert last["case"] == first + count - 1
    return int(last["case"]) + 1


def command(target: str, case: int) -> str:
    return f"python -m tests.fuzz_child {target} --seed {SEED} --first {case} --count 1 --keep case"
