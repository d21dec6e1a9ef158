"""`make release-check`: whether what would be released is whole, installs elsewhere, and works there.

In a fresh clone of the last commit: the changelog names the version; wheel and sdist are built, and the wheel has
every tracked file of the package and nothing else; in an environment of its own it starts as `ggufy`, completes words
in bash, and after its set-up quantizes the demo and continues a text with no network at all. Of what it needs, every
licence is one of those below. `dist/` then has wheel, sdist, licences.md and sbom.json.

    python -m tools.release_check [--version X.Y.Z]     without it, the changelog may still say Unreleased
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
TYPES = ("Q4_K_M", "IQ3_XXS")
# What an Apache-2.0 program may need: permissive licences, and weak copyleft of whole files.
LICENCES = re.compile(
    r"\b(Apache|MIT|MIT-CMU|BSD|ISC|HPND|PSF|Python Software Foundation|MPL|Mozilla|Unlicense|CC0|0BSD|Zlib)\b", re.I
)
SAID = {"hf_transfer": "Apache-2.0"}  # by the LICENSE of its repository; its wheels say nothing
_LIST = """
import importlib.metadata as m, json
def said(d):
    text = d.get('License-Expression') or ''
    text += ' '.join(c for c in d.get_all('Classifier', []) if c.startswith('License'))
    return text or (d.get('License') or '')[:80]
print(json.dumps({f"{d.metadata['Name']} {d.version}": said(d.metadata) for d in m.distributions()}))
"""


class NotReady(Exception):
    """Something that a release must not have; one sentence."""


def check(version: str | None, work: Path) -> None:
    """Raises NotReady, or what a command that fails raises."""
    clone, dist = work / "clone", ROOT / "dist"
    run("git", "clone", "--quiet", ROOT, clone)
    found = check_version((clone / "CHANGELOG.md").read_text(encoding="utf-8"), clone, version)
    say(f"version {found}: the changelog has it")
    shutil.rmtree(dist, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", dist, clone)
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_wheel(wheel, run("git", "-C", clone, "ls-files", "ggufy").split())
    say(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, has every file of the package; {sdist.name} beside it")
    venv = work / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "pip", "install", "--quiet", wheel)
    told: dict[str, str] = json.loads(run(venv / "bin" / "python", "-c", _LIST))
    names = {name: licence or SAID.get(name.split()[0], "") for name, licence in told.items()}
    check_licences(names)
    write_licences(names, dist / "licences.md")
    bom = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "-o", dist / "sbom.json"]
    run(*bom, venv / "bin" / "python")
    say(f"{len(names)} packages: every licence is permissive or of whole files; dist/licences.md, dist/sbom.json")
    check_program(venv / "bin", found, work / "home")


def check_version(changelog: str, clone: Path, wanted: str | None) -> str:
    """The program's version, which must be `wanted`, if that is given, and then the newest of the changelog."""
    found = re.search(r'__version__ = "([^"]+)"', (clone / "ggufy" / "__init__.py").read_text(encoding="utf-8"))
    newest = re.search(r"(?m)^## \[([^]]+)\]", changelog)
    if found is None or newest is None:
        raise NotReady("ggufy/__init__.py has no version, or CHANGELOG.md no heading.")
    if wanted is not None and not wanted == found[1] == newest[1]:
        raise NotReady(f"{wanted} is to be released; the program says {found[1]}, the changelog {newest[1]}.")
    return found[1]


def check_wheel(wheel: Path, tracked: list[str]) -> None:
    """The wheel has the package's tracked files, and none besides."""
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    if missing := sorted(set(tracked) - inside):
        raise NotReady(f"the wheel lacks {', '.join(missing)}: name them under package-data in pyproject.toml.")
    if more := sorted(inside - set(tracked)):
        raise NotReady(f"the wheel has {', '.join(more)}, which the repository has not.")


def check_licences(names: Mapping[str, str]) -> None:
    """`names`: what a package says of its licence, by name and version."""
    own = {name: licence for name, licence in names.items() if not name.startswith("ggufy ")}
    if odd := [
        f"{name} ({licence or 'says nothing'})" for name, licence in own.items() if not LICENCES.search(licence)
    ]:
        raise NotReady(f"these packages need a look at their licence: {'; '.join(sorted(odd))}.")


def write_licences(names: Mapping[str, str], path: Path) -> None:
    """A table in Markdown."""
    rows = [f"| {name} | {licence} |" for name, licence in sorted(names.items(), key=lambda row: row[0].lower())]
    path.write_text("\n".join(["| package | licence |", "|---|---|", *rows, ""]), encoding="utf-8")


def check_program(place: Path, version: str, home: Path) -> None:
    """Starts the installed program as a user would; after its set-up, without network where that can be taken away."""
    home.mkdir()
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    environment = kept | {"HOME": str(home), "PATH": f"{place}:/usr/local/bin:/usr/bin:/bin"}
    environment["GGUFY_CACHE"] = os.environ.get("GGUFY_CACHE", str(Path.home() / ".cache" / "ggufy"))
    if (said := run("ggufy", "--version", env=environment, cwd=home).strip()) != f"ggufy {version}":
        raise NotReady(f"`ggufy --version` says {said}.")
    script = 'eval "$(ggufy completion bash)"; complete -p ggufy'
    run("bash", "-c", script, env=environment, cwd=home)
    run("ggufy", "setup", env=environment, cwd=home)
    alone = ("unshare", "--net", "--") if can_be_alone() else ()
    quantize = ("ggufy", "quantize", "demo", "--types", ",".join(TYPES), "--no-evaluate", "--json")
    record = json.loads(run(*alone, *quantize, env=environment, cwd=home))
    made = sorted(Path(record["folder"]).glob("*.gguf"))
    if not all(any(path.stem.endswith(kind) for path in made) for kind in TYPES):
        raise NotReady(f"the demo's quants are not there: {[path.name for path in made]}.")
    model = next(path for path in made if path.stem.endswith(TYPES[0]))
    text = run(*alone, "ggufy", "complete", model, "-p", "The", "-n", "8", env=environment, cwd=home)
    if len(text.strip()) <= len("The"):
        raise NotReady(f"`ggufy complete` says nothing: {text!r}.")
    where = " without network" if alone else ""
    say(f"the installed program makes {', '.join(TYPES)}{where}, and talks: {text.strip()!r}")


def can_be_alone() -> bool:
    """Whether a process can be given a network of its own, with nothing in it."""
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "--net", "true"]).returncode == 0


def run(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output of a command that succeeds; NotReady with the end of what it said otherwise."""
    command = list(map(str, words))
    program = shutil.which(command[0], path=env["PATH"]) if env else command[0]
    done = subprocess.run([program or command[0], *command[1:]], env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise NotReady(f"`{' '.join(command)}` failed with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.release_check", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--version", help="what is to be released")
    with tempfile.TemporaryDirectory(prefix="ggufy-release-") as name:
        try:
            check(parser.parse_args().version, Path(name))
        except NotReady as error:
            sys.exit(f"not ready: {error}")
    say("ready")


if __name__ == "__main__":
    main()
