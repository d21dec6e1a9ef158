"""What tools/image.py looks at in the image that it built: containers of buildah, with no network inside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# What a Space adds to the image's own environment, and one thing it leaves to the image: SYSTEM.
SPACE = {"SPACE_ID": "somebody/ggufy", "SPACE_HOST": "somebody-ggufy.hf.space", "SPACE_AUTHOR_NAME": "somebody"}
_ENDED = {"done", "failed", "cancelled"}
_CHROOT = ("buildah", "run", "--isolation", "chroot")


class Failed(Exception):
    """A sentence that says what does not hold."""


def say(text: str) -> None:
    print(text, flush=True)


def run(*words: object, check: bool = True) -> str:
    """What a command prints. Raises Failed with its last words."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise Failed(f"{' '.join(map(str, words[:4]))} … ended with {done.returncode}: {last}")
    return done.stdout.strip()


def buildah(*words: object) -> str:
    return run("buildah", *words)


class Container:
    """One of buildah's, with a command in namespaces of its own: no network, own processes."""

    def __init__(self, name: str, extra: Mapping[str, str], command: Sequence[str]):
        self.name = name
        self.env = [f"--env={key}={value}" for key, value in extra.items()]
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *_CHROOT, *self.env, name, "--", *command]
        apart = ["unshare", "--net", "--pid", "--ipc", "--mount-proc", "--fork", "--kill-child"]
        self.process = subprocess.Popen([*apart, *inside], stdin=subprocess.DEVNULL)

    def find(self, program: str) -> int:
        """The number, on this machine, of the first of its processes with that name; 0 if there is none."""
        mine = {self.process.pid}
        for _ in range(8):
            for status in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    _, name, rest = re.split(r" \((.*)\) ", status.read_text(), maxsplit=1)
                    if int(rest.split()[1]) in mine:
                        mine.add(int(status.parent.name))
                        if name == program:
                            return int(status.parent.name)
        return 0

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command inside as the image's user, as `docker exec` does."""
        near = ["nsenter", f"--target={self.find('sh') or self.find('buildah')}", "--net", "--pid", "--ipc", "--mount"]
        words = [*near, *_CHROOT, *self.env, self.name, "--", *command]
        return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def python(self, code: str) -> str:
        """What a line of Python prints inside."""
        done = self.run(["python", "-c", code])
        if done.returncode:
            raise Failed(f"inside: {(done.stderr.strip() or 'no answer').splitlines()[-1]}")
        return done.stdout.strip()

    def answer(self) -> int:
        """Bytes of a good answer to GET /, asked from inside; 0 if there is none."""
        code = "import urllib.request as r; print(len(r.urlopen('http://127.0.0.1:7860/', timeout=5).read()))"
        done = self.run(["python", "-c", code])
        return int(done.stdout) if done.returncode == 0 else 0

    def wait(self, seconds: float) -> float:
        """Seconds until GET / is answered."""
        began = time.monotonic()
        while self.process.poll() is None and time.monotonic() - began < seconds:
            if self.answer():
                return time.monotonic() - began
            time.sleep(0.2)
        raise Failed(f"the page did not answer within {seconds:.0f} s (it ended with {self.process.poll()})")

    def end(self, seconds: float) -> tuple[int, float]:
        """(exit code, seconds) after one SIGTERM to the first process, as `docker stop` sends it."""
        began = time.monotonic()
        os.kill(self.find("tini"), signal.SIGTERM)
        try:
            return self.process.wait(seconds), time.monotonic() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"the page did not end within {seconds:.0f} s of SIGTERM") from None


