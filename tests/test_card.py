"""What stands beside the GGUFs of a repo: the card and its plot, its lines run by real programs, Ollama's files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from gguf import GGUFWriter

from ggufy.core.job import Job, Request, Status
from ggufy.core.metrics import Evaluation, Quality, Speed
from ggufy.core.source import Source
from ggufy.models.chat_format import G1C, G1H, STOP, WORLD, ollama_files
from ggufy.models.ollama import FAMILIES, family_files
from ggufy.publish.card import PLOT, CardFacts, pages
from tests import scripted
from tests.conftest import Go, environment

OLLAMA_FILES = ollama_files(WORLD)
REQUEST = Request(
    name="m",
    source=Source(kind="checkpoint", path="/models/m.pth", size=1, sha256="ab" * 32),
    quant_types=("Q2_K", "Q4_K_M", "Q8_0"),
    outtype="f16",
    repo_id="alice/m-GGUF",
)
SPEED = Speed(threads=2, prompt_tps=90.0, prompt_tps_error=1.0, generation_tps=57.31, generation_tps_error=0.22)


def evaluation(quant_type: str, size: int, kld: float, speed: Speed | None = SPEED) -> Evaluation:
    zeros = dict.fromkeys(Quality.__dataclass_fields__, 0.0)
    quality = Quality(**zeros | {"kld": kld, "ppl": 12.3456, "ppl_ratio": 1.01, "base_ppl": 12.2, "same_top": 91.0})
    rest = {"quant_sha256": "", "base": "", "base_sha256": "", "text": "", "text_sha256": "", "llama": ""}
    name = f"m-{quant_type}.gguf"
    return Evaluation(
        quant=name,
        size=size,
        bpw=4.0,
        chunks=2,
        tokens=510,
        quality=quality,
        speed=speed,
        **rest,  # type: ignore[arg-type]
    )


def job(*measured: Evaluation, **changes: Any) -> Job:
    return Job(request=replace(REQUEST, **changes), status=Status.DONE, evaluations=measured)


def facts(*types: str, rwkv: bool = True) -> CardFacts:
    return CardFacts(uploaded={f"m-{name}.gguf": 1000 for name in types}, rwkv=rwkv)


def lines(text: str) -> list[str]:
    """What there is to copy, a command each."""
    return [block.replace("\\\n", "").strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


# ---- the text and the plot


def test_figures_and_the_plot() -> None:
    found = pages(job(evaluation("Q4_K_M", 5_400_000, 0.0123), evaluation("Q2_K", 4_100_000, 0.2)), facts("Q2_K"))
    card = found["README.md"]
    assert "| file | type | size | bpw | KLD | PPL | PPL ratio | same top p | t/s | |\n|" + "---|" * 10 in card
    assert "| 0.2000 ± 0.0000 | 12.346 | 1.0100 ± 0.0000 | 91.0 ± 0.0 % | 57.3 ± 0.2 |" in card
    assert "wrote in a second, with 2 threads of" in card
    rows = [row for row in card.splitlines() if row.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {11}
    assert f"]({PLOT})" in card
    picture = ElementTree.fromstring(found[PLOT])  # well-formed
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["Q2_K: 4.1 MB, KLD 0.2000", "Q4_K_M: 5.4 MB, KLD 0.0123"]


def test_what_was_not_measured_has_no_columns_and_no_plot() -> None:
    untimed = pages(job(evaluation("Q4_K_M", 5_400_000, 0.0123, speed=None)), facts("Q4_K_M"))
    assert "| bpw | KLD | PPL | PPL ratio | same top p | |" in untimed["README.md"]
    assert PLOT not in untimed and PLOT not in untimed["README.md"]
    assert "| file | type | size | bpw | |\n|---|---|---|---|---|\n" in pages(job(), facts())["README.md"]


def test_a_file_that_loses_nothing_has_a_row_and_no_dot() -> None:
    """Its mean KLD may come out as zero, or a little below."""
    near = [evaluation("Q8_0", 7_000_000, -0.000001), evaluation("Q6_K", 6_000_000, 0.0)]
    two = [evaluation("Q4_K_M", 5_400_000, 0.0123), evaluation("Q2_K", 4_100_000, 0.2)]
    found = pages(job(*near, *two, quant_types=("Q2_K", "Q4_K_M", "Q6_K", "Q8_0")), facts("Q8_0"))
    assert found[PLOT].count("<circle") == 2
    assert "| -0.0000 ± 0.0000 |" in found["README.md"]
    assert PLOT not in pages(job(near[0], two[0]), facts("Q8_0"))


@pytest.mark.parametrize(
    ("there", "named"),
    [((), "Q4_K_M"), (("Q2_K",), "Q2_K"), (("Q2_K", "Q8_0"), "Q8_0"), (("Q8_0", "Q4_K_M"), "Q4_K_M")],
)
def test_the_lines_name_a_type_that_is_there(there: tuple[str, ...], named: str) -> None:
    commands = lines(pages(job(), facts(*there))["README.md"])
    assert commands[0] == f'llama-cli -hf alice/m-GGUF:{named} -r "\\n\\nUser:"'
    assert commands[1] == f'llama-server -hf alice/m-GGUF:{named} -r "\\n\\nUser:"'
    assert commands[3] == f"ollama run hf.co/alice/m-GGUF:{named}"


def test_other_models_have_plain_lines_and_nothing_of_ollama() -> None:
    gguf = replace(REQUEST.source, kind="gguf")
    found = pages(job(source=gguf), facts("Q2_K", rwkv=False))
    assert lines(found["README.md"])[0] == "llama-cli -hf alice/m-GGUF:Q2_K"
    assert found.keys() == {"README.md"}


def test_other_models_have_the_files_for_ollama_that_are_known() -> None:
    gguf, known = replace(REQUEST.source, kind="gguf"), family_files(FAMILIES[0])
    found = pages(job(source=gguf), replace(facts("Q2_K", rwkv=False), ollama=known))
    assert {name: found[name] for name in found.keys() - {"README.md"}} == known
    uploaded = {"template": 10}
    assert pages(job(source=gguf), CardFacts(uploaded=uploaded, ollama=known)).keys() == {"README.md", "params"}


def test_the_card_of_a_model_that_thinks() -> None:
    name = "rwkv7-g1k-2.9b-20260930-ctx25600"
    found = pages(job(name=name, chat_format="g1h"), CardFacts(uploaded={}, rwkv=True))
    assert {name: found[name] for name in OLLAMA_FILES} == ollama_files(G1H)
    card, flags = found["README.md"], "--reasoning off --temp 1 --top-p 0.28 --top-k 32"
    assert lines(card)[0] == f"llama-cli -hf alice/m-GGUF:Q4_K_M {flags}"
    assert "System✿Be brief.✿⏎User✿Hi✿⏎Bot✿Hello!✿⏎User✿Why?✿⏎Bot✿<think></think>\n" in card
    assert "| low | `User✿Why? (think a bit)✿⏎Bot✿<think>` |" in card
    assert "A reply ends with the token `✿` (10060), with the end of text (0), or before `⏎⏎User:`." in card
    assert "| top_p | 0.28 | 0.76 |" in card and "texts of 25600 tokens" in card
    front = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert (front["license"], front["base_model"]) == ("apache-2.0", "BlinkDL/rwkv7-g1")
    assert front["language"][:2] == ["en", "zh"]
    taken = pages(job(chat_format="g1c", source=replace(REQUEST.source, kind="gguf")), facts())
    assert taken["chat_template.jinja"] == G1C.template
    override = "--override-kv tokenizer.ggml.eot_token_id=int:0"
    plain = f'--jinja --chat-template-file chat_template.jinja {override} -r "\\n\\nUser:"'
    assert lines(taken["README.md"])[0] == f"llama-cli -hf alice/m-GGUF:Q4_K_M {plain} {flags}"
    assert "license" not in taken["README.md"].split("\n---\n")[0]  # nothing is guessed


def test_what_somebody_changed_for_ollama_stays() -> None:
    assert pages(job(), facts()).keys() == {"README.md", *OLLAMA_FILES}
    uploaded = {"template": 10, "params": 3}
    assert pages(job(), CardFacts(uploaded=uploaded, rwkv=True)).keys() == {"README.md", "system"}


@pytest.mark.parametrize("text", ["mit", "apache-2.0", "cc-by-nc-sa-4.0", "BlinkDL/rwkv-7-world"])
def test_ordinary_names_stand_plain(text: str) -> None:
    front = pages(job(source=replace(REQUEST.source, model_id=text)), replace(facts(), license=text))["README.md"]
    assert f"license: {text}\nbase_model: {text}\n" in front


@pytest.mark.parametrize(
    "text",
    ["mit\n", "no", "Yes", "null", "- a", "1.0", "1e3", "0x1f", "1_000", "2026-11-21", "a: b", "a #b", "x\n---\n# hi"]
    + [
        "a\r\nb",
        'a "quoted\\" one',
        "[a, b]",
        "*a",
        "!a",
        "~",
        "",
        " mit ",
        "é 许可 😀",
        "a\u2028b\x85c\x7f\ufeff",
        "\t",
    ],
)
def test_whatever_strangers_write_stays_one_string(text: str) -> None:
    source = replace(REQUEST.source, model_id=text or "a/b")
    card = pages(job(source=source), replace(facts(), license=text or "mit"))["README.md"]
    front = card.split("\n---\n")[0].removeprefix("---\n")
    read = yaml.safe_load(front)
    assert (read["license"], read["base_model"]) == (text or "mit", text or "a/b")
    assert read["tags"] == ["gguf", "llama-cpp", "ggufy", "imatrix"]
    assert len(re.split("[\n\r\x85\u2028\u2029]", front)) == 10


# ---- the lines, by llama.cpp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says scripted.REPLY and then goes on with a question."""
    return scripted.converted(tmp_path_factory.mktemp("scripted"))


