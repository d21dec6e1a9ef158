"""Makes and tries the image without Docker: `python3.12 tools/space_image.py`, as root, on Debian or a relative of it.

Where there is no Docker, tools/image_root.py follows the Dockerfile line by line in folders. Then this file starts the
page the way a Space does, with no network at all, and looks at it, has the demo quantized, kills a job and lets the
next start finish it, and ends the page. If qemu-user-static is installed, the tools also run on emulated older CPUs.
It closes with what it saw, and with what it cannot show.

Nothing outside of --work is written, and all that was made there is found again by the next call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import dockerfile  # noqa: E402
from tools.image_root import Failed, Image, build, end, first_of, say  # noqa: E402

# What a Space adds to the image's own environment, and one thing it leaves to the image: SYSTEM.
SPACE = {"SPACE_ID": "somebody/ggufy", "SPACE_HOST": "somebody-ggufy.hf.space", "SPACE_AUTHOR_NAME": "somebody"}
PROGRAMS = ("debootstrap", "unshare", "nsenter", "chroot", "mount", "ip")
# Emulated CPUs, and the library with ggml's CPU code that fits each best.
CPUS = {"qemu64": "x64", "Nehalem": "sse42", "Haswell": "haswell"}
UNPROVEN = (
    "Docker's own builder and layers (this file follows the Dockerfile instead)",
    "the image python:3.12-slim (stood in for by the Debian and Python named above)",
    "a pull or a build on huggingface.co, the proxy in front of a Space, and its OAuth",
    "limits of memory and CPU set by cgroups, and a storage limit",
    "another kind of machine than this one (arm64)",
)


class Container:
    """A command in the image, its own if none is given, as process 1 and with no network."""

    def __init__(self, image: Image, extra: Mapping[str, str], command: Sequence[str] = ()):
        self.image, self.extra = image, extra
        words = [*image.entrypoint, *(command or image.command)]
        self.process = image.start(words, net=False, extra=extra, shown={})
        self.first = 0

    def find_first(self) -> int:
        """The number, on this machine, of the container's process 1; 0 if it has ended."""
        deadline = time.monotonic() + 10
        while not self.first and time.monotonic() < deadline and self.process.poll() is None:
            self.first = first_of(self.process)
            time.sleep(0.05)
        return self.first

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command inside as the image's user, as `docker exec` does."""
        uid, gid, _ = self.image.account()
        words = ["nsenter", f"--target={self.find_first()}", "--mount", "--net", "--pid", "--ipc", "--root"]
        inside = self.image.inside(command, self.extra)
        words += [f"--setuid={uid}", f"--setgid={gid}", *inside[inside.index("env") :]]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def python(self, code: str) -> str:
        """What a line of Python prints inside."""
        done = self.run(["python", "-c", code])
        if done.returncode:
            raise Failed(f"inside: {(done.stderr.strip() or 'no answer').splitlines()[-1]}")
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
        os.kill(self.find_first(), signal.SIGTERM)
        try:
            return self.process.wait(seconds), time.monotonic() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"the page did not end within {seconds:.0f} s of SIGTERM") from None


@contextlib.contextmanager
def container(image: Image, extra: Mapping[str, str], command: Sequence[str] = ()) -> Iterator[Container]:
    """A Container that is killed when the block ends, with all its processes."""
    running = Container(image, extra, command)
    try:
        yield running
    finally:
        end(running.process)


