"""Makes and tries the image without Docker: `python3.12 tools/space_image.py`, as root, on Debian or a relative of it.

Where there is no Docker, this follows the Dockerfile line by line in folders: a fresh Debian made by debootstrap, with
this very Python copied to /usr/local, stands in for the image `python:3.12-slim`; RUN is a shell in a chroot with
namespaces of its own. Then it starts the page the way a Space does, with no network at all, and looks at it, has the
demo quantized, and ends it. The Dockerfile is read by tools/dockerfile.py, so the two cannot drift apart.

Nothing outside of --work is written. The network is used by debootstrap and RUN only, with this machine's settings
for apt and pip. Needs debootstrap, util-linux and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import dockerfile  # noqa: E402
from tools.dockerfile import Ignore, Instruction, Stage  # noqa: E402

SUITE = "trixie"  # what python:3.12-slim is made from, and the libraries that its Python needs
LIBRARIES = (
    "ca-certificates netbase tzdata libssl3t64 libffi8 libreadline8t64 libsqlite3-0 libbz2-1.0 liblzma5 zlib1g "
    "libnsl2 libuuid1 libexpat1 libncursesw6 libcrypt1"
).split()
BASE_ENV = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# What a Space adds to the image's own environment, and one thing it leaves to the image: SYSTEM.
SPACE = {"SPACE_ID": "somebody/ggufy", "SPACE_HOST": "somebody-ggufy.hf.space", "SPACE_AUTHOR_NAME": "somebody"}
UNPROVEN = (
    "Docker's own builder and layers (this file follows the Dockerfile instead)",
    "the image python:3.12-slim (stood in for by the Debian and Python named above)",
    "a pull or a build on huggingface.co, the proxy in front of a Space, and its OAuth",
    "limits of memory and CPU set by cgroups, and a storage limit",
    "another kind of machine than this one (arm64)",
)
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
        env = {"HOME": home} | self.env | extra
        words = ["chroot", f"--userspec={uid}:{gid}", f"--groups={gid}", str(self.root)]
        return [*words, "env", "-i", "-C", self.workdir, *(f"{k}={v}" for k, v in env.items()), *command]

    def start(
        self, command: Sequence[str], *, net: bool, extra: Mapping[str, str], shown: Mapping[str, str]
    ) -> Process:
        """Starts a command as process 1 of namespaces of its own. `shown`: files of this machine -> places there."""
        spaces = ["--mount", "--pid", "--ipc", "--uts", *([] if net else ["--net"])]
        files = [word for pair in shown.items() for word in pair]
        enter = ["sh", "-c", _ENTER, "enter", str(self.root), "net" if net else "", *files, "--"]
        return subprocess.Popen(["unshare", *spaces, "--fork", "--kill-child", *enter, *self.inside(command, extra)])


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
        process.kill()
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
    image.key = keys[-1]
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


# ---- the trial


class Container:
    """The image's own command, running with no network."""

    def __init__(self, image: Image, extra: Mapping[str, str]):
        self.image, self.extra = image, extra
        self.process = image.start([*image.entrypoint, *image.command], net=False, extra=extra, shown={})
        self.first = 0

    def find_first(self) -> int:
        """The number, on this machine, of the container's process 1."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + 10
        while not self.first and time.monotonic() < deadline and self.process.poll() is None:
            self.first = int((children.read_text().split() or ["0"])[0])
            time.sleep(0.05)
        return self.first

    def run(self, command: Sequence[str], *, user: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as `docker exec` does."""
        uid, gid, _ = self.image.account() if user else (0, 0, "")
        words = ["nsenter", f"--target={self.find_first()}", "--mount", "--net", "--pid", "--ipc", "--root"]
        inside = self.image.inside(command, self.extra)
        words += [f"--setuid={uid}", f"--setgid={gid}", *inside[inside.index("env") :]]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def python(self, code: str) -> str:
        done = self.run(["python", "-c", code])
        if done.returncode:
            raise Failed(f"inside: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout.strip()

    def get(self) -> tuple[int, int]:
        """(status, bytes) of GET /, asked from inside; (0, 0) if nothing answers."""
        address = "http://127.0.0.1:7860/"
        code = f"import urllib.request as r; a = r.urlopen({address!r}, timeout=5); print(a.status, len(a.read()))"
        done = self.run(["python", "-c", code])
        return (0, 0) if done.returncode else (int(done.stdout.split()[0]), int(done.stdout.split()[1]))

    def wait(self, seconds: float) -> float:
        """Seconds until GET / is answered."""
        began = time.monotonic()
        while self.process.poll() is None and time.monotonic() - began < seconds:
            if self.find_first() and self.get()[0] == 200:
                return time.monotonic() - began
            time.sleep(0.2)
        raise Failed(f"the page did not answer within {seconds:.0f} s (it ended with {self.process.poll()})")

    def end(self, seconds: float) -> tuple[int, float]:
        """(exit code, seconds) after one SIGTERM to process 1, as `docker stop` sends it."""
        began = time.monotonic()
        os.kill(self.find_first(), 15)
        try:
            return self.process.wait(seconds), time.monotonic() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"the page did not end within {seconds:.0f} s of SIGTERM") from None


