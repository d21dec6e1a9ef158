"""How much of the machine a run may use, and the environment its tools are given.

The core count of the machine is not what a container may use: the scheduler's affinity mask and the quota of every
control group (cgroup) above this process limit it too, and llama.cpp's tools look at neither. So ggufy works the
number out here and passes it to each tool. Memory is limited by the same groups.

Version 1 and version 2 of cgroups are both read. A process's line in `/proc/self/cgroup` may name a folder that the
container cannot see; what it sees then is its own group, mounted at the root, so the root is always read as well.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

SAFE_PATH = "/usr/local/bin:/usr/bin:/bin"
AUTOMATIC = 0  # instead of a percentage
CPU_PERCENTS = (25, 50, 75, 100, AUTOMATIC)  # what the page offers
LEAST_SHARE = 0.1
_LATE_S = 0.15  # a page this late feels slow
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def allowed_cpus(*, root: Path = Path("/"), cores: int | None = None) -> float:
    """CPUs that this process may keep busy, 0.5 for half of one: the least of affinity and cgroup quotas.

    `root` is where /proc and /sys are looked up; `cores` stands in for the affinity mask.
    """
    limits = [float(cores if cores is not None else len(_affinity()))]
    return min([*limits, *(quota for _, quota in _cpu_groups(root) if quota is not None)])


def default_threads(cpus: float) -> int:
    """Threads to use when nobody says: one CPU's worth stays free for the page and the system, if there is more."""
    return max(1, int(cpus - 1))


def tool_threads(*wanted: int | None) -> int:
    """The first number of threads that is wanted, else the default for the CPUs that are allowed."""
    return next(filter(None, wanted), None) or default_threads(allowed_cpus())


class CpuShare:
    """What part of the allowed CPU time work may use, which may change while it runs. Any thread may read or set it.

    A fixed percentage is for hosts that punish long full load. AUTOMATIC leaves the page quick: whenever it answers
    late, the share falls by a quarter, and while it answers in time it rises again, slowly.
    """

    def __init__(self, percent: int = 100):
        self.percent = percent
        self._automatic = 1.0

    def __call__(self) -> float:
        """The share of now, from LEAST_SHARE to 1."""
        share = self._automatic if self.percent == AUTOMATIC else self.percent / 100
        return min(1.0, max(LEAST_SHARE, share))

    def set(self, percent: int) -> None:
        self.percent = percent

    def page_answered(self, late_s: float) -> None:
        """Takes note, about once a second, of how many seconds late the page was."""
        factor = 0.75 if late_s > _LATE_S else 1.05
        self._automatic = min(1.0, max(LEAST_SHARE, self._automatic * factor))


def asked_share(share: Callable[[], float]) -> float:
    """The share that people ask for now: all, where it only falls while the page needs the machine."""
    return 1.0 if isinstance(share, CpuShare) and share.percent == AUTOMATIC else share()


class ThreadLimit:
    """How many threads the tools may use, which may change while they run. Any thread may read or set it."""

    def __init__(self, threads: int, most: int, share: CpuShare | None = None):
        self.most = max(1, most)
        self.threads = min(max(1, threads), self.most)
        self.share = share or CpuShare()

    def __call__(self) -> int:
        return self.threads

    def set(self, threads: int) -> int:
        """Brings the number between 1 and what this process may use, and returns it."""
        self.threads = min(max(1, threads), self.most)
        return self.threads


def thread_limit(threads: int | None = None, percent: int = 100) -> ThreadLimit:
    """The limit to begin with: what was asked for, or one CPU less than allowed."""
    cpus = allowed_cpus()
    wanted = threads or default_threads(cpus)
    return ThreadLimit(wanted, most=max(wanted, math.floor(cpus)), share=CpuShare(percent))


