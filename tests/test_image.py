"""The image's Dockerfile, read as tools/space_image.py reads it, and the front matter that makes the repo a Space."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
import yaml

from ggufy.core.errors import UsageError
from ggufy.llama import build, install
from ggufy.service.access import STRANGER, Visitor, may_work
from ggufy.system.settings import Settings
from tests.miniature import make_mini
from tools import dockerfile
from tools.dockerfile import DockerfileError, Ignore, Instruction, Stage

ROOT = Path(__file__).parent.parent
STAGES = dockerfile.parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = Ignore.read(ROOT / ".dockerignore")
FINAL = STAGES[-1]
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|\bhf_[A-Za-z0-9]{8}", re.IGNORECASE)
ADDRESS = re.compile(r"https?://(?!127\.0\.0\.1)|index-url", re.IGNORECASE)


def named(stage: Stage, name: str) -> list[Instruction]:
    return [instruction for instruction in stage.instructions if instruction.name == name]


def environment(stage: Stage) -> dict[str, str]:
    found: dict[str, str] = {}
    for instruction in named(stage, "ENV"):
        found |= dockerfile.pairs(instruction, found)
    return found


def git(*words: str) -> list[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def copied(stage: Stage) -> list[PurePosixPath]:
    """The files that a stage takes from the repository."""
    copies = [dockerfile.copy(instruction) for instruction in named(stage, "COPY")]
    return [
        file
        for copy in copies
        if copy.stage is None
        for source in copy.sources
        for file in dockerfile.sent(ROOT, IGNORE, source)
    ]


def test_the_page_runs_as_user_1000_behind_tini() -> None:
    names = [instruction.name for instruction in FINAL.instructions]
    (user,) = named(FINAL, "USER")
    assert user.text == "user"
    assert any("useradd --create-home --uid 1000 user" in i.text for i in named(FINAL, "RUN"))
    assert names.index("USER") < names.index("ENTRYPOINT") < names.index("CMD")
    (entrypoint,), (command,) = named(FINAL, "ENTRYPOINT"), named(FINAL, "CMD")
    assert dockerfile.command(entrypoint) + dockerfile.command(command) == ["tini", "--", "python", "app.py"]


def test_the_environment_is_a_space_s() -> None:
    values = environment(FINAL)
    assert values["SYSTEM"] == "spaces"
    settings = Settings.from_env(values | {"SPACE_ID": "somebody/ggufy"})
    assert not may_work(STRANGER, settings)
    assert may_work(Visitor(name="somebody"), settings)
    assert (settings.server_name, settings.server_port) == ("0.0.0.0", 7860)
    assert f"EXPOSE {settings.server_port}" in [f"{i.name} {i.text}" for i in FINAL.instructions]
    home = Path(values["HOME"])
    assert settings.home == home == Path("/home/user")
    assert settings.cache.is_relative_to(home)
    assert settings.out.is_relative_to(home)
    targets = [copy.target for copy in map(dockerfile.copy, named(FINAL, "COPY")) if copy.stage]
    assert [str(settings.llama_dir)] == targets


def test_the_build_makes_what_the_image_copies() -> None:
    (copy,) = (copy for copy in map(dockerfile.copy, named(FINAL, "COPY")) if copy.stage)
    (stage,) = (stage for stage in STAGES if stage.name == copy.stage)
    assert f"python -m ggufy.llama.portable {copy.sources[0]}" in [i.text for i in named(stage, "RUN")]
    assert {stage.image for stage in STAGES} == {"python:3.12-slim"}  # else the libraries may not fit


def test_nothing_secret_and_no_registry_is_in_it() -> None:
    for stage in STAGES:
        for instruction in stage.instructions:
            assert not ADDRESS.search(instruction.text), instruction
            if instruction.name in ("ENV", "ARG"):
                assert not SECRET.search(instruction.text), instruction


def test_every_source_is_there_and_the_whole_program_is_copied() -> None:
    for stage in STAGES:
        for copy in map(dockerfile.copy, named(stage, "COPY")):
            for source in copy.sources if copy.stage is None else ():
                assert dockerfile.sent(ROOT, IGNORE, source), source
    found = set(map(str, copied(FINAL)))
    assert {"app.py", "requirements.txt", "LICENSE", "ggufy/demo/RWKV-x070-Demo-7M.pth", "ggufy/ui/page.css"} <= found
    if (ROOT / ".git").exists():
        assert set(git("ls-files", "ggufy")) <= found
        assert not found & set(git("ls-files", "--others", "--ignored", "--exclude-standard"))  # no one's leftovers


def test_the_first_stage_copies_all_that_its_build_imports(tmp_path: Path) -> None:
    """With nothing but those files and the standard library, the builder starts, and says how it is used."""
    for file in copied(STAGES[0]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    words = [sys.executable, "-I", "-S", "-c"]
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('ggufy.llama.portable')"
    done = subprocess.run([*words, code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    assert (install.PORTABLE.sha256, install.PORTABLE.commit) == (install.PINNED.sha256, install.PINNED.commit)
    assert {"-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"} <= set(install.PORTABLE.flags)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FROM a\nADD x y\n", "line 2: ADD is not known"),
        ("RUN true\n", "before the first FROM"),
        ("FROM a\nCOPY --chmod=1 x y\n", "line 2: COPY"),
        ("FROM a\nCOPY *.py /\n", "line 2: COPY"),
        ("FROM a\nCOPY a b c\n", "ends in /"),
        ("FROM a\nCMD python app.py\n", "line 2: CMD"),
        ("FROM a\nENV NAME value\n", "line 2: ENV"),
        ("FROM --platform=x a\n", "line 1: FROM"),
        ("FROM a\nRUN x \\\n", "is continued"),
    ],
)
def test_what_is_not_known_of_a_dockerfile_is_refused(text: str, says: str) -> None:
    with pytest.raises(DockerfileError, match=re.escape(says)):
        for instruction in dockerfile.parse(text)[0].instructions:
            match instruction.name:
                case "COPY":
                    dockerfile.copy(instruction)
                case "CMD":
                    dockerfile.command(instruction)
                case "ENV":
                    dockerfile.pairs(instruction, {})


def test_lines_are_joined_and_values_expanded() -> None:
    text = 'FROM a AS b\n# no\nENV A=1 \\\n  # inside\n  B="x y" \\\n  C=$A-${B}$D\nCOPY --from=b /x /y\n'
    (stage,) = dockerfile.parse(text)
    assert (stage.image, stage.name) == ("a", "b")
    env, copy = stage.instructions
    assert (env.line, copy.line) == (3, 7)
    assert dockerfile.pairs(env, {"A": "1", "B": "2"}) == {"A": "1", "B": "x y", "C": "1-2"}
    assert dockerfile.copy(copy) == dockerfile.Copy(sources=("/x",), target="/y", stage="b")


def test_ignore(tmp_path: Path) -> None:
    rules = tmp_path / ".dockerignore"
    rules.write_text("# all\n*\n!kept\n!one.txt\n**/__pycache__\nkept/*.log\n")
    left_out = Ignore.read(rules)
    for name in ("other", "other/kept", "kept/__pycache__/x.pyc", "__pycache__", "kept/a.log"):
        assert left_out(PurePosixPath(name)), name
    for name in ("kept", "kept/a/b.py", "one.txt", "kept/deep/a.log"):
        assert not left_out(PurePosixPath(name)), name