class Trial:
    """Looks at one thing after another; `proved` has a sentence for each. Raises Failed at the first that fails."""

    def __init__(self, image: Image):
        self.image = image
        self.proved: list[str] = []
        self.out = image.root / image.env["GGUFY_OUT"][1:]
        self.clean()

    def clean(self) -> None:
        """Removes what an earlier trial left."""
        shutil.rmtree(self.image.root / "tmp/demo", ignore_errors=True)
        for old in self.out.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()

    def holds(self, sentence: str, seen: object) -> None:
        if not seen:
            raise Failed(f"this does not hold: {sentence}")
        say(f"ok  {sentence}")
        self.proved.append(sentence)

    def as_a_space(self) -> None:
        """The page as a Space starts it, and a job beside it."""
        with container(self.image, SPACE) as space:
            seconds = space.wait(180)
            self.holds(f"GET / answers with 200 {seconds:.1f} s after the start", space.get()[1] > 10_000)
            self.surroundings(space)
            self.holds("the HEALTHCHECK succeeds", space.run(self.image.health).returncode == 0)
            doctor = space.run(["python", "-m", "ggufy", "doctor"])
            say(doctor.stdout.rstrip())
            self.holds("`python -m ggufy doctor` finds all well", doctor.returncode == 0)
            self.demo(space)
            self.holds("the page still answers", space.get()[0] == 200)
            code, seconds = space.end(60)
            self.holds(f"one SIGTERM ends it with exit code {code} in {seconds:.1f} s", code == 0)
        with container(self.image, SPACE | {"SYSTEM": ""}) as unsafe:
            self.holds(
                "on a Space without SYSTEM=spaces it refuses to start", unsafe.process.wait(60) not in (0, None)
            )

    def surroundings(self, space: Container) -> None:
        """Who runs what, with which rights."""
        cards = space.python("import socket; print(*(name for _, name in socket.if_nameindex()))")
        self.holds("there is no network inside: the only interface is lo", cards == "lo")
        self.holds("process 1 is tini", Path(f"/proc/{space.find_first()}/comm").read_text().strip() == "tini")
        status = Path(f"/proc/{space.find_first()}/status").read_text()
        self.holds("it runs as user 1000", re.search(r"^Uid:\t1000\t1000\t1000\t1000$", status, re.MULTILINE))
        found = space.python("import shutil; print(*filter(shutil.which, ('cc', 'gcc', 'c++', 'g++', 'clang')))")
        self.holds("there is no compiler", found == "")
        places = ("app.py", "ggufy", "/opt/llama.cpp/bin", "/usr/local")
        code = f"import os; print(*(place for place in {places} if os.access(place, os.W_OK)))"
        self.holds("its user can change neither the program nor the tools", space.python(code) == "")

    def demo(self, space: Container) -> None:
        """The demo, quantized by the command line."""
        began = time.monotonic()
        quantize = ["python", "-m", "ggufy", "quantize", "demo", "--types", "Q4_K_M,Q2_K", "--out", "/tmp/demo"]
        done = space.run(quantize)
        say(done.stdout.rstrip() if done.returncode == 0 else done.stderr.rstrip())
        seconds = time.monotonic() - began
        self.holds(f"the demo is quantized with no network, in {seconds:.0f} s", done.returncode == 0)
        code = (
            "import gguf, pathlib; print(*sorted(f'{p.name} has {len(gguf.GGUFReader(p).tensors)} tensors,' "
            "for p in pathlib.Path('/tmp/demo').rglob('*.gguf') if 'imatrix' not in p.name))"
        )
        made = space.python(code).rstrip(",")
        self.holds(f"gguf opens the files: {made}", "Q4_K_M" in made and "Q2_K" in made)

    def killed(self) -> None:
        """A job is killed with its container; the page of the next one finishes it by itself."""
        command = ["python", "-m", "ggufy", "quantize", "demo", "--types", "all"]
        with container(self.image, {}, command) as first:
            deadline = time.monotonic() + 300
            while len(list(self.out.rglob("*-Q*.gguf"))) < 3 and time.monotonic() < deadline:
                if first.process.poll() is not None:
                    raise Failed(f"the job ended with {first.process.poll()} before it could be killed")
                time.sleep(0.2)
        kept = {path: path.stat().st_ino for path in self.out.rglob("*-Q*.gguf")}
        self.holds(f"a job is killed after {len(kept)} of 29 quants", 3 <= len(kept) < 29)
        with container(self.image, {}) as second:
            began = time.monotonic()
            second.wait(180)
            status = "running"
            while status not in ("done", "failed", "cancelled") and time.monotonic() < began + 600:
                time.sleep(2)
                answer = second.run(["python", "-m", "ggufy", "status", "--json"])
                status = json.loads(answer.stdout)["jobs"][0]["status"] if answer.returncode == 0 else "unknown"
            seconds = time.monotonic() - began
            self.holds(f"the page of the next start finishes it by itself, in {seconds:.0f} s", status == "done")
        again = [path.name for path, inode in kept.items() if path.stat().st_ino != inode]
        self.holds("no quant that was finished is made again", not again)

    def cpus(self, emulator: str | None) -> None:
        """Which library with ggml's CPU code a tool loads here, and on emulated older CPUs."""
        seen = self.imatrix([], {})
        self.holds(f"on this CPU, llama-imatrix loads ggml's code for {seen or 'none'}", seen)
        for cpu, library in CPUS.items() if emulator else ():
            seen = self.imatrix(["/qemu", "-cpu", cpu], {str(emulator): "/qemu"})
            self.holds(f"on an emulated {cpu}, it loads the code for {seen or 'none'}", seen == library)

    def imatrix(self, before: Sequence[str], shown: Mapping[str, str]) -> str:
        """Runs llama-imatrix for one short chunk of the demo; the name of what it loaded, "" if it failed."""
        (source,) = (self.image.root / "tmp/demo").rglob("*-F16.gguf")
        (text,) = (self.image.root / self.image.env["GGUFY_CACHE"][1:]).rglob("texts/own-*/calibration.txt")
        model, words = (f"/{path.relative_to(self.image.root)}" for path in (source, text))
        command = [*before, f"{self.image.env['GGUFY_LLAMA_DIR']}/bin/llama-imatrix", "-m", model, "-f", words]
        command += ["-o", "/tmp/demo/trial.gguf", "--chunks", "1", "-c", "64", "-t", "2", "-lv", "4"]
        process = self.image.start(command, net=False, extra={}, shown=shown, output=subprocess.PIPE)
        told = process.communicate()[0].decode(errors="replace")
        for place in shown.values():
            (self.image.root / place[1:]).unlink()
        loaded = re.findall(r"loaded CPU backend from \S*libggml-cpu-([\w.]+)\.so", told)
        if process.returncode or len(loaded) != 1:
            say("\n".join(told.splitlines()[-12:]))
            return ""
        return str(loaded[0])


