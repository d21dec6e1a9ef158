"""The table of options: every place has all of it, and what it says of bytes and visitors is so."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.cli.parser import HELP, build_parser
from ggufy.core.errors import UsageError
from ggufy.core.job import DEFAULT_CHUNKS, EVALUATION_CHUNKS, Request
from ggufy.jobs.options import BY_NAME, OPTIONS, JobOptions, Kind, Option
from ggufy.jobs.request import make_job
from ggufy.jobs.values import read_options
from ggufy.service.strangers import for_stranger
from ggufy.system.settings import Settings
from ggufy.ui.api import _Api
from ggufy.ui.form import estimate_options, job_options
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.fast
NOT_ASKED = {"source", "output", "owner", "copy_owner", "by_stranger"}  # of JobOptions: what no option sets
ONE = {Kind.TEXT: "x", Kind.FLAG: True, Kind.NUMBER: 7, Kind.REAL: 16.5, Kind.WORDS: ["Q8_0"], Kind.PLACES: ["a/b"]}
# What each is set to where it must be something that there is.
VALUES: dict[str, Any] = {
    "targets": ["5MB"],
    "calibration": "calibration.txt",
    "vocab": "other.txt",
    "repo_id": "me/other-GGUF",
    "imatrix": "none",
}


def value_of(option: Option) -> Any:
    """Another one than the default."""
    if option.choices:
        return next(choice for choice in reversed(option.choices) if choice != option.default)
    return VALUES.get(option.name, ONE[option.kind])


def words_of(option: Option) -> list[str]:
    value = value_of(option)
    return [option.flag] if value is True else [option.flag, *map(str, value if isinstance(value, list) else [value])]


def test_the_table_has_every_field() -> None:
    assert {option.name for option in OPTIONS} | NOT_ASKED == {item.name for item in fields(JobOptions)}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_can_be_set_everywhere(option: Option) -> None:
    wanted = read_options("demo", {option.name: value_of(option)})
    assert wanted != read_options("demo", {})
    args = build_parser().parse_args(["quantize", "demo", *words_of(option)])
    assert read_options(args.source, vars(args)) == wanted
    parameters = inspect.signature(_Api.start_job).parameters
    assert parameters[option.name].annotation in (str, bool, int, float, bool | str)
    if option.page and option.name not in ("calibration", "imatrix"):  # the page asks for these two in its own way
        form = {"source": "demo", "types": ["Q8_0"], "mode": "", option.page: value_of(option)}
        form |= {"targets": ["5MB"]} if option.name == "mode" else {}
        expected = {option.name: getattr(wanted, option.name)}
        assert getattr(job_options(form), option.name) == expected[option.name]


def test_what_repeats_adds_up_and_the_last_of_others_wins() -> None:
    words = "quantize demo --types Q8_0 --types Q4_K_M --target 5MB --target 6MB --lora a,b --lora c".split()
    options = read_options("demo", vars(build_parser().parse_args(words)))
    assert (options.quant_types, options.targets, options.lora) == (("Q4_K_M",), ("5MB", "6MB"), ("a,b", "c"))


def test_the_page_asks_for_texts_in_its_own_way() -> None:
    form = {"source": "demo", "types": ["Q8_0"], "imatrix_path": " own.txt "}
    for kind, imatrix, calibration in (
        ("bundled", "auto", "bundled"),
        ("own", "auto", "own.txt"),
        ("have", "own.txt", "bundled"),
        ("off", "none", "bundled"),
    ):
        options = job_options(form | {"imatrix": kind})
        assert (options.imatrix, options.calibration) == (imatrix, calibration)
    with pytest.raises(UsageError, match="no text or imatrix given"):
        job_options(form | {"imatrix": "own", "imatrix_path": ""})
    with pytest.raises(UsageError, match="check at least one"):
        job_options({"source": "demo", "types": []})


def test_the_cost_is_of_the_chunks_that_the_form_says() -> None:
    asked = estimate_options({"chunks": 0, "evaluation_chunks": 64})
    assert (asked.chunks, asked.evaluation_chunks) == (0, 64)
    for nothing in (None, -1, "7", True, [7], 7.5):  # of which Start says what is wrong
        usual = estimate_options({"chunks": nothing, "evaluation_chunks": nothing})
        assert (usual.chunks, usual.evaluation_chunks) == (DEFAULT_CHUNKS, EVALUATION_CHUNKS)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": 5}, "name must be text"),
        ({"quant_types": ["Q8_0", 5]}, "quant_types must be text"),
        ({"evaluate": "yes"}, "evaluate must be true or false"),
        ({"chunks": -1}, "chunks must be a whole number"),
        ({"chunks": "7"}, "chunks must be a whole number"),
        ({"chunks": True}, "chunks must be a whole number"),
        ({"lora": "a/b", "lora_alpha": "much"}, "lora_alpha must be a number"),
        ({"lora": ["a/b"] * 257}, "at most 256"),
        ({"vocab": "x" * 4097}, "use at most 4096"),
    ],
)
def test_what_is_no_value_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_options("demo", values)


def test_nothing_given_is_the_default() -> None:
    plain = read_options("demo", {})
    assert plain == read_options("demo", {option.name: None for option in OPTIONS})
    assert plain == read_options("demo", {option.name: "" for option in OPTIONS if option.kind is Kind.TEXT})
    assert replace(plain, quant_types=()) == JobOptions(source="demo", quant_types=())
    assert plain.quant_types and not read_options("demo", {"targets": "1GB"}).quant_types


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_visitors_may_choose_what_the_table_says(option: Option) -> None:
    asked = read_options("demo", {option.name: value_of(option)})
    if option.name in ("vocab", "calibration", "evaluation", "lora_init"):  # a file of this machine
        with pytest.raises(UsageError, match="on a Space"):
            for_stranger(asked)
        asked = replace(asked, **{option.name: BY_NAME[option.name].default})
    left = getattr(for_stranger(asked), option.name)
    assert left == (getattr(asked, option.name) if option.visitors else option.default)


# Of adapters test_adapter_jobs.py says the same, of the format test_rwkvcpp_jobs.py, of parts test_hf_jobs.py and
# test_mtp_files.py.
@pytest.mark.parametrize(
    "option",
    [one for one in OPTIONS if not one.name.startswith("lora") and one.name not in ("output", "mmproj", "mtp")],
    ids=lambda option: option.name,
)
def test_what_decides_bytes_makes_another_job(option: Option, tmp_path: Path) -> None:
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7")
    (tmp_path / "calibration.txt").write_text("Something else to read. " * 4000, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_bytes(vocab.read_bytes().removesuffix(b"\n"))
    cache = str(Settings.from_env().cache)  # where the texts are, which take seconds to make
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path), "GGUFY_CACHE": cache})

    def request(**changes: Any) -> Request:
        options = read_options(
            str(checkpoint), {"quant_types": "Q4_K_M", "vocab": str(vocab), "targets": "0.6MB"} | changes
        )
        return make_job(replace(options, owner="me"), settings).request

    value = value_of(option)
    if option.name in ("vocab", "calibration"):
        value = str(tmp_path / value)
    if option.name == "targets":
        value = ["0.7MB"]
    plain = {"evaluate": True} if option.name.startswith("evaluation") else {}
    if option.name == "evaluation":
        value = str(tmp_path / "calibration.txt")
    one, two = request(**plain), request(**plain, **{option.name: value})
    assert one != two
    assert (one.inputs() != two.inputs()) == option.bytes


@pytest.mark.parametrize("words", [["--help"], ["quantize", "--help"]], ids=" ".join)
def test_help_loads_no_library(words: list[str]) -> None:
    """What a command needs besides, it loads itself; nothing of that is needed to say what it takes."""
    script = "import sys; from ggufy.cli.main import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "gguf", "huggingface_hub", "httpx2", "gradio"}


@pytest.mark.parametrize("command", HELP)
def test_one_command_alone_has_the_options_that_it_has_among_all(command: str) -> None:
    asked, every = (commands_of(build_parser(words)) for words in (["-v", command, "x"], None))
    assert set(asked) == set(every) == set(HELP)
    assert asked[command].format_help() == every[command].format_help()


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert isinstance(found.choices, dict)
    return found.choices
