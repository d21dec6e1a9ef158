"""CPU and memory limits are read from cgroups of both versions; a tool's environment is built from nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ggufy.system import resources

GIB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712"


def machine(root: Path, contents: dict[str, str]) -> Path:
    """A folder that looks like / to the functions under test."""
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, 8.0),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8.0),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1600000 100000"}, 8.0),
        # the group above is the tighter one
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        # a container without a cgroup namespace: the line names a folder that is not there
        ({"proc/self/cgroup": "0::/docker/123", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        ({"proc/self/cgroup": "0::/../outside", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        # version 1, under both names of its folder
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/job",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        # both versions at once
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/unified/cpu.max": "500000 100000",
            },
            5.0,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "what is this"}, 8.0),
    ],
)
def test_allowed_cpus(tmp_path: Path, contents: dict[str, str], expected: float) -> None:
    assert resources.allowed_cpus(root=machine(tmp_path, contents), cores=8) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS has no affinity masks")
def test_allowed_cpus_obeys_the_affinity_mask(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert resources.allowed_cpus(root=tmp_path) == 1.0
    finally:
        os.sched_setaffinity(0, before)
    assert resources.allowed_cpus(root=tmp_path) == len(before)


def test_this_machine() -> None:
    assert 0 < resources.allowed_cpus() <= (os.cpu_count() or 1)
    assert 0 <= resources.memory_available() <= resources.memory_limit()
    assert resources.memory_limit() > 100_000_000


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (1.5, 1), (2, 1), (2.9, 1), (3, 2), (8, 7), (64, 63)])
def test_default_threads_leave_one_cpu(cpus: float, threads: int) -> None:
    assert resources.default_threads(cpus) == threads


MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:    8388608 kB"


@pytest.mark.parametrize(
    ("contents", "limit", "available"),
    [
        ({}, 16 * GIB, 8 * GIB),
        (
            {
                "proc/self/cgroup": "0::/a",
                "sys/fs/cgroup/a/memory.max": "max",
                "sys/fs/cgroup/memory.max": str(4 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7",
            },
            4 * GIB,
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/job",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(15 * GIB),
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}",
            },
            2 * GIB,
            2 * GIB - GIB // 2,
        ),
        # a limit that was lowered below what is in use
        (
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(GIB),
                "sys/fs/cgroup/memory.current": str(2 * GIB),
            },
            GIB,
            0,
        ),
    ],
)
def test_memory(tmp_path: Path, contents: dict[str, str], limit: int, available: int) -> None:
    root = machine(tmp_path, {"proc/meminfo": MEMINFO, **contents})
    assert resources.memory_limit(root=root) == limit
    assert resources.memory_available(root=root) == available


def test_child_environment_is_built_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "LLAMA_ARG_THREADS", "LD_PRELOAD", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "99")
    environment = resources.child_environment(threads=3, home=Path("/home/someone"))
    assert environment == {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/someone",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "3",
        "GOMP_SPINCOUNT": "0",
    }
    with_tmpdir = resources.child_environment(threads=3, home=Path("/home/someone"), tmpdir=Path("/scratch"))
    assert with_tmpdir == {**environment, "TMPDIR": "/scratch"}


def test_the_limit_stays_between_one_and_what_is_allowed() -> None:
    limit = resources.ThreadLimit(3, most=4)
    assert (limit(), limit.set(9), limit.set(0), limit.set(2), limit()) == (3, 4, 1, 2, 2)
    assert resources.ThreadLimit(9, most=0)() == 1
    wished = resources.thread_limit(3)  # a user's own number may be above what is thought to be allowed
    assert (wished(), wished.most >= 3) == (3, True)


def test_the_share_is_fixed_or_follows_the_page() -> None:
    share = resources.CpuShare(75)
    share.page_answered(2.0)
    assert share() == 0.75
    share.set(resources.AUTOMATIC)
    share.page_answered(2.0)
    assert share() == 0.75 * 0.75
    for _ in range(50):
        share.page_answered(2.0)
    assert share() == resources.LEAST_SHARE
    for _ in range(100):
        share.page_answered(0.01)
    assert share() == 1.0
    assert resources.thread_limit(1).share() == 1.0


def test_the_cpu_meter_counts_between_two_looks(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    meter = resources.CpuMeter(tmp_path)
    assert meter() == 0.0  # no Linux
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n")
    assert meter() == 0.2
    stat.write_text("cpu  175 0 100 720 105 0 0 0 0 0\n")
    assert meter() == 0.75
    assert meter() == 0.0


def test_the_cpu_meter_shows_the_share_of_this_container_s_quota(tmp_path: Path) -> None:
    """Half of half a CPU, while the host is all busy with others' work."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/stat").write_text("cpu  900 0 100 0 0 0 0 0 0 0\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "cpu.stat").write_text("usage_usec 10000000\nuser_usec 9000000\n")
    clock = iter([100.0, 104.0, 108.0])
    meter = resources.CpuMeter(tmp_path, clock=lambda: next(clock))
    meter()
    (group / "cpu.stat").write_text("usage_usec 11000000\nuser_usec 9000000\n")
    assert meter() == pytest.approx(0.5)  # 1 s of 4 s at half a CPU
    assert meter() == 0.0


def test_the_cpu_meter_follows_the_group_that_binds(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    outer, inner = tmp_path / "sys/fs/cgroup/outer", tmp_path / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (outer / "cpu.max").write_text("50000 100000\n")
    for folder, usage in ((outer, 4_000_000), (inner, 1_000_000)):
        (folder / "cpu.stat").write_text(f"usage_usec {usage}\n")
    clock = iter([10.0, 20.0])
    meter = resources.CpuMeter(tmp_path, clock=lambda: next(clock))
    meter()
    (outer / "cpu.stat").write_text("usage_usec 8000000\n")  # what its other groups used is not ours to use
    assert meter() == pytest.approx(0.8)


def test_the_cpu_meter_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,cpuacct:/\n")
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    group.mkdir(parents=True)
    for name, text in (
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "100000"),
        ("cpuacct.usage", "1000000000"),
    ):
        (group / name).write_text(text)
    clock = iter([10.0, 20.0])
    meter = resources.CpuMeter(tmp_path, clock=lambda: next(clock))
    meter()
    (group / "cpuacct.usage").write_text("2000000000")
    assert meter() == pytest.approx(0.2)


def test_the_cpu_meter_looks_at_the_cpus_of_the_affinity_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_affinity", lambda: {1})
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 0 0 100 0 0 0 0\ncpu0 90 0 0 10 0 0 0 0\ncpu1 10 0 0 90 0 0 0 0\n")
    assert resources.CpuMeter(tmp_path)() == 0.1
