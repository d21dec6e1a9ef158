"""What the documents say is what the program does; what they link to is there; the Chinese twins say the same."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy import __version__, demo
from ggufy.cli.parser import build_parser
from ggufy.core.job_record import from_json
from ggufy.hub.lease_record import LeaseRecord
from ggufy.llama.pin import PINNED
from ggufy.system import settings
from tools import docs, loc

pytestmark = pytest.mark.fast

ROOT = docs.ROOT
TEXTS = {path: path.read_text(encoding="utf-8") for path in docs.DOCUMENTS}
TWINS = {path: english for path in TEXTS if (english := docs.english_of(path))}
README, USING = ROOT / "README.md", ROOT / "docs/using.md"
ALL = "\n".join(TEXTS.values())
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_OTHERS_OPTIONS = {
    "--n-gpu-layers",
    "--tensor-split",
    "--tensor-parallel-size",
    "--timeout",
    "--dry-run",
    "--reasoning",
    "--prompt-cache-ro",
}  # of hf and llama.cpp

every_document = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
every_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path) -> list[tuple[str, str]]:
    """Fenced blocks: (language, text)."""
    return [(match[1], match[2]) for match in _FENCED.finditer(TEXTS[path])]


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return _FENCED.sub("", TEXTS[path])


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, text)"""
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings(path)}


def shown_commands() -> Iterator[str]:
    """Arguments of `python -m ggufy` in fenced blocks, which are there to be copied."""
    for path in TEXTS:
        for _, text in blocks(path):
            yield from re.findall(r"^(?:\$ )?(?:\.venv/bin/)?python -m ggufy ([^\n]+)", text, re.MULTILINE)


# ---- what is made from the code


@every_document
def test_what_is_made_from_the_code_is_up_to_date(path: Path) -> None:
    assert docs.rendered(path) == TEXTS[path], "run python -m tools.docs"


def test_every_block_is_somewhere() -> None:
    assert {name.partition(": ")[0] for name in re.findall(r"<!-- ([\w :.]+) -->", ALL)} >= docs.BLOCKS.keys()


def test_every_setting_is_in_the_table() -> None:
    code = inspect.getsource(settings)
    table = re.findall(r"^\| `(\w+)` \|", docs.settings_table(), re.MULTILINE)
    read = {*re.findall(r'"((?:GGUFY|GRADIO|MODELSCOPE)_\w+|HF_TOKEN|HF_ENDPOINT|SPACE_ID|SYSTEM)"', code)}
    assert {*table} == read - {"GGUFY_DIE_WITH_PARENT"}  # the Makefile's
    for using in (USING, USING.with_suffix(docs.TWIN)):
        assert re.findall(r"^\| `([A-Z_]+)` \|", TEXTS[using], re.MULTILINE) == table


def test_every_field_has_a_meaning() -> None:
    for row in re.findall(r"^\| `\w+` \|.*\|$", docs.fields("ggufy.core.source.Source"), re.MULTILINE):
        assert not row.endswith("|  |"), row


