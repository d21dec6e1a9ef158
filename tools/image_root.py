"""The image in folders: what the Dockerfile's instructions make, with chroot and namespaces in place of Docker.

`base` is a stand-in for the image `python:3.12-slim`: a fresh Debian made by debootstrap, with this very Python copied
to /usr/local. `build` follows one stage on a copy of it; RUN is a shell in a chroot with its own namespaces, with the
network and this machine's settings for apt and pip. `Image.start` runs a command in what came out. Python 3.12, root,
debootstrap, util-linux and iproute2 are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools import dockerfile
from tools.dockerfile import Ignore, Instruction, Stage

SUITE = "trixie"  # what python:3.12-slim is made from, and the libraries that its Python needs
LIBRARIES = (
    "ca-certificates netbase tzdata libssl3t64 libffi8 libreadline8t64 libsqlite3-0 libbz2-1.0 liblzma5 zlib1g "
    "libnsl2 libuuid1 libexpat1 libncursesw6 libcrypt1"
).split()
BASE_ENV = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# Before the root is entered: what a container gets. $1 root, $2 "net" or "", then the files to show inside it.
_ENTER = """set -e
root=$1; net=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind -o ro /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"; mkdir -m 1777 "$root/dev/shm"
[ "$net" ] || ip link set lo up
while [ "$1" != -- ]; do
    [ -e "$root$2" ] || { mkdir -p "$root${2%/*}"; touch "$root$2"; }
    mount --bind -o ro "$1" "$root$2"; shift 2
done
shift
exec "$@"
"""


class Failed(Exception):
    """A sentence that says what does not hold."""


@dataclass
class Image:
    """A root folder, and what the instructions so far have set."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: dict(BASE_ENV))
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    key: str = ""  # a hash of all that led here
    reused: int = 0  # instructions that an earlier call had followed

    def account(self) -> tuple[int, int, str]:
        """(uid, gid, home) of `user` in the image's own list."""
        for line in (self.root / "etc/passwd").read_text(encoding="utf-8").splitlines():
            name, _, uid, gid, _, home, _ = line.split(":")
            if self.user in (name, uid):
                return int(uid), int(gid), home
        raise Failed(f"USER {self.user} is not in the image")

    def inside(self, command: Sequence[str], extra: Mapping[str, str]) -> list[str]:
        """The words that run a command in the root, as its user, from its WORKDIR, with its environment."""
        uid, gid, home = self.account()
        env = {"HOME": home, **self.env, **extra}
        words = ["chroot", f"--userspec={uid}:{gid}", f"--groups={gid}", str(self.root)]
        return [*words, "env", "-i", "-C", self.workdir, *(f"{k}={v}" for k, v in env.items()), *command]

    def start(
        self,
        command: Sequence[str],
        *,
        net: bool,
        extra: Mapping[str, str],
        shown: Mapping[str, str],
        output: int | None = None,
    ) -> Process:
        """Starts a command as process 1 of namespaces of its own. `shown`: files of this machine -> places there."""
        spaces = ["--mount", "--pid", "--ipc", "--uts", *([] if net else ["--net"])]
        files = [word for pair in shown.items() for word in pair]
        enter = ["sh", "-c", _ENTER, "enter", str(self.root), "net" if net else "", *files, "--"]
        words = ["unshare", *spaces, "--fork", "--kill-child", *enter, *self.inside(command, extra)]
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT if output else None)


Process = subprocess.Popen[bytes]


def base(work: Path, image: str) -> Path:
    """The stand-in for `image`, made once: Debian by debootstrap, and this Python in /usr/local."""
    version = "{}.{}".format(*sys.version_info)
    if image != f"python:{version}-slim":
        raise Failed(f"the Dockerfile starts from {image}: run this with the Python of that version, not {version}")
    place, part = work / "base", work / "base.part"
    if place.exists():
        return place
    shutil.rmtree(part, ignore_errors=True)
    sites = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    mirror = subprocess.run(sites, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    with (work / "debootstrap.log").open("w") as log:
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(LIBRARIES)}", SUITE, str(part), mirror]
        subprocess.run(words, check=True, stdout=log, stderr=log)
    left = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "site-packages", "*.a"
    )  # as that image leaves them out
    shutil.copytree(sys.base_prefix, part / "usr/local", symlinks=True, ignore=left, dirs_exist_ok=True)
    setup = (
        "ldconfig && python3 -m ensurepip && ln -sf pip3 /usr/local/bin/pip && ln -sf python3 /usr/local/bin/python"
    )
    run(Image(part), setup, step="base")
    part.rename(place)
    return place


