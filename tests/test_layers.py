"""The layout is held by a test: who may import what (see the package's docstrings for what each part is)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
FILES = sorted([ROOT / "app.py", *(ROOT / "ggufy").rglob("*.py")])
# Where each heavy or dangerous package may be imported.
OWNERS = {
    "gradio": ("app.py", "ggufy/ui/"),
    "torch": ("ggufy/sources/", "ggufy/rwkv/"),
    "subprocess": ("ggufy/llama/",),
    "huggingface_hub": ("ggufy/hub/", "ggufy/sources/"),
    "pickle": ("ggufy/sources/checkpoint.py",),  # for the name of its error; ruff forbids loading
}
LOWER = {"errors", "catalog", "job", "evaluation", "plan", "files", "throttle", "settings", "demo", "access", "kept"}
LOWER |= {"clock", "markup", "names", "scatter", "world", "scrub", "streams", "readme"}
MIDDLE = {"hub", "llama", "quantize", "rwkv", "sources", "card", "card_tables"}
STEPS = LOWER | MIDDLE | {"steps"}
JOBS = STEPS | {"jobs", "progress"}  # of their runs and their places they know nothing
PUBLISH = JOBS | {"publish", "card_facts", "__version__"}
WHO_RUNS = {"worker", "service", "__main__"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_package_has_its_place(path: Path) -> None:
    for imported in imports(path):
        owners = OWNERS.get(imported.split(".")[0])
        assert owners is None or name_of(path).startswith(owners), f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = name_of(path).removeprefix("ggufy/").split("/")[0].removesuffix(".py")
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("ggufy.")}
    if own in LOWER:
        assert parts <= LOWER | {"__version__"}
    elif own in MIDDLE:
        assert parts <= LOWER | MIDDLE
    elif own == "steps":
        assert parts <= STEPS
    elif own == "jobs":
        assert parts <= JOBS
    elif own == "publish":
        assert parts <= PUBLISH
    elif own != "app":
        assert "ui" not in parts or own == "ui"


def test_only_who_runs_jobs_knows_the_runner() -> None:
    knows = {name_of(path) for path in FILES if any(name.startswith("ggufy.runner.") for name in imports(path))}
    assert knows == {f"ggufy/{name}.py" for name in WHO_RUNS}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_settings_reads_the_environment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "environ" not in text.replace("environment", "") or name_of(path) == "ggufy/settings.py"