@contextlib.contextmanager
def container(image: Image, extra: Mapping[str, str]) -> Iterator[Container]:
    running = Container(image, extra)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def prove(image: Image) -> list[str]:
    """Tries the image; each line says what was seen. Raises Failed at the first thing that does not hold."""
    proved = []

    def holds(sentence: str, seen: object = True) -> None:
        if not seen:
            raise Failed(f"this does not hold: {sentence}")
        say(f"ok  {sentence}")
        proved.append(sentence)

    with container(image, SPACE) as space:
        seconds = space.wait(180)
        holds(f"GET / answers with 200 {seconds:.1f} s after the start, {space.get()[1]:,} bytes")
        cards = space.python("import socket; print(*(name for _, name in socket.if_nameindex()))")
        holds("there is no network inside: the only interface is lo", cards == "lo")
        who = space.python("import pathlib; print(pathlib.Path('/proc/1/comm').read_text().strip())")
        holds("process 1 is tini", who == "tini")
        status = Path(f"/proc/{space.find_first()}/status").read_text()
        holds("it runs as user 1000", re.search(r"^Uid:\t1000\t1000\t1000\t1000$", status, re.MULTILINE))
        found = space.python(
            "import shutil; print([c for c in ('cc', 'gcc', 'g++', 'clang', 'c++') if shutil.which(c)])"
        )
        holds("there is no compiler", found == "[]")
        denied = space.run(
            ["sh", "-c", "for f in app.py ggufy /opt/llama.cpp/bin /usr/local/lib; do [ ! -w $f ] || exit 1; done"]
        )
        holds("its user can change neither the program nor the tools", denied.returncode == 0)
        holds("the HEALTHCHECK succeeds", space.run(image.health).returncode == 0)
        doctor = space.run(["python", "-m", "ggufy", "doctor"])
        say(doctor.stdout.rstrip())
        holds("`python -m ggufy doctor` finds all well", doctor.returncode == 0)
        began = time.monotonic()
        quantize = ["python", "-m", "ggufy", "quantize", "demo", "--types", "Q4_K_M,Q2_K", "--out", "/tmp/demo"]
        demo = space.run(quantize)
        say(demo.stdout.rstrip() + demo.stderr.rstrip() if demo.returncode else demo.stdout.rstrip())
        holds(f"the demo is quantized with no network, in {time.monotonic() - began:.0f} s", demo.returncode == 0)
        made = space.python(
            "import gguf, pathlib; print(*sorted(f'{p.name}:{len(gguf.GGUFReader(p).tensors)}' "
            "for p in pathlib.Path('/tmp/demo').rglob('*.gguf')))"
        )
        holds(f"the files open, with so many tensors: {made}", "Q4_K_M" in made and "Q2_K" in made)
        holds("the page still answers", space.get()[0] == 200)
        code, seconds = space.end(60)
        holds(f"one SIGTERM ends it with exit code {code} in {seconds:.1f} s", code == 0)
    with container(image, SPACE | {"SYSTEM": ""}) as unsafe:
        holds("on a Space without SYSTEM=spaces it refuses to start", unsafe.process.wait(60) not in (0, None))
    return proved


# ---- the command


def say(text: str) -> None:
    print(text, flush=True)


def shorten(text: str) -> str:
    return text if len(text) < 90 else text[:87] + "..."


def size_of(folder: Path) -> str:
    kilobytes = int(
        subprocess.run(["du", "-skx", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    return f"{kilobytes / 1e6:.2f} GB"


def main() -> int:
    parser = argparse.ArgumentParser(description="Follows the Dockerfile without Docker, and tries what comes out.")
    parser.add_argument(
        "--work", type=Path, default=Path("/var/tmp/ggufy-image"), help="folder for all of it (%(default)s)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin with an empty folder, the stand-in for the image apart"
    )
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build has it"
    )
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("chroot needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is ended
    args.work.mkdir(parents=True, exist_ok=True)
    for old in args.work.glob("stage-*") if args.fresh else ():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    began = time.monotonic()
    given = dict(word.split("=", 1) for word in args.build_arg)
    done: dict[str, Image] = {}
    try:
        stages = dockerfile.parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
        for stage in stages:
            done[stage.name] = build(stage, work=args.work, context=ROOT, given=given, done=done)
        image = done[stages[-1].name]
        debian = (image.root / "etc/debian_version").read_text().strip()
        minutes = (time.monotonic() - began) / 60
        say(f"built in {minutes:.1f} min on {os.cpu_count()} cores: {size_of(image.root)}, "
            f"{size_of(image.root / 'opt/llama.cpp')} of it llama.cpp")  # fmt: skip
        proved = prove(image)
    except (Failed, dockerfile.DockerfileError) as error:
        say(f"FAILED: {error}")
        return 1
    python = ".".join(map(str, sys.version_info[:3]))
    say(f"\nProved on Debian {debian} with Python {python}, {os.uname().machine}:")
    say("\n".join(f"  - {sentence}" for sentence in proved))
    say("Not proved here:\n" + "\n".join(f"  - {sentence}" for sentence in UNPROVEN))
    say(f"{len(proved)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