def test_every_test_that_proves_a_layout_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXTS[ROOT / "docs/sources.md"])
    assert len(named) > 10
    for file, test in named:
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_every_test_that_holds_a_row_of_rwkvcpp_is_there() -> None:
    text = TEXTS[ROOT / "docs/rwkv.cpp.md"]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)` \|$", text, re.MULTILINE)
    assert len(named) == len(re.findall(r"^\| ", text, re.MULTILINE)) - 1
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


# ---- commands


def test_every_command_shown_is_accepted() -> None:
    shown = list(shown_commands())
    assert len(shown) >= 20
    for command in shown:
        build_parser().parse_args(shlex.split(command, comments=True))  # exits with 2 if it is not


def test_every_command_there_is_is_shown() -> None:
    for command in docs.commands():
        assert command == "setup" or f"python -m ggufy {command}" in TEXTS[USING], command
        assert f"<!-- options: {command} -->" in TEXTS[ROOT / "docs/commands.md"], command


@every_document
def test_commands_and_options_named_exist(path: Path) -> None:
    known = {
        option for parser in docs.commands().values() for action in parser._actions for option in action.option_strings
    }
    for code in _CODE.findall(prose(path)):
        if match := re.fullmatch(r"(?:\.venv/bin/)?python -m ggufy (?:-v )?(\w+).*", code):
            assert match[1] in docs.commands(), code
        elif re.match("--[a-z]", code):
            assert re.split(r"[ =]", code)[0] in known | _OTHERS_OPTIONS, code


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)$", ALL, re.MULTILINE)):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_lines_are_counted_by_package() -> None:
    found = loc.lines()
    assert found["core"] > 0 and {path.parent.name for path in ROOT.glob("ggufy/*/__init__.py")} <= found.keys()
    assert loc.table({"a": 2, "b": 1000}).splitlines()[-1].split() == ["ggufy", "1,002"]


# ---- links and names


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(prose(path)):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_file() and target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


@every_document
def test_files_named_exist(path: Path) -> None:
    for name in re.findall(r"(?<![\w./])((?:ggufy|tools|tests|docs|bench|attacks)/[\w./-]+)", prose(path)):
        assert (ROOT / name.rstrip(".")).exists(), name


def test_every_document_can_be_found_from_the_readme() -> None:
    found, new = set(), {README}
    while new:
        found |= (here := new)
        links = {
            (path.parent / link.partition("#")[0]).resolve() for path in here for link in _LINK.findall(prose(path))
        }
        new = (links & TEXTS.keys()) - found
    assert found == set(TEXTS)


# ---- the README, and the twins


def test_the_readme_is_short() -> None:
    assert all(len(TEXTS[readme].splitlines()) <= 200 for readme in (README, README.with_suffix(docs.TWIN)))


@every_twin
def test_a_twin_has_the_same_commands(twin: Path) -> None:
    def without_comments(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(language, re.sub(r" *(#|  +#) .*", "", text)) for language, text in found]

    assert without_comments(blocks(twin)) == without_comments(blocks(TWINS[twin]))
    assert len(_CODE.findall(prose(twin))) >= 0.9 * len(_CODE.findall(prose(TWINS[twin])))


@every_twin
def test_a_twin_has_the_same_parts(twin: Path) -> None:
    english = TWINS[twin]
    assert [level for level, _ in headings(twin)] == [level for level, _ in headings(english)]
    shape = r"^(?:- |\| |!\[)"
    assert len(re.findall(shape, prose(twin), re.MULTILINE)) == len(re.findall(shape, prose(english), re.MULTILINE))


@every_twin
def test_a_twin_links_to_the_same(twin: Path) -> None:
    """Or to the other's twin; anchors in twins are Chinese."""

    def targets(path: Path) -> set[Path | str]:
        links = [link for link in _LINK.findall(prose(path)) if not link.startswith("#")]
        found = {link if "://" in link else (path.parent / link.partition("#")[0]).resolve() for link in links}
        return {TWINS.get(one, one) if isinstance(one, Path) else one for one in found} - {twin, TWINS[twin]}

    assert targets(twin) == targets(TWINS[twin])


# ---- what is specified


def test_the_records_of_the_specification_are_records() -> None:
    record, lease = (text for language, text in blocks(ROOT / "docs/formats.md") if language == "json")
    assert from_json(record).status == "running"  # that it is in today's form is tested above
    assert LeaseRecord.from_bytes(lease.encode()).to_bytes().decode() == lease


def test_a_job_id_is_made_as_specified() -> None:
    (code,) = (text for language, text in blocks(ROOT / "docs/formats.md") if language == "python")
    names: dict[str, object] = {}
    exec(code, names)
    record = next(text for language, text in blocks(ROOT / "docs/formats.md") if language == "json")
    more = {
        "evaluate": True,
        "evaluation_chunks": 16,
        "mode": "fast",
        "targets": ["1MB-Q2_K_FIT"],
        "by_stranger": True,
    }
    file = {"kind": "adapter", "path": "/a.pth", "size": 1, "sha256": "ab" * 32}
    lora = {"source": file, "init": None, "kind": "LoRA", "rank": 8, "scale": 4.0}
    pissa = lora | {"init": file, "scale": 1.0}
    for changes in (
        {},
        {"mix": "stock"},
        {"copies": ["ms:you/m-GGUF"]},
        {"output": "rwkv.cpp", "outtype": "f32"},
        {"adapters": [lora, pissa]},
        more,
    ):
        changed = json.loads(record)
        changed["request"] |= changes
        known = from_json(json.dumps(changed))
        assert names["inputs"](changed["request"]) == known.request.inputs()  # type: ignore[operator]
        assert names["job_id"](changed["request"]) == known.id  # type: ignore[operator]


def test_the_demo_is_described_truly() -> None:
    facts = json.loads(demo.FACTS.read_text(encoding="utf-8"))
    for path in (README, ROOT / "docs/development.md"):
        flat = " ".join(TEXTS[path].split())
        assert f"{facts['parameters'] / 1e6:.1f} million parameters" in flat
        assert f"is {facts['heldout_loss']:.2f} nats" in flat


def test_the_pinned_llama_is_named() -> None:
    assert f"it is {PINNED.commit}, out of {PINNED.package} {PINNED.version}." in " ".join(
        TEXTS[ROOT / "CONTRIBUTING.md"].split()
    )


def test_the_changelog_knows_this_version() -> None:
    assert {"[Unreleased]", f"[{__version__}]"} <= {
        text.split(" - ")[0] for _, text in headings(ROOT / "CHANGELOG.md")
    }


def test_no_output_is_missing() -> None:
    assert not re.search(r"^(DEMO|TEST|BENCH) |DEMO [A-Z]+", ALL, re.MULTILINE)
