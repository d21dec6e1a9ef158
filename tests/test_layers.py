"""The layout is held by a test: docs/architecture.md says who may import whom, and why."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ggufy"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
# Where each heavy or dangerous package may be imported.
OWNERS = {
    "gradio": ("app.py", "ggufy/ui/"),
    "torch": (
        "ggufy/formats/",
        "ggufy/models/",
        "ggufy/quantize/",
        "ggufy/rwkvcpp/convert.py",
        "ggufy/rwkvcpp/lora.py",
    ),
    "subprocess": ("ggufy/llama/", "ggufy/system/child_process.py"),
    "huggingface_hub": ("ggufy/hub/", "ggufy/net/"),
    "httpx2": ("ggufy/hub/", "ggufy/net/"),
    "pickle": (),  # what is pickled is read by ggufy/formats/pickle_machine.py, which runs nothing
}
WHO_RUNS = {"ggufy/jobs/queue.py", "ggufy/jobs/sharing.py", "ggufy/service/service.py"}
WHO_RUNS |= {f"ggufy/cli/{name}.py" for name in ("main", "running", "several", "watch")}


def imports(path: Path) -> set[str]:
    """Dotted names, also those that are imported inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def table() -> dict[str, set[str]]:
    """Each package with those that it may import: those above it in the table, but for the ones that are named."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text)
    allowed: dict[str, set[str]] = {}
    for package, words in rows:
        if words.startswith("all above"):
            allowed[package] = set(allowed) - set(re.findall(r"`(\w+)`", words))
        else:
            allowed[package] = set(re.findall(r"`(\w+)`", words))
        assert allowed[package] <= allowed.keys(), f"{package} may import only what stands above it"
    return allowed


ALLOWED = table()


@pytest.mark.parametrize("path", [ROOT / "app.py", *FILES], ids=name_of)
def test_each_package_has_its_place(path: Path) -> None:
    for imported in imports(path):
        owners = OWNERS.get(imported.split(".")[0])
        assert owners is None or name_of(path).startswith(owners), f"{name_of(path)} imports {imported}"


def test_the_table_is_whole() -> None:
    assert list(ALLOWED) and set(ALLOWED) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}, "a module without a room"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_are_those_of_the_table(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("ggufy.")} - {own, "__version__"}
    assert used <= ALLOWED[own], f"docs/architecture.md does not let {own} import {sorted(used - ALLOWED[own])}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    modules = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    graph = {
        module: {
            known
            for name in imports(path)
            for known in (name, name.rpartition(".")[0])
            if known in modules and known != module
        }
        for module, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_only_who_runs_jobs_knows_the_runner() -> None:
    assert {name_of(path) for path in FILES if "ggufy.jobs.runner.Runner" in imports(path)} == WHO_RUNS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_settings_reads_the_environment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "environ" not in text.replace("environment", "") or name_of(path) == "ggufy/system/settings.py"
