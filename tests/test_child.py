"""Children die with ggufy, get exactly the environment they are given, and keep an inherited lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ggufy.core.errors import BusyError
from ggufy.system import child_process, locks, resources
from tests.processes import until

ENV = {"LANG": "C.UTF-8", "PATH": resources.SAFE_PATH}
REPO = Path(__file__).parent.parent


def process_is_dead(pid: int) -> bool:
    """No such process, or one that has ended and that nobody has asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    parent_code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from ggufy.system import child_process
        process = child_process.start(["/bin/sh", "-c", "echo $$ > pid.part; mv pid.part pid; exec sleep 1000"],
                              cwd=Path({str(tmp_path)!r}), env={ENV!r})
        time.sleep(1000)
    """)
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=REPO)
    try:
        until((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert not process_is_dead(pid)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: process_is_dead(pid))


def test_launcher_leaves_when_the_parent_was_gone_before(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-I",
        "-S",
        child_process.__file__,
        str(os.getppid()),
        "0",
        "/bin/sh",
        "-c",
        "touch ran",
    ]
    assert subprocess.run(command, cwd=tmp_path, env=ENV, check=False).returncode == 127
    assert list(tmp_path.iterdir()) == []


def test_environment_is_exactly_what_was_given(tmp_path: Path) -> None:
    given = resources.child_environment(threads=3, home=tmp_path)
    printed = child_process.run(["/usr/bin/env"], cwd=tmp_path, env=given).stdout
    assert dict(line.split("=", 1) for line in printed.splitlines()) == given


def test_niceness_is_added(tmp_path: Path) -> None:
    process = child_process.start(
        ["/bin/sh", "-c", "nice; pwd"], cwd=tmp_path, env=ENV, nice=7, stdout=subprocess.PIPE
    )
    out, _ = process.communicate()
    assert out.decode().split() == [str(min(19, os.nice(0) + 7)), str(tmp_path)]


def test_sigpipe_is_not_ignored(tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and a program started by Python would inherit that and write to nobody for ever."""
    process = child_process.start(["/bin/sh", "-c", "yes"], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) in (-signal.SIGPIPE, 128 + signal.SIGPIPE)


def test_lock_is_held_until_the_inheritor_ends(tmp_path: Path) -> None:
    with locks.lock(tmp_path / "lock") as lock:
        process = child_process.start(["/bin/sleep", "1000"], cwd=tmp_path, env=ENV, pass_fds=[lock])
    with pytest.raises(BusyError), locks.lock(tmp_path / "lock"):
        pass
    child_process.stop(process)
    with locks.lock(tmp_path / "lock"):
        pass


def test_stop_ends_children_of_the_child(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo $! > pid.part; mv pid.part pid; wait; sleep 1000"
    process = child_process.start(["/bin/sh", "-c", script], cwd=tmp_path, env=ENV)
    until((tmp_path / "pid").exists)
    child_process.stop(process, grace_s=0.2)
    assert process.returncode == -signal.SIGKILL
    until(lambda: process_is_dead(int((tmp_path / "pid").read_text())))
    child_process.stop(process)  # again, on one that has ended


def test_stop_asks_politely_first(tmp_path: Path) -> None:
    script = "trap 'echo bye > said; exit 3' TERM; touch ready; while :; do sleep 0.05; done"
    process = child_process.start(["/bin/sh", "-c", script], cwd=tmp_path, env=ENV)
    until((tmp_path / "ready").exists)
    child_process.stop(process, grace_s=60)
    assert (process.returncode, (tmp_path / "said").read_text()) == (3, "bye\n")


def test_program_that_cannot_start(tmp_path: Path) -> None:
    done = child_process.run([str(tmp_path / "nothing")], cwd=tmp_path, env=ENV)
    assert done.returncode == 127
    assert f"cannot start {tmp_path}/nothing: No such file" in done.stdout


def test_run_returns_code_and_both_streams(tmp_path: Path) -> None:
    done = child_process.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 4"], cwd=tmp_path, env=ENV)
    assert (done.returncode, done.stdout) == (4, "out\nerr\n")


def test_run_stops_what_takes_too_long(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        child_process.run(["/bin/sh", "-c", "echo $$ > pid; exec sleep 1000"], cwd=tmp_path, env=ENV, timeout_s=1.0)
    if (tmp_path / "pid").exists():
        assert process_is_dead(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_running_child_can_be_kept_to_fewer_cpus(tmp_path: Path) -> None:
    """All of its threads, also those that are there already; never more CPUs than this process may use."""
    script = "import threading, time; [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(3)]"
    process = child_process.start([sys.executable, "-c", script], cwd=tmp_path, env={})
    try:
        tasks = Path(f"/proc/{process.pid}/task")
        deadline = time.monotonic() + 30
        while len(list(tasks.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        allowed = os.sched_getaffinity(0)
        for count in (1, 99):
            child_process.keep_to_cpus(process, count)
            kept = {len(os.sched_getaffinity(int(task.name))) for task in tasks.iterdir()}
            assert kept == {min(count, len(allowed))}
    finally:
        child_process.stop(process)
    child_process.keep_to_cpus(process, 1)  # it is gone


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
def test_a_thread_can_step_back_behind_the_page() -> None:
    found: list[int] = []

    def work() -> None:
        child_process.lower_own_priority()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(19, before + child_process.NICE)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_works_for_part_of_the_time(tmp_path: Path) -> None:
    """It is stopped for the rest of it; and it can be ended while it is."""
    process = child_process.start([sys.executable, "-c", "while True: pass"], cwd=tmp_path, env={})
    duty = child_process.Duty(process)
    states = []
    try:
        for _ in range(60):
            duty.keep(0.4)
            time.sleep(0.05)
            states.append(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0])
        assert 0.4 < states.count("T") / len(states) < 0.8
        while states[-1] != "T":
            duty.keep(0.1)
            time.sleep(0.05)
            states.append(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0])
        duty.keep(1.0)
        time.sleep(0.05)
        assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"
        duty.keep(0.0)
    finally:
        child_process.stop(process)
    assert process.returncode == -signal.SIGTERM
    duty.keep(0.5)  # it is gone


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux tells how long a thread waited")
def test_waiting_for_a_cpu_is_seen() -> None:
    """Two processes on one CPU wait about half of their time, whoever else is there."""
    cpu = str(min(os.sched_getaffinity(0)))
    loop = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
    command = [sys.executable, "-c", loop, cpu]
    wait = child_process.CpuWait()
    assert wait.share is None
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in pair:
            assert process.stdout
            process.stdout.readline()
        while sum(worked + waited for worked, waited in wait._times.values()) < 400_000_000:
            wait.look(pair[0].pid)
        assert wait.share is not None and 0.2 < wait.share < 1
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    wait.look(pair[0].pid)  # it is gone