def here(line: str, programs: dict[str, Path], model: Path) -> list[str]:
    """A line of the card as a shell takes it, with the file that it would fetch."""
    name, option, _, *rest = shlex.split(line)
    assert option == "-hf"
    return [str(programs[name]), "-m", str(model), *rest, "-t", "1", "--temp", "0", "-n", "40"]


def reply_of(command: list[str], folder: Path) -> str:
    """What llama-cli prints between the question and its line of timings; the prompt has to be the format's."""
    prompts = folder / "prompts"
    prompts.mkdir(exist_ok=True)
    command = [*command, "--simple-io", "-st", "-p", "What?", "--log-prompts-dir", str(prompts)]
    done = subprocess.run(
        command, env=environment(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in prompts.iterdir()] == ["User: What?\n\nAssistant:"]
    found = re.search(r"\n> What\?\n(.*)\n\[ Prompt:", done.stdout, re.DOTALL)
    assert found
    return found[1].strip()


@pytest.mark.tools
def test_llama_cli_stops_where_rwkv_does(programs: dict[str, Path], model: Path, tmp_path: Path) -> None:
    line = lines(pages(job(), facts())["README.md"])[0]
    assert reply_of(here(line, programs, model), tmp_path) == scripted.REPLY


@pytest.mark.tools
def test_what_the_official_end_of_turn_does(programs: dict[str, Path], model: Path, tmp_path: Path) -> None:
    """Should this fail, llama.cpp has changed, and chat_format.py's reasons are to be looked at again."""
    official = ["--override-kv", f"tokenizer.ggml.eot_token_id=int:{scripted.BLANK_LINE}"]
    plain = [str(programs["llama-cli"]), "-m", str(model), "-t", "1", "--temp", "0", "-n", "40"]
    assert reply_of([*plain, *official], tmp_path) == "One."
    (tmp_path / "ours").mkdir()
    assert reply_of(plain, tmp_path / "ours").startswith(scripted.REPLY + STOP)  # for the lines to stop


@pytest.mark.tools
def test_somebody_elses_rwkv_is_set_right(
    programs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what llama.cpp's converter wrote for long: a template that is a name, the blank line as end of turn."""
    add, add_template = GGUFWriter.add_eot_token_id, GGUFWriter.add_chat_template
    monkeypatch.setattr(GGUFWriter, "add_chat_template", lambda self, _: add_template(self, "rwkv-world"))
    monkeypatch.setattr(GGUFWriter, "add_eot_token_id", lambda self, _: add(self, scripted.BLANK_LINE))
    theirs = scripted.converted(tmp_path)
    card = pages(job(source=replace(REQUEST.source, kind="gguf")), facts())["README.md"]
    assert reply_of(here(lines(card)[0], programs, theirs), tmp_path) == scripted.REPLY


@pytest.mark.tools
def test_llama_server_stops_where_rwkv_does(
    serve: Callable[[list[str]], int], programs: dict[str, Path], model: Path
) -> None:
    _, server, curl, _ = lines(pages(job(), facts())["README.md"])
    port = serve(here(server, programs, model))
    program, address, _, header, _, message = shlex.split(curl)
    assert (program, header) == ("curl", "Content-Type: application/json")

    def ask(body: dict[str, Any]) -> str:
        request = urllib.request.Request(
            address.replace(":8080/", f":{port}/"),
            data=json.dumps(body).encode(),
            headers=dict([header.split(": ")]),
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.loads(response.read())["choices"][0]["message"]["content"])

    body = json.loads(message)
    assert ask(body).strip() == scripted.REPLY
    assert ask(body | {"stop": ["Two"]}).strip() == "One."
    assert STOP in ask(body | {"stop": ["nothing"]})  # as the card says: a stop of its own replaces the server's


# ---- Ollama's files


CONVERSATIONS: list[tuple[list[tuple[str, str]], str]] = [
    ([("user", "a")], "User: a\n\nAssistant:"),
    ([("system", "s"), ("user", "a")], "System: s\n\nUser: a\n\nAssistant:"),
    (
        [("user", "a"), ("assistant", " One.\n\nTwo。"), ("user", "b"), ("assistant", "c"), ("user", "你好")],
        "User: a\n\nAssistant: One.\n\nTwo。\n\nUser: b\n\nAssistant: c\n\nUser: 你好\n\nAssistant:",
    ),
    ([("user", "a"), ("assistant", "begun")], "User: a\n\nAssistant: begun"),
    ([("user", "a"), ("assistant", "")], "User: a\n\nAssistant:"),
    ([("assistant", "first"), ("user", "{{ .x }} <b>")], "Assistant: first\n\nUser: {{ .x }} <b>\n\nAssistant:"),
]


def test_ollamas_template_by_go_itself(go: Go) -> None:
    told = [{"Messages": [{"Role": role, "Content": text} for role, text in turns]} for turns, _ in CONVERSATIONS]
    assert go(OLLAMA_FILES["template"], told) == [expected for _, expected in CONVERSATIONS]


def test_ollamas_files_are_what_it_reads() -> None:
    template = OLLAMA_FILES["template"]
    actions = re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", template)
    opened = sum(action.startswith(("if ", "range ")) for action in actions)
    assert opened == actions.count("end") == 7 - 2
    assert template.count("{{") == template.count("}}") == len(actions)
    assert ".Messages" in template  # or Ollama would append the reply by itself
    params = json.loads(OLLAMA_FILES["params"])
    assert params["stop"] == [STOP]
    assert params.keys() == {"stop", "temperature", "top_p"}
    assert OLLAMA_FILES["system"].strip() == OLLAMA_FILES["system"] != ""