class CpuMeter:
    """Share of the CPU time that this process may use, 0 to 1, that was used between two calls.

    In a container that is its control group's, however busy the host is; without groups it is that of the CPUs of the
    affinity mask, whoever uses them. 0 where neither can be read.
    """

    def __init__(self, root: Path = Path("/"), *, clock: Callable[[], float] = time.monotonic):
        self._root, self._clock = root, clock
        self._before = (0.0, 0.0)

    def __call__(self) -> float:
        now = self._of_group() or self._of_cpus()
        busy, total = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        return min(1.0, max(0.0, busy / total)) if total > 0 else 0.0

    def _of_group(self) -> tuple[float, float] | None:
        """(used, allowed) seconds of the group whose quota binds, or of the innermost where none does."""
        groups = sorted(_cpu_groups(self._root), key=lambda group: math.inf if group[1] is None else group[1])
        for folder, _ in groups:  # a stable order
            used = _keyed(folder / "cpu.stat", "usage_usec") / 1e6
            if not used and (nanoseconds := _numbers(folder / "cpuacct.usage", 1)[0]):  # version 1
                used = nanoseconds / 1e9
            if used:
                return used, self._clock() * allowed_cpus(root=self._root)
        return None

    def _of_cpus(self) -> tuple[float, float]:
        """(busy, all) ticks since the start, of the CPUs that this process may run on."""
        rows = {words[0]: [int(word) for word in words[1:9]] for words in map(str.split, self._stat()) if words[5:]}
        mine = [rows[name] for number in _affinity() if (name := f"cpu{number}") in rows] or [rows.get("cpu", [0] * 5)]
        every = sum(sum(ticks) for ticks in mine)
        return every - sum(ticks[3] + ticks[4] for ticks in mine), every  # the 4th and 5th are idle time

    def _stat(self) -> list[str]:
        return [line for line in _lines(self._root / "proc/stat") if line.startswith("cpu")]


def memory_limit(*, root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its tools may use together: the machine's, or less by cgroup."""
    return min([_meminfo("MemTotal", root) or _physical_memory(), *(limit for limit, _ in _memory_groups(root))])


def memory_available(*, root: Path = Path("/")) -> int:
    """Bytes of memory that are free now, or can be freed by dropping cached files; never below 0."""
    free = _meminfo("MemAvailable", root) or _meminfo("MemTotal", root) or _physical_memory()
    return max(0, min([free, *(limit - used for limit, used in _memory_groups(root))]))


def child_environment(*, threads: int, home: Path, tmpdir: Path | None = None) -> dict[str, str]:
    """The whole environment of a tool: built from nothing, so that no token and no LLAMA_ARG_* reaches it.

    GOMP_SPINCOUNT=0 lets OpenMP's threads sleep at a barrier instead of spinning: RWKV has very many small operations,
    and on shared CPUs spinning made the same chunk ten times slower.
    """
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{SAFE_PATH}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "0",
    }
    if tmpdir is not None:
        environment["TMPDIR"] = str(tmpdir)
    return environment


def _affinity() -> set[int]:
    """Numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, innermost first, up to the root of each hierarchy."""
    mounts = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, inside = line.split(":", 2)
        if not controllers:  # version 2; beside version 1 it is mounted as "unified"
            mount = mounts / "unified" if (mounts / "unified").is_dir() else mounts
        elif controller in controllers.split(","):
            mount = mounts / controllers if (mounts / controllers).is_dir() else mounts / controller
        else:
            continue
        path = PurePosixPath(inside)
        if ".." in path.parts:  # a group outside of this container's view
            path = PurePosixPath("/")
        for group in (path, *path.parents):
            yield mount / group.relative_to("/")


def _cpu_groups(root: Path) -> Iterator[tuple[Path, float | None]]:
    """(folder, CPUs that its quota allows; None: it has none) of each control group for the CPU, innermost first."""
    for folder in _groups("cpu", root):
        quota, period = _numbers(folder / "cpu.max", 2)  # v2: "max 100000" or "150000 100000", microseconds
        if quota is None:
            (quota,) = _numbers(folder / "cpu.cfs_quota_us", 1)  # v1: -1 is no limit
            (period,) = _numbers(folder / "cpu.cfs_period_us", 1)
        yield folder, quota / period if quota and period and quota > 0 and period > 0 else None


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot simply be dropped) of each control group that limits memory."""
    for folder in _groups("memory", root):
        for limit_name, used_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            (limit,) = _numbers(folder / limit_name, 1)
            if limit is not None and limit < _UNLIMITED:
                (used,) = _numbers(folder / used_name, 1)
                yield limit, max(0, (used or 0) - _keyed(folder / "memory.stat", cache_key))


def _meminfo(key: str, root: Path) -> int:
    return _keyed(root / "proc/meminfo", key + ":") * 1024  # the file counts in kB and means 1024 bytes


def _keyed(path: Path, key: str) -> int:
    for line in _lines(path):
        words = line.split()
        if len(words) > 1 and words[0] == key and words[1].isdigit():
            return int(words[1])
    return 0


def _numbers(path: Path, count: int) -> list[int | None]:
    """The first `count` words of a small file as integers; None for a word that is none, or missing."""
    words = " ".join(_lines(path)).split()[:count]
    found = [int(word) if word.lstrip("-").isdigit() else None for word in words]
    return found + [None] * (count - len(found))


def _lines(path: Path) -> list[str]:
    """Lines of a file of the kernel; none if it is absent, or not for us to read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
