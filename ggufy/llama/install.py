"""The pinned llama.cpp: found in the cache, or built there once.

llama.cpp comes inside the source package of llama-cpp-python, fetched by pip and checked by hash. It is built for this
CPU, so the folder is named after it: `<cache>/llama.cpp/<package version>-<machine>-<hash of CPU and flags>/`

    bin/           programs and shared libraries, side by side (they find each other by $ORIGIN)
    source/        the converter, its gguf-py and a chat template, as the package has them
    version.json   what it was made from, and how

Beside it lie `.lock`, `.log`, and while it is being built `.building`, which is renamed when all is well. A build that
was interrupted leaves `.building` behind, and the next one goes on from there. The lock is inherited by the compilers:
after a kill, the next build waits until the last of them is gone.

A job begins with few of the programs (`Pin.first`). `begin` returns when those are there; the others are built in a
thread meanwhile, and join them in `bin/`.

Instead of all this, `override` names somebody's own build, which is checked and used as it is. `build_portable` makes
such a folder from the same source for any CPU of this machine's kind: what an image carries (ggufy.llama.portable).
"""

from __future__ import annotations

import functools
import json
import logging
import platform
import re
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufy.core.errors import ToolError
from ggufy.core.messages import Message
from ggufy.llama import build, tools
from ggufy.llama.build import Progress, hold_build_lock
from ggufy.llama.cpu_name import cpu_name
from ggufy.llama.pin import CONVERTER, NOT_IN_RELEASES, PINNED, PORTABLE, Pin
from ggufy.llama.rest import Rest
from ggufy.llama.toolchain import find_toolchain
from ggufy.system import child_process, resources

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"^version: (\S+) \((?:.*commit )?([0-9a-f]{7,40})\)", re.MULTILINE)
_CANNOT_START = (126, 127)


@dataclass(frozen=True)
class Llama:
    """One llama.cpp: where its programs are, and which one it is."""

    bin: Path  # programs and shared libraries
    source: Path | None  # the converter and what it needs; None if somebody's own build came without
    version: str  # as the programs print it, "0.5.0-dev"
    commit: str  # short hash of llama.cpp's commit
    rest: Rest | None = field(default=None, compare=False)  # builds what is not there yet

    def tool(
        self,
        name: str,
        stopped: Callable[[], bool] | None = None,
        say: Callable[[str], None] = lambda reason: None,
    ) -> Path:
        """Path of a program, "llama-quantize" for example. One that is still being built is waited for, as
        `Rest.wait` says, and raises what that raises. Raises ToolError when this build lacks it."""
        path = self.bin / name
        if self.rest is not None and not path.is_file():
            self.rest.wait(stopped, say)
        if not path.is_file():
            raise ToolError(
                "{folder} has no {tool}: build that target too, or unset GGUFY_LLAMA_DIR.", folder=self.bin, tool=name
            )
        return path


def find(
    cache: Path,
    override: Path | None = None,
    *,
    types: Collection[str] = (),
    pin: Pin = PINNED,
    first: bool = False,
) -> Llama | None:
    """The llama.cpp to use, or None when it has to be built first; with `first`, what a job begins with is
    enough. Takes no time worth mentioning.

    With `override`, that build: it has every program, they start, and llama-quantize knows all of `types`, or
    ToolError is raised. Another version than the pinned one is used with a warning in the log.
    """
    if override is not None:
        return _check_override(override.absolute(), types=types, pin=pin)
    return _installed(installed_folder(cache, pin), pin.first if first else pin.tools, pin)


def ensure(
    cache: Path,
    *,
    threads: int,
    pip_environment: Mapping[str, str],
    override: Path | None = None,
    progress: Progress | None = None,
    types: Collection[str] = (),
    path: str | None = None,
    pin: Pin = PINNED,
    first: bool = False,
) -> Llama:
    """The llama.cpp to use, built first if need be: some minutes and about 0.4 GB, of which 25 MB stay. With `first`,
    only what a job begins with is built.

    `pip_environment` is the user's environment; only what pip needs is taken from it (`build.pip_variables`), and only
    pip gets it. `path` says where compilers are looked for, in place of the usual folders. A second caller waits for
    the first. Raises ToolError (no compiler, no cmake, no network, a wrong hash, a failed build), DiskError.
    """
    if found := find(cache, override, types=types, pin=pin, first=first):
        return found
    folder = installed_folder(cache, pin)
    environment = resources.child_environment(threads=threads, home=cache)
    if path is not None:
        environment["PATH"] = path
    _build(
        folder,
        pin=pin,
        tools=pin.first if first else pin.tools,
        cpu=cpu_name(pin.choices),
        threads=threads,
        environment=environment,
        pip_environment=pip_environment,
        report=progress or _silent,
    )
    found = find(cache, pin=pin, first=first)
    assert found is not None
    return found


def begin(
    cache: Path,
    *,
    threads: int,
    pip_environment: Mapping[str, str],
    override: Path | None = None,
    progress: Progress | None = None,
    types: Collection[str] = (),
    pin: Pin = PINNED,
) -> Llama:
    """As `ensure`, but returns when what a job begins with is there; `rest` of what it returns builds the others in a
    thread, unless they are there too."""

    made = functools.partial(
        ensure,
        cache,
        threads=threads,
        pip_environment=pip_environment,
        override=override,
        types=types,
        pin=pin,
    )
    llama = made(progress=progress, first=True)
    if override is not None or find(cache, pin=pin):
        return llama
    return replace(llama, rest=Rest(lambda report: made(progress=report)))


