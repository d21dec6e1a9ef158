"""The image's Dockerfile, as far as it can be held without building it, and the front matter that makes the repo a
Space. `python -m tools.image` builds and tries it."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ggufy.core.errors import UsageError
from ggufy.llama import build, install
from ggufy.llama.pin import PINNED, PORTABLE
from ggufy.publish.fonts import FOLDERS
from ggufy.service.access import STRANGER, Visitor, may_work
from ggufy.system.settings import Settings
from tests.miniature import make_mini

ROOT = Path(__file__).parent.parent
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|\bhf_[A-Za-z0-9]{8}", re.IGNORECASE)
ADDRESS = re.compile(r"https?://(?!127\.0\.0\.1)|index-url", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """(name, text) of each, without comments, lines that are continued joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


EVERY = instructions()
SECOND = [number for number, (name, _) in enumerate(EVERY) if name == "FROM"][1]
BUILD, FINAL = EVERY[:SECOND], EVERY[SECOND:]


def named(name: str, among: list[tuple[str, str]] = FINAL) -> list[str]:
    return [text for found, text in among if found == name]


def copies(among: list[tuple[str, str]]) -> list[str]:
    """What is copied from the repository."""
    return [source for text in named("COPY", among) if "--from" not in text for source in text.split()[:-1]]


def git(*words: str) -> list[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_page_runs_as_user_1000_behind_tini() -> None:
    names = [name for name, _ in FINAL]
    assert named("USER") == ["user"]
    assert any("useradd --create-home --uid 1000 user" in text for text in named("RUN"))
    assert names.index("USER") < names.index("ENTRYPOINT") < names.index("CMD")
    assert (named("ENTRYPOINT"), named("CMD")) == (['["tini", "--"]'], ['["python", "app.py"]'])


def test_the_environment_is_a_space_s() -> None:
    values = dict(word.split("=", 1) for text in named("ENV") for word in shlex.split(text))
    assert values["SYSTEM"] == "spaces"
    settings = Settings.from_env(values | {"SPACE_ID": "somebody/ggufy"})
    assert not may_work(STRANGER, settings)
    assert may_work(Visitor(name="somebody"), settings)
    assert (settings.server_name, settings.server_port) == ("0.0.0.0", 7860)
    assert named("EXPOSE") == [str(settings.server_port)]
    home = Path(values["HOME"])
    assert settings.home == home == Path("/home/user")
    assert settings.cache.is_relative_to(home)
    assert settings.out.is_relative_to(home)
    [made] = [text for text in named("COPY") if "--from=llama" in text]
    assert made.split()[1:] == [str(settings.llama_dir)] * 2
    assert f"python -m ggufy.llama.portable {settings.llama_dir}" in named("RUN", BUILD)
    assert named("ARG", BUILD) == ["BASE=python:3.12-slim"]
    assert all("${BASE}" in text for text in named("FROM", EVERY))  # else the libraries may not fit


def test_it_has_a_font_with_chinese_letters() -> None:
    """From a package that puts it where pictures look for one (test_compare.py draws with it)."""
    assert any("fonts-wqy-microhei" in text for text in named("RUN"))
    assert "/usr/share/fonts" in FOLDERS


def test_nothing_secret_and_no_registry_is_in_it() -> None:
    for name, text in EVERY:
        assert not ADDRESS.search(text), text
        assert name not in ("ENV", "ARG") or not SECRET.search(text), text


def test_every_source_is_there_and_the_whole_program_is_copied() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    for source in copies(EVERY):
        assert (ROOT / source).exists() and source.split("/")[0] in sent, source
    assert {"app.py", "requirements.txt", "requirements.lock", "LICENSE", "ggufy"} == set(copies(FINAL)) == sent


def test_the_first_stage_copies_all_that_its_build_imports(tmp_path: Path) -> None:
    """With nothing but those files and the standard library, the builder starts, and says how it is used."""
    for source in copies(BUILD):
        for file in git("ls-files", source):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    words = [sys.executable, "-I", "-S", "-c"]
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('ggufy.llama.portable')"
    done = subprocess.run([*words, code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lock_has_every_package_by_hash_but_torch() -> None:
    asked = (ROOT / "requirements.txt").read_text("utf-8")
    entries = re.split(r"(?m)^(?=[a-z])", (ROOT / "requirements.lock").read_text("utf-8"))[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {plain(entry.split("==")[0]): entry.split("==")[1].split()[0] for entry in entries}
    assert {plain(name) for name in re.findall(r"(?m)^([\w.-]+)", asked)} - locked.keys() == {"torch"}
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]
    exact = {plain(name): version for name, version in re.findall(r"(?m)^([\w.-]+)(?:\[.*\])?==([^ \n]+)", asked)}
    assert exact.pop("torch") and exact.items() <= locked.items()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_front_matter() -> None:
    _, text, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(text)
    assert front["sdk"] == "docker"
    assert front["app_port"] == 7860
    assert front["title"] == "ggufy"
    assert front["emoji"]
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colours
    assert len(front["short_description"]) <= 60
    assert front["hf_oauth"] is True
    assert set(front.get("hf_oauth_scopes", ())) <= {"openid", "profile"}  # who somebody is, and nothing to act with
    assert front["license"] == "apache-2.0"
    assert re.fullmatch(r"\d+[mh]", front["startup_duration_timeout"])
    assert front["suggested_hardware"].startswith("cpu-")


@pytest.mark.parametrize("system", [{}, {"SYSTEM": ""}, {"SYSTEM": "space"}])
def test_a_space_without_system_is_refused(system: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^SPACE_ID is set but SYSTEM is not spaces, [^.]*\.$"):
        Settings.from_env({"SPACE_ID": "somebody/ggufy"} | system)
    assert Settings.from_env(system).space_id is None


def test_a_portable_build_is_an_override(tmp_path: Path) -> None:
    """What `build_portable` makes is used where GGUFY_LLAMA_DIR names it, after it was moved, and not built twice."""
    mini = make_mini(tmp_path)
    mini.gate.touch()
    there = tmp_path / "opt/llama.cpp"
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "HOME": str(tmp_path)}
    made = install.build_portable(there, threads=1, pip_environment=environment, pin=mini.pin)
    assert made == install.Llama(there / "bin", there / "source", "0.5.0-dev", mini.pin.commit)
    assert f'"cpu": "{platform.machine()}-any"' in (there / build.RECORD).read_text()
    notes = mini.notes()
    assert install.build_portable(there, threads=1, pip_environment={}, pin=mini.pin) == made
    assert mini.notes() == notes
    moved = there.rename(tmp_path / "moved")
    assert install.find(tmp_path / "none", moved, pin=mini.pin) == install.Llama(
        moved / "bin", moved / "source", "0.5.0-dev", mini.pin.commit
    )


def test_the_portable_pin_is_the_pinned_source_for_every_cpu() -> None:
    assert (PORTABLE.sha256, PORTABLE.commit) == (PINNED.sha256, PINNED.commit)
    assert {"-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"} <= set(PORTABLE.flags)
