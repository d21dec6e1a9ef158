"""SIGTERM and Ctrl-C end a program whichever thread the kernel hands them to, and whatever the main thread does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.cli.terminal import stoppable
from ggufy.core.errors import Cancelled
from tests.processes import free_port

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="a signal for one thread of another process is Linux's"
)
REPO = Path(__file__).parent.parent
_WAITS = """
import threading, time
from ggufy.system.signals import told_to_end
threading.Thread(target=time.sleep, args=[300], daemon=True).start()
with told_to_end() as told:
    print("waits", flush=True)
    {wait}
print("told", flush=True)
"""
_AT_ONCE = "told.wait()"
_OFTEN = "while not told.wait(1e-5): pass"


@pytest.fixture
def waiting(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A program that waits until it is told."""
    script = _WAITS.format(wait=request.param)
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        yield process
        process.kill()


def others(process: subprocess.Popen[str]) -> list[int]:
    """The threads of a process beside its first."""
    return [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir() if task.name != str(process.pid)]


@pytest.mark.parametrize("waiting", [_AT_ONCE, _OFTEN], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whichever_thread_is_hit(waiting: subprocess.Popen[str], number: signal.Signals) -> None:
    os.kill(others(waiting)[0], number)
    assert waiting.communicate(timeout=60) == ("told\n", None)
    assert waiting.returncode == 0


def test_what_stood_before_is_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), stoppable() as stopped:
        assert not stopped.is_set()
        raise Cancelled("stopped.")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


_HELD_UP = """
import threading
from ggufy.service.service import Services
from ggufy.ui.start import program
Services.start = lambda self: threading.Event().wait()
program()
"""


@pytest.mark.tools
@pytest.mark.parametrize("words", [[str(REPO / "app.py")], ["-c", _HELD_UP]], ids=["waiting", "held up"])
def test_the_page_ends(ggufy_environment: dict[str, str], tmp_path: Path, words: list[str]) -> None:
    environment = ggufy_environment | {"GGUFY_OUT": str(tmp_path), "GRADIO_SERVER_PORT": str(free_port())}
    with subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True) as page:
        assert page.stderr is not None
        assert "the page is at" in page.stderr.readline()
        time.sleep(1)  # until it waits for nothing but a signal
        os.kill(others(page)[0], signal.SIGTERM)
        try:
            page.communicate(timeout=60)
        finally:
            page.kill()
    assert page.returncode == 0
