"""Commands as lists, and readers on output captured from the real tools, fed in pieces of any size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ggufy.core.errors import Cancelled, ToolError
from ggufy.llama import tools

DRY_RUN = """[   1/   3] output.weight     - [   256,  4096,      1,      1], type =    f16, size =     2.00 MiB ->     0.82 MiB (q6_K)
[   2/   3] output_norm.bias               - [   256,      1,      1,      1], type =    f32, size =    0.001 MiB
[   3/   3] token_embd.weight              - [   256,  4096,      1,      1], type =    f16, size =     2.00 MiB ->     0.56 MiB (q4_K)
"""  # noqa: E501
IMATRIX = """0.00.1 I compute_imatrix: computing over 4 chunks, n_ctx=512, batch_size=512, n_seq=1
0.00.2 I compute_imatrix: 0.03 seconds per pass - ETA 0.00 minutes
[1]53.1012,[2]48.2011,[3]nan,[4]44.0,
Final estimate: PPL = 44.0 +/- 1.2
"""


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_imatrix_progress_counts_chunks(piece: int) -> None:
    seen: list[float] = []
    follow = tools.ImatrixProgress(seen.append)
    for start in range(0, len(IMATRIX), piece):
        follow(IMATRIX[start : start + piece])
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_a_dry_run_is_a_recipe() -> None:
    recipe = tools.parse_dry_run(DRY_RUN)
    assert recipe == {"output.weight": "Q6_K", "output_norm.bias": "F32", "token_embd.weight": "Q4_K"}


@pytest.mark.parametrize("text", ["", "error: no such file", "\n".join(DRY_RUN.splitlines()[:2])])
def test_an_incomplete_dry_run_is_an_error(text: str) -> None:
    with pytest.raises(ToolError):
        tools.parse_dry_run(text)


def test_commands_are_lists_and_name_no_folder_in_what_is_kept() -> None:
    command = tools.imatrix_command(
        Path("/t/llama-imatrix"), model=Path("/o/m"), text="t.txt", out=Path("/o/i"), threads=2, chunks=5
    )
    assert command[command.index("-f") + 1] == "t.txt"
    assert {"--process-output", "-b", "512", "--chunks"} <= set(command)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run_in(folder: Path) -> tools.ToolRun:
    return tools.ToolRun(environment={"PATH": "/usr/bin:/bin"}, cwd=folder, log=folder / "log")


def test_output_goes_to_the_caller_and_to_the_log(tmp_path: Path) -> None:
    code = "import sys; print('中文', flush=True); print('warn', file=sys.stderr)"
    seen: list[str] = []
    text = tools.run_tool(python(code), run_in(tmp_path), seen.append)
    assert text == "".join(seen) == "中文\nwarn\n"
    assert (tmp_path / "log").read_text(encoding="utf-8") == text


def test_a_failure_carries_the_tools_own_reason(tmp_path: Path) -> None:
    code = "import sys; print('loading'); print('0.00.1 E main: failed to open x'); print('bye'); sys.exit(3)"
    with pytest.raises(ToolError, match=r"exit code 3\): main: failed to open x") as caught:
        tools.run_tool(python(code), run_in(tmp_path))
    assert "loading" in caught.value.output


def test_a_killed_tool_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="SIGKILL, probably out of memory"):
        tools.run_tool(python("import os; os.kill(os.getpid(), 9)"), run_in(tmp_path))


def test_a_stop_ends_the_tool(tmp_path: Path) -> None:
    seen: list[str] = []
    run = tools.ToolRun(environment={}, cwd=tmp_path, stopped=lambda: bool(seen))
    with pytest.raises(Cancelled):
        tools.run_tool(python("import time; print('on', flush=True); time.sleep(600)"), run, seen.append)


def test_too_short() -> None:
    text = "x: you need at least 1024 tokens for a context of 512 tokens\n"
    text += "x: the data file you provided tokenizes to only 3 tokens"
    assert tools.parse_too_short(text) == (1024, 3)
    assert tools.parse_too_short("something else") is None


def test_a_log_that_has_grown_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may be repeated for ever: while the Hub is away, say."""
    monkeypatch.setattr(tools, "_LONGEST_LOG", 100)
    log = tmp_path / "step.log"
    run = tools.ToolRun(environment={}, cwd=tmp_path, log=log)
    for _ in range(30):
        tools.run_tool([sys.executable, "-c", "print('x' * 40)"], run)
        assert log.stat().st_size <= 141
    assert log.read_text().endswith("x\n")