def run(image: Image, script: str, *, step: str) -> None:
    """RUN: a shell with the network. apt and pip are set up as on this machine, for the time of this command."""
    shown = {place: place for place in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf") if Path(place).exists()}
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for certificates in {settings[name] for name in ("PIP_CERT",) if name in settings}:
        shown[certificates] = certificates
    blanks = [image.root / place[1:] for place in shown if not (image.root / place[1:]).exists()]
    process = image.start(["sh", "-c", script], net=True, extra=image.arguments | settings, shown=shown)
    try:
        code = process.wait()
    finally:
        end(process)
        for blank in blanks:
            blank.unlink(missing_ok=True)
    if code:
        raise Failed(f"{step} ended with {code}")


def build(stage: Stage, *, work: Path, context: Path, given: Mapping[str, str], done: dict[str, Image]) -> Image:
    """Follows one stage. Instructions that were done in an earlier call and are the same are not done again."""
    start = base(work, stage.image)
    root, notes = work / f"stage-{stage.name}", work / f"stage-{stage.name}.json"
    known: list[str] = json.loads(notes.read_text()) if notes.exists() and root.exists() else []
    keys = plan_keys(stage, context=context, given=given, done=done)
    if known != keys[: len(known)]:
        known = []
    was = len(known)
    if not known:
        notes.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(start), str(root)], check=True)
    image = Image(root)
    for number, (instruction, key) in enumerate(zip(stage.instructions, keys, strict=True)):
        began, kept = time.monotonic(), number < len(known)
        step = f"{stage.name} line {instruction.line}: {instruction.name} {shorten(instruction.text)}"
        say(f"{step}{' (done before)' if kept and instruction.name in ('RUN', 'COPY') else ''}")
        follow(image, instruction, context=context, given=given, done=done, again=not kept, step=step)
        if not kept:
            known.append(key)
            notes.write_text(json.dumps(known))
        if not kept and instruction.name == "RUN":
            say(f"    {time.monotonic() - began:.0f} s")
    image.key, image.reused = keys[-1], was
    return image


def plan_keys(stage: Stage, *, context: Path, given: Mapping[str, str], done: Mapping[str, Image]) -> list[str]:
    """For each instruction, a hash of it, of what came before, and of what it copies."""
    keys, ignore = [], Ignore.read(context / ".dockerignore")
    digest = hashlib.sha256(f"{stage.image} {sorted(given.items())}".encode())
    for instruction in stage.instructions:
        digest.update(f"{instruction.name} {instruction.text}\n".encode())
        if instruction.name == "COPY":
            what = dockerfile.copy(instruction)
            if what.stage is not None:
                digest.update(done[what.stage].key.encode())
            else:
                for name in (name for source in what.sources for name in dockerfile.sent(context, ignore, source)):
                    digest.update(f"{name}\n".encode() + (context / name).read_bytes())
        keys.append(digest.hexdigest())
    return keys


def follow(
    image: Image,
    instruction: Instruction,
    *,
    context: Path,
    given: Mapping[str, str],
    done: Mapping[str, Image],
    again: bool,
    step: str,
) -> None:
    """One instruction; what changes files is done only if `again`."""
    values = image.env | image.arguments
    match instruction.name:
        case "ENV":
            image.env |= dockerfile.pairs(instruction, values)
        case "ARG":
            declared = dockerfile.pairs(instruction, values)
            image.arguments |= {name: given.get(name, value) for name, value in declared.items()}
        case "USER":
            image.user = instruction.text
            image.account()
        case "WORKDIR":
            image.workdir = str(Path(image.workdir) / dockerfile.expand(instruction.text, values))
            (image.root / image.workdir[1:]).mkdir(parents=True, exist_ok=True)
        case "ENTRYPOINT":
            image.entrypoint = dockerfile.command(instruction)
        case "CMD":
            image.command = dockerfile.command(instruction)
        case "HEALTHCHECK":
            image.health = dockerfile.command(instruction)
        case "COPY" if again:
            place(image, dockerfile.copy(instruction), context=context, done=done)
        case "RUN" if again:
            run(image, instruction.text, step=step)


def place(image: Image, what: dockerfile.Copy, *, context: Path, done: Mapping[str, Image]) -> None:
    """COPY: the contents of a folder, or files into a folder whose name ends in /; root owns what is copied."""
    target = image.root / str(Path(image.workdir) / what.target)[1:]
    if not target.resolve().is_relative_to(image.root.resolve()):
        raise Failed(f"COPY to {what.target} leads out of the image")
    for source in what.sources:
        if what.stage is not None:
            shutil.copytree(done[what.stage].root / source.lstrip("/"), target, symlinks=True, dirs_exist_ok=True)
            continue
        names = dockerfile.sent(context, Ignore.read(context / ".dockerignore"), source)
        if not names:
            raise Failed(f"COPY finds no {source}: it is not there, or .dockerignore leaves it out")
        for name in names:
            folder = (context / source).is_dir()
            file = target / name.relative_to(source) if folder else target / name.name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(context / name, file)
            os.chown(file, 0, 0)


def first_of(process: Process) -> int:
    """The number, on this machine, of process 1 of the namespaces that `process` made; 0 if it has ended."""
    try:
        return int((Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or ["0"])[0])
    except FileNotFoundError:
        return 0


def end(process: Process) -> None:
    """Kills all that runs in the namespaces: the kernel ends it with their process 1.

    unshare's own --kill-child does not reach a process that has become another user since.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first_of(process) or process.pid, signal.SIGKILL)
        process.wait()


def say(text: str) -> None:
    """One line for who watches."""
    print(text, flush=True)


def shorten(text: str) -> str:
    return text if len(text) < 90 else text[:87] + "..."
