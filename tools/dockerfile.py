"""Reads a Dockerfile and a .dockerignore: the instructions that ours uses, and an error for any other.

`parse` gives stages of instructions; the functions below it take an instruction's text apart. What Docker would do
with more options than are known here is not guessed: DockerfileError says what is not known.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KNOWN = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN USER WORKDIR".split()
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class DockerfileError(ValueError):
    """Something in the Dockerfile that is wrong, or not known here."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str  # in capitals
    text: str  # what follows the name
    line: int  # where it starts, from 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What stands between one FROM and the next."""

    image: str
    name: str  # as AS gives it, or its number
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """COPY: `sources` from the folder of the Dockerfile, or from the stage `stage`."""

    sources: tuple[str, ...]
    target: str
    stage: str | None


def instructions(text: str) -> list[Instruction]:
    """The instructions in order. Raises DockerfileError for one that is not KNOWN."""
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue  # Docker takes comments out of continued lines as well
        start = start if parts else number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        name, _, rest = " ".join(parts).partition(" ")
        if name not in KNOWN:
            raise DockerfileError(f"line {start}: {name} is not known here; known are {', '.join(KNOWN)}")
        found.append(Instruction(name=name, text=rest.strip(), line=start))
        parts = []
    if parts:
        raise DockerfileError(f"line {start}: the last line is continued")
    return found


def parse(text: str) -> list[Stage]:
    """The stages; each begins with its FROM, which is not among its instructions."""
    stages: list[Stage] = []
    for instruction in instructions(text):
        if instruction.name == "FROM":
            match = re.fullmatch(r"([\w.:/-]+)(?: AS (\w+))?", instruction.text)
            if match is None:
                raise DockerfileError(f"line {instruction.line}: FROM IMAGE [AS NAME] is what is known here")
            stages.append(Stage(image=match[1], name=match[2] or str(len(stages)), instructions=()))
        elif not stages:
            raise DockerfileError(f"line {instruction.line}: {instruction.name} before the first FROM")
        else:
            last = stages.pop()
            stages.append(Stage(image=last.image, name=last.name, instructions=(*last.instructions, instruction)))
    return stages


def expand(text: str, values: Mapping[str, str]) -> str:
    """$NAME and ${NAME} replaced; an unknown name is empty, as Docker has it."""
    return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)


def pairs(instruction: Instruction, values: Mapping[str, str]) -> dict[str, str]:
    """Of ENV and ARG: NAME=value …, each value expanded; an ARG without a value is left out."""
    found = {}
    for word in shlex.split(instruction.text):
        name, equals, value = word.partition("=")
        if equals:
            found[name] = expand(value, values)
        elif instruction.name == "ENV":
            raise DockerfileError(f"line {instruction.line}: ENV NAME=value is what is known here")
    return found


def copy(instruction: Instruction) -> Copy:
    """COPY [--from=STAGE] SOURCE… TARGET."""
    words = instruction.text.split()
    options = [word for word in words if word.startswith("--")]
    *sources, target = [word for word in words if not word.startswith("--")]
    unknown = [option for option in options if not option.startswith("--from=")]
    if unknown or not sources or any(set(word) & set("*?[$") for word in words):
        raise DockerfileError(f"line {instruction.line}: COPY [--from=STAGE] SOURCE… TARGET is what is known here")
    if len(sources) > 1 and not target.endswith("/"):
        raise DockerfileError(f"line {instruction.line}: several sources need a target that ends in /")
    return Copy(sources=tuple(sources), target=target, stage=options[0][7:] if options else None)


def command(instruction: Instruction) -> list[str]:
    """Of CMD, ENTRYPOINT, and HEALTHCHECK … CMD: the words, which must be a JSON list (the form without a shell)."""
    text = instruction.text.partition("CMD ")[2] if instruction.name == "HEALTHCHECK" else instruction.text
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DockerfileError(f'line {instruction.line}: {instruction.name} ["program", "word"] is what is known here')
    return words


@dataclass(frozen=True)
class Ignore:
    """A .dockerignore: the last rule that fits a path, or a folder above it, decides."""

    rules: tuple[tuple[bool, re.Pattern[str]], ...]  # (left out, what it fits)

    @classmethod
    def read(cls, path: Path) -> Ignore:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        rules = []
        for line in lines:
            if line and not line.startswith("#"):
                pattern = re.escape(line.removeprefix("!").strip("/"))
                pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
                rules.append((not line.startswith("!"), re.compile(pattern + "(?:/.*)?")))
        return cls(tuple(rules))

    def __call__(self, path: PurePosixPath) -> bool:
        left_out = False
        for verdict, pattern in self.rules:
            if pattern.fullmatch(path.as_posix()):
                left_out = verdict
        return left_out


def sent(folder: Path, ignore: Ignore, source: str) -> list[PurePosixPath]:
    """The files that COPY source brings: of a folder all below it that are not ignored, or the file itself."""
    origin = folder / source
    files = sorted(path for path in origin.rglob("*") if path.is_file()) if origin.is_dir() else [origin]
    names = [PurePosixPath(path.relative_to(folder).as_posix()) for path in files]
    return [name for name in names if (folder / name).exists() and not ignore(name)]
