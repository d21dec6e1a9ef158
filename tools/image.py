"""`python -m tools.image`: builds the image with buildah, as root on Debian, and tries it with no network.

The same Dockerfile, context and .dockerignore that Docker takes. Without --base, the image that it starts from is made
here, where none can be pulled: a fresh Debian from mmdebstrap, with this very Python in /usr/local. pip inside gets
this machine's settings, for the time of the build.

Then, in a container without a network: the page as a Space starts it, a demo job beside it, a reply of what came out,
an end by SIGTERM; a job that is killed with its container, and the page of the next one, which finishes it by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.image_trial import Failed, Trial, buildah, run, say

ROOT = Path(__file__).resolve().parent.parent
IMAGE, BASE = "localhost/ggufy", "localhost/debian-python"
PROGRAMS = ("buildah", "mmdebstrap", "unshare", "nsenter", "ip")
# What the Python of python:3.12-slim finds there.
LIBRARIES = "ca-certificates netbase tzdata libssl3 libffi8 libreadline8 libsqlite3-0 libbz2-1.0 liblzma5 libexpat1"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_base() -> None:
    """BASE, unless it is there."""
    if run("buildah", "images", "--quiet", BASE, check=False):
        return
    say(f"making {BASE}")
    release = re.search(r"(?m)^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"))
    if release is None:
        raise Failed("/etc/os-release does not say which Debian this is: give --base IMAGE")
    name = buildah("from", "scratch")
    try:
        root = Path(buildah("mount", name))
        include = LIBRARIES.replace(" ", ",")
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", release[1], root)
        left = shutil.ignore_patterns("__pycache__", "test", "tests", "site-packages", "*.a")
        shutil.copytree(sys.base_prefix, root / "usr/local", symlinks=True, ignore=left, dirs_exist_ok=True)
        buildah("config", "--env", f"PATH={PATH}", "--env", "LANG=C.UTF-8", "--cmd", "python3", name)
        setup = "ldconfig && python3 -m ensurepip && cd /usr/local/bin && ln -sf pip3 pip && ln -sf python3 python"
        buildah("run", "--isolation", "chroot", name, "--", "sh", "-c", setup)
        buildah("commit", "--quiet", name, BASE)
    finally:
        buildah("rm", name)


@contextlib.contextmanager
def pip_here() -> Iterator[list[str]]:
    """Volumes that show this machine's settings of pip, and the files that those name, inside."""
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    found = dict(line.split("=", 1) for line in listed if "=" in line)
    values = {name.rsplit(".", 1)[-1]: shlex.split(value)[0] for name, value in sorted(found.items(), reverse=True)}
    words = [word for value in values.values() for word in value.split()]
    places = {str(Path(word[7:]).parent) if word.startswith("file://") else word for word in words}
    tops = {place for place in places if place.startswith("/") and Path(place).exists()}
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))
        file.flush()
        Path(file.name).chmod(0o644)
        yield [f"--volume={file.name}:/etc/pip.conf:ro", *(f"--volume={top}:{top}:ro" for top in sorted(tops))]


def build(base: str) -> None:
    """IMAGE from the repository's Dockerfile."""
    began = time.monotonic()
    with pip_here() as volumes:
        words = [
            "buildah",
            "bud",
            "--isolation",
            "chroot",
            "--layers",
            "--format",
            "docker",
            f"--build-arg=BASE={base}",
        ]
        subprocess.run([*words, *volumes, "--tag", IMAGE, str(ROOT)], check=True, stdin=subprocess.DEVNULL)
    say(f"built in {(time.monotonic() - began) / 60:.1f} min on {os.cpu_count()} cores")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", help="image to start from, in place of python:3.12-slim (default: made here)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("buildah --isolation chroot needs root")
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        parser.error(f"no {', '.join(absent)} here: apt-get install buildah mmdebstrap util-linux iproute2")
    try:
        if args.base is None:
            make_base()
        build(args.base or BASE)
        trial = Trial(IMAGE)
        trial.whole()
    except (Failed, subprocess.CalledProcessError) as error:
        say(f"FAILED: {error}")
        return 1
    say(f"\nProved with buildah on {sysconfig.get_platform()}, from {args.base or BASE}:")
    say("\n".join(f"  - {sentence}" for sentence in trial.proved))
    return 0


if __name__ == "__main__":
    sys.exit(main())