def size_of(folder: Path) -> str:
    du = subprocess.run(["du", "-sxB1", str(folder)], capture_output=True, text=True, check=True)
    return f"{int(du.stdout.split()[0]) / 1e9:.2f} GB"


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
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        parser.error(f"no {', '.join(missing)} here: apt-get install debootstrap util-linux iproute2")
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
        earlier = [f"{stage.name}'s first {done[stage.name].reused}" for stage in stages if done[stage.name].reused]
        say(f"built in {minutes:.1f} min on {os.cpu_count()} cores: {size_of(image.root)}")
        say(f"  {size_of(image.root / 'opt/llama.cpp')} of it llama.cpp")
        say(f"  instructions followed by an earlier call: {' and '.join(earlier) or 'none'}")
        trial = Trial(image)
        trial.as_a_space()
        emulator = shutil.which("qemu-x86_64-static") if os.uname().machine == "x86_64" else None
        trial.cpus(emulator)
        trial.killed()
        trial.clean()
    except (Failed, dockerfile.DockerfileError) as error:
        say(f"FAILED: {error}")
        return 1
    python = ".".join(map(str, sys.version_info[:3]))
    say(f"\nProved on Debian {debian} with Python {python}, {os.uname().machine}:")
    say("\n".join(f"  - {sentence}" for sentence in trial.proved))
    older = () if emulator else ("older CPUs than this one (install qemu-user-static for that)",)
    say("Not proved here:\n" + "\n".join(f"  - {sentence}" for sentence in (*UNPROVEN, *older)))
    say(f"{len(trial.proved)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