class Trial:
    """Looks at one thing after another; `proved` has a sentence for each. Raises Failed at the first that fails."""

    def __init__(self, image: str):
        self.image = image
        self.proved: list[str] = []
        [facts] = json.loads(run("buildah", "images", "--json", image))
        self.size = facts["size"]
        config: dict[str, Any] = json.loads(run("buildah", "inspect", "--type", "image", image))["Docker"]["config"]
        self.starts = [*config["Entrypoint"], *config["Cmd"]]
        self.health = [str(word) for word in config["Healthcheck"]["Test"][1:]]
        self.user = config["User"]

    def holds(self, sentence: str, seen: object) -> None:
        if not seen:
            raise Failed(f"this does not hold: {sentence}")
        say(f"ok  {sentence}")
        self.proved.append(sentence)

    def whole(self) -> None:
        self.holds(f"the image has {self.size}", self.size)
        with self.disk() as name:
            self.as_a_space(name)
        with self.disk() as name:
            self.killed(name)

    @contextlib.contextmanager
    def disk(self) -> Iterator[str]:
        """A new container's name: its disk stays between the runs in it."""
        name = buildah("from", self.image)
        try:
            yield name
        finally:
            buildah("rm", name)

    @contextlib.contextmanager
    def running(self, name: str, extra: Mapping[str, str], command: Sequence[str] = ()) -> Iterator[Container]:
        """A Container that is killed when the block ends, with all its processes."""
        container = Container(name, extra, command or self.starts)
        try:
            yield container
        finally:
            container.process.kill()
            container.process.wait()

    def as_a_space(self, name: str) -> None:
        """The page as a Space starts it, and a job and a reply beside it."""
        with self.running(name, SPACE) as space:
            seconds = space.wait(180)
            self.holds(f"GET / is answered {seconds:.1f} s after the start", space.answer() > 10_000)
            self.surroundings(space)
            self.holds("the HEALTHCHECK succeeds", space.run(self.health).returncode == 0)
            doctor = space.run(["python", "-m", "ggufy", "doctor"])
            self.holds("`python -m ggufy doctor` finds all well", doctor.returncode == 0)
            self.demo(space)
            self.holds("the page still answers", space.answer())
            code, seconds = space.end(60)
            self.holds(f"one SIGTERM ends it with exit code {code} in {seconds:.1f} s", code == 0)
        with self.running(name, SPACE | {"SYSTEM": ""}) as unsafe:
            refused = unsafe.process.wait(60)
            self.holds("on a Space without SYSTEM=spaces it refuses to start", refused)

    def surroundings(self, space: Container) -> None:
        """Who runs what, with which rights."""
        cards = space.python("import socket; print(*(name for _, name in socket.if_nameindex()))")
        self.holds("there is no network inside: the only interface is lo", cards == "lo")
        status = Path(f"/proc/{space.find('tini')}/status").read_text()
        self.holds("it runs as user 1000", re.search(r"^Uid:\t1000\t1000\t1000\t1000$", status, re.MULTILINE))
        found = space.python("import shutil; print(*filter(shutil.which, ('cc', 'gcc', 'c++', 'g++', 'clang')))")
        self.holds("there is no compiler", found == "")
        places = ("app.py", "ggufy", "/opt/llama.cpp/bin", "/usr/local")
        code = f"import os; print(*(place for place in {places} if os.access(place, os.W_OK)))"
        self.holds("its user can change neither the program nor the tools", space.python(code) == "")

    def demo(self, space: Container) -> None:
        """The demo, quantized by the command line, and what it says."""
        began = time.monotonic()
        quantize = ["python", "-m", "ggufy", "quantize", "demo", "--types", "Q4_K_M,Q2_K", "--out", "/tmp/demo"]
        done = space.run(quantize)
        say(done.stdout.rstrip() if done.returncode == 0 else done.stderr.rstrip())
        seconds = time.monotonic() - began
        self.holds(f"the demo is quantized with no network, in {seconds:.0f} s", done.returncode == 0)
        [quant] = space.python("import pathlib; print(*pathlib.Path('/tmp/demo').rglob('*-Q4_K_M.gguf'))").split()
        replied = space.run(["sh", "-c", 'echo hello | python -m ggufy chat "$0" -n 40', quant])
        self.holds("and replies in a chat", replied.returncode == 0 and replied.stdout.strip())

    def killed(self, name: str) -> None:
        """A job is killed with its container; the page of the next one finishes it by itself."""
        root = Path(buildah("mount", name))
        out = root / "home/user/ggufy-out"
        with self.running(name, {}, ["python", "-m", "ggufy", "quantize", "demo", "--types", "all"]) as first:
            deadline = time.monotonic() + 900
            while len(list(out.rglob("*-Q*.gguf"))) < 3 and time.monotonic() < deadline:
                if first.process.poll() is not None:
                    raise Failed(f"the job ended with {first.process.poll()} before it could be killed")
                time.sleep(0.2)
        kept = {path: path.stat().st_ino for path in out.rglob("*-Q*.gguf")}
        self.holds(f"a job is killed after {len(kept)} of 29 quants", 3 <= len(kept) < 29)
        with self.running(name, {"GGUFY_TRUSTED_NETWORK": "1"}) as second:
            began = time.monotonic()
            second.wait(180)
            status = "running"
            while status not in _ENDED and time.monotonic() < began + 1800:
                time.sleep(2)
                answer = second.run(["python", "-m", "ggufy", "status", "--json"])
                status = json.loads(answer.stdout)["jobs"][0]["status"] if answer.returncode == 0 else "unknown"
            seconds = time.monotonic() - began
            self.holds(f"the page of the next start finishes it by itself, in {seconds:.0f} s", status == "done")
        again = [path.name for path, inode in kept.items() if path.stat().st_ino != inode]
        self.holds("no quant that was finished is made again", not again)