def build_portable(
    folder: Path,
    *,
    threads: int,
    pip_environment: Mapping[str, str],
    progress: Progress | None = None,
    pin: Pin = PORTABLE,
) -> Llama:
    """Builds a llama.cpp that runs on any CPU of this kind in `folder`, unless it is there, for GGUFY_LLAMA_DIR.

    It needs what the libraries of the compiler's system are (glibc, libstdc++, libgomp), and may be moved. Takes
    longer than `ensure`, since ggml is compiled for each generation of CPUs; raises the same errors.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _build(
        folder,
        pin=pin,
        tools=pin.tools,
        cpu=f"{platform.machine()}-any",
        threads=threads,
        environment=resources.child_environment(threads=threads, home=folder.parent),
        pip_environment=pip_environment,
        report=progress or _silent,
    )
    found = _installed(folder, pin.tools, pin)
    assert found is not None
    return found


def installed_folder(cache: Path, pin: Pin = PINNED) -> Path:
    """Where the build for this CPU is, or would be."""
    return cache / "llama.cpp" / f"{pin.version}-{cpu_name(pin.choices)}"


def version_of(folder: Path) -> tuple[str, str]:
    """(version, commit) that llama-imatrix in `folder` prints. Raises ToolError if it does not start or says neither.

    It writes `version: 0.5.0-dev (build 1, commit 0c1e57098)`; older ones write `version: 4567 (0c1e570)`.
    """
    text = _probe(folder / "llama-imatrix", "--version")
    match = _VERSION.search(text)
    if match is None:
        raise ToolError(
            "{path} --version names no commit: use a build of llama.cpp from git.", path=folder / "llama-imatrix"
        )
    return match[1], match[2]


def _installed(folder: Path, wanted: Collection[str], pin: Pin) -> Llama | None:
    """What `pin` made in `folder`; None if it is not there, lacks a wanted program, or is something else."""
    try:
        record = json.loads((folder / build.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made = (record.get("sha256"), record.get("choices")) == (pin.sha256, list(pin.choices))
    if not made or not all((folder / "bin" / tool).is_file() for tool in wanted):
        return None
    return Llama(folder / "bin", folder / "source", record["version"], record["commit"])


def _build(
    folder: Path,
    *,
    pin: Pin,
    tools: tuple[str, ...],
    cpu: str,
    threads: int,
    environment: Mapping[str, str],
    pip_environment: Mapping[str, str],
    report: Progress,
) -> None:
    """Makes `folder`, or waits for another process that does."""
    toolchain = find_toolchain(environment)
    with hold_build_lock(folder.with_name(folder.name + ".lock"), report) as lock:
        if _installed(folder, tools, pin):
            return
        logger.info("building llama.cpp %s in %s", pin.commit, folder)
        build.Build(
            pin=pin,
            tools=tools,
            adds=_installed(folder, pin.first, pin) is not None,
            folder=folder,
            cpu=cpu,
            toolchain=toolchain,
            environment=environment,
            pip_environment=pip_environment,
            threads=threads,
            lock=lock,
            report=report,
            probe=version_of,
        ).make()


def _check_override(folder: Path, *, types: Collection[str], pin: Pin) -> Llama:
    advice = Message("build it as llama.cpp's docs/build.md says, or unset GGUFY_LLAMA_DIR to let ggufy build its own")
    bins = [place for place in (folder, folder / "bin", folder / "build/bin") if (place / "llama-quantize").is_file()]
    if not bins:
        raise ToolError(
            "GGUFY_LLAMA_DIR is {folder}, which has no llama-quantize: {advice}.", folder=folder, advice=advice
        )
    help_text = ""
    for tool in pin.tools:
        if tool not in NOT_IN_RELEASES:
            if not (bins[0] / tool).is_file():
                raise ToolError(
                    "GGUFY_LLAMA_DIR is {folder}, which has no {tool}: {advice}.",
                    folder=bins[0],
                    tool=tool,
                    advice=advice,
                )
            text = _probe(bins[0] / tool, "--help")
            help_text = text if tool == "llama-quantize" else help_text
    if unknown := sorted(set(types) - tools.parse_quantize_help(help_text).keys()):
        raise ToolError(
            "llama-quantize in {folder} does not know {types}: use a newer llama.cpp.",
            folder=bins[0],
            types=", ".join(unknown),
        )
    version, commit = version_of(bins[0])
    if not build.same_commit(commit, pin.commit):
        logger.warning(
            "GGUFY_LLAMA_DIR has llama.cpp %s; ggufy is tested with %s, and results may differ", commit, pin.commit
        )
    near = [place for above in (bins[0], *bins[0].parents[:2]) for place in (above / "source", above)]
    sources = [place for place in near if (place / CONVERTER).is_file()]
    return Llama(bins[0], sources[0] if sources else None, version, commit)


def _probe(program: Path, option: str) -> str:
    """What a program prints for `option`; its exit code means nothing (llama-quantize --help ends with 1)."""
    environment = resources.child_environment(threads=1, home=program.parent)
    try:
        done = child_process.run([str(program), option], cwd=program.parent, env=environment)
    except subprocess.TimeoutExpired:
        raise ToolError(
            "{program} {option} did not end within a minute: build it again.", program=program, option=option
        ) from None
    if done.returncode < 0 or done.returncode in _CANNOT_START:
        reason = (
            tools.failure_reason(done.stdout)
            if done.stdout.strip()
            else Message("signal {number}", number=-done.returncode)
        )
        raise ToolError(
            "{program} does not start on this machine ({reason}): build llama.cpp on it again.",
            program=program,
            reason=reason,
        )
    return done.stdout


def _silent(done: int, total: int, text: str) -> None:
    """The progress of a caller who wants none."""
