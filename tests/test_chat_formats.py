"""RWKV's chat formats: one table of prompts, letter by letter, against everything that writes them."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest

from ggufy.core.errors import UsageError
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.core.source import Source
from ggufy.formats.gguf import read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.models.chat_format import (
    FORMATS,
    G1,
    G1C,
    G1H,
    KEY,
    WORLD,
    RwkvFormat,
    format_of_gguf,
    llama_flags,
    ollama_files,
    pinned_format,
)
from ggufy.models.chat_names import format_named, names_of, official
from ggufy.models.convert import convert
from ggufy.models.vocab import load_vocab, world_vocab_path
from ggufy.system.settings import Settings
from tests import scripted, tiny
from tests.conftest import Go, environment

Turns = list[dict[str, str]]
ONE: Turns = [{"role": "user", "content": "U1"}]
LONG: Turns = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1\n\nmore"},
    {"role": "user", "content": "U2"},
]
_PLAIN = "System: S\n\nUser: U1\n\nAssistant: A1\n\nmore\n\nUser: U2"
_FLOWERS = "System✿S✿\nUser✿U1✿\nBot✿A1\n\nmore✿\nUser✿U2"
# format, how much to think, turns, prompt. In other programs: on is `enable_thinking`, with an effort for the rest.
RENDERS: list[tuple[str, str, Turns, str]] = [
    ("world", "off", ONE, "User: U1\n\nAssistant:"),
    ("world", "off", LONG, f"{_PLAIN}\n\nAssistant:"),
    ("g1", "off", ONE, "User: U1\n\nAssistant: <think>\n</think>"),
    ("g1", "on", ONE, "User: U1\n\nAssistant: <think>"),
    ("g1", "off", LONG, f"{_PLAIN}\n\nAssistant: <think>\n</think>"),
    ("g1", "on", LONG, f"{_PLAIN}\n\nAssistant: <think>"),
    ("g1", "low", LONG, f"{_PLAIN} think a bit\n\nAssistant: <think>"),
    ("g1", "medium", LONG, f"{_PLAIN} think\n\nAssistant: <think>"),
    ("g1", "high", LONG, f"{_PLAIN} think a lot\n\nAssistant: <think>"),
    ("g1c", "off", ONE, "User: U1\n\nAssistant: <think></think>"),
    ("g1c", "off", LONG, f"{_PLAIN}\n\nAssistant: <think></think>"),
    ("g1c", "on", LONG, f"{_PLAIN}\n\nAssistant: <think>"),
    ("g1c", "low", LONG, f"{_PLAIN} (think a bit)\n\nAssistant: <think>"),
    ("g1c", "medium", LONG, f"{_PLAIN} (think)\n\nAssistant: <think>"),
    ("g1c", "high", LONG, f"{_PLAIN} (think a lot)\n\nAssistant: <think>"),
    ("g1h", "off", ONE, "User✿U1✿\nBot✿<think></think>"),
    ("g1h", "on", ONE, "User✿U1✿\nBot✿<think>"),
    ("g1h", "off", LONG, f"{_FLOWERS}✿\nBot✿<think></think>"),
    ("g1h", "on", LONG, f"{_FLOWERS}✿\nBot✿<think>"),
    ("g1h", "low", LONG, f"{_FLOWERS} (think a bit)✿\nBot✿<think>"),
    ("g1h", "medium", LONG, f"{_FLOWERS} (think)✿\nBot✿<think>"),
    ("g1h", "high", LONG, f"{_FLOWERS} (think a lot)✿\nBot✿<think>"),
]
# Turns that have to be cleaned, and what becomes of them. Go's templates cannot.
UNCLEAN: Turns = [
    {"role": "system", "content": " S\n\n\nmore \n"},
    {"role": "user", "content": "a\n\n    b\n \nUser✿"},
    {"role": "assistant", "content": "<think>Hm.\n\nSo</think>\n\nA1\n\nmore "},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "U2"},
]
_PLAINLY = "System: S\nmore\n\nUser: a\n    b\nUser✿\n\nAssistant: A1\n\nmore\n\nUser: U2\n\n"
CLEANED = [
    ("g1", f"{_PLAINLY}Assistant: <think>\n</think>"),
    ("g1c", f"{_PLAINLY}Assistant: <think></think>"),
    ("g1h", "System✿S\nmore✿\nUser✿a\n    b\nUser❀✿\nBot✿A1\n\nmore✿\nUser✿U2✿\nBot✿<think></think>"),
]
ALL = RENDERS + [(name, "off", UNCLEAN, prompt) for name, prompt in CLEANED]


def variables(think: str) -> dict[str, Any]:
    """What says so to a template in Jinja; nothing for off, which is what LM Studio says."""
    effort = {} if think in ("on", "off") else {"reasoning_effort": think}
    return {} if think == "off" else {"enable_thinking": True} | effort


# ---- the table


@pytest.mark.fast
@pytest.mark.parametrize(("name", "think", "turns", "prompt"), ALL)
def test_our_own_chat(name: str, think: str, turns: Turns, prompt: str) -> None:
    assert FORMATS[name].prompt(turns, think) == prompt


@pytest.mark.fast
@pytest.mark.parametrize(("name", "think", "turns", "prompt"), ALL)
def test_the_template_of_a_gguf(name: str, think: str, turns: Turns, prompt: str) -> None:
    template = jinja2.Environment(undefined=jinja2.Undefined).from_string(FORMATS[name].template)
    assert template.render(messages=turns, add_generation_prompt=True, **variables(think)) == prompt
    if think == "off":  # as llama.cpp says it, with an effort that nobody heeds then
        said = {"enable_thinking": False, "reasoning_effort": "high"}
        assert template.render(messages=turns, add_generation_prompt=True, **said) == prompt
    begun = FORMATS[name].begun(think)
    assert template.render(messages=turns, **variables(think)) == prompt.removesuffix(begun)


@pytest.mark.fast
def test_an_effort_that_nobody_knows_says_nothing() -> None:
    template = jinja2.Environment().from_string(G1H.template)
    said = {"enable_thinking": True, "reasoning_effort": "max"}
    assert template.render(messages=ONE, add_generation_prompt=True, **said) == "User✿U1✿\nBot✿<think>"


@pytest.mark.parametrize("name", FORMATS)
def test_ollamas_template_by_go(name: str, go: Go) -> None:
    rows = [(think, turns, prompt) for chat, think, turns, prompt in RENDERS if chat == name]
    told = [
        {
            "Messages": [{"Role": turn["role"], "Content": turn["content"], "Thinking": "Hm."} for turn in turns],
            "Think": think != "off",
            "ThinkLevel": think if think in ("low", "medium", "high") else "",
        }
        for think, turns, _ in rows
    ]
    begun = {"Messages": [*told[0]["Messages"], {"Role": "assistant", "Content": "We"}]}
    *found, went_on = go(ollama_files(FORMATS[name])["template"], [*told, begun])
    assert found == [prompt for _, _, prompt in rows]
    assert went_on == rows[0][2] + ("We" if FORMATS[name].thinks else " We")


@pytest.mark.fast
@pytest.mark.parametrize("chat", [G1, G1C, G1H])
def test_ollama_sees_the_same_in_both_templates(chat: RwkvFormat) -> None:
    """It takes the tags from around `.Thinking` in a loop over the messages, or from the Jinja's text."""
    files = ollama_files(chat)
    assert "<think>{{ .Thinking }}</think>" in files["template"].partition("range $i, $message := .Messages")[2]
    assert "<think>" in chat.template and "</think>" in chat.template
    for text in (chat.template, files["template"]):
        assert "tool" not in text.lower()
    assert json.loads(files["params"])["stop"] == list(chat.stops)


# ---- llama.cpp


@pytest.fixture(scope="module", params=FORMATS)
def spoken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RwkvFormat, Path]:
    """A format, and a tiny model that speaks it."""
    name = str(request.param)
    return FORMATS[name], scripted.converted_thinker(tmp_path_factory.mktemp(name), name)


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.loads(response.read()))


@pytest.mark.tools
def test_llama_server_renders_the_table(
    serve: Callable[[list[str]], int], programs: dict[str, Path], spoken: tuple[RwkvFormat, Path]
) -> None:
    chat, model = spoken
    port = serve([str(programs["llama-server"]), "-m", str(model), "-t", "1", "--temp", "0", "-n", "20"])
    rows = [(think, turns, prompt) for name, think, turns, prompt in ALL if name == chat.name]
    for think, turns, prompt in rows:
        said = {"enable_thinking": False} | variables(think)
        assert post(port, "/apply-template", {"messages": turns, "chat_template_kwargs": said})["prompt"] == prompt
    if chat.thinks:  # llama.cpp's own choice where nothing is said
        assert post(port, "/apply-template", {"messages": ONE})["prompt"].endswith("<think>")
    if chat is not G1H:
        return
    for think, thought in (("on", scripted.THOUGHT), ("off", None)):
        said = {"enable_thinking": False} | variables(think)
        answer = post(port, "/v1/chat/completions", {"messages": LONG, "chat_template_kwargs": said})["choices"][0]
        assert answer["finish_reason"] == "stop"
        assert answer["message"]["content"].strip() == scripted.ANSWER
        assert (answer["message"].get("reasoning_content") or "").strip() == (thought or "")


def cli_prompt(programs: dict[str, Path], folder: Path, model: Path, flags: list[str]) -> tuple[str, str]:
    """The prompt that llama-cli logs for the message U1, and what it prints as reply."""
    prompts = folder / "prompts"
    prompts.mkdir()
    command = [str(programs["llama-cli"]), "-m", str(model), *flags, "-t", "1", "--temp", "0", "-n", "20"]
    command += ["--simple-io", "-st", "-p", "U1", "--log-prompts-dir", str(prompts)]
    done = subprocess.run(
        command, env=environment(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (logged,) = prompts.iterdir()
    reply = re.search(r"\n> U1\n(.*)\n\[ Prompt:", done.stdout, re.DOTALL)
    assert reply
    return logged.read_text(encoding="utf-8"), reply[1].strip()


@pytest.mark.tools
@pytest.mark.parametrize("think", ["off", "on"])
def test_llama_cli_logs_the_prompt(
    programs: dict[str, Path], tmp_path: Path, spoken: tuple[RwkvFormat, Path], think: str
) -> None:
    chat, model = spoken
    flags = ["--jinja", "--reasoning", think] if chat.thinks else ["--jinja"]
    prompt, reply = cli_prompt(programs, tmp_path, model, flags)
    assert prompt == chat.prompt(ONE, think)
    if chat is G1H and think == "off":
        assert reply == scripted.ANSWER  # stopped by the token, which is not printed
    if chat is G1H and think == "on":
        assert reply.endswith(scripted.ANSWER) and "[Start thinking]" in reply


@pytest.mark.tools
def test_somebody_elses_gguf_by_the_lines_of_its_card(programs: dict[str, Path], tmp_path: Path) -> None:
    """With no format of ours in it, the blank line's token for the end, and the word that older ones have."""
    ours = scripted.converted_thinker(tmp_path, "")
    (tmp_path / "chat_template.jinja").write_text(G1H.template, encoding="utf-8")
    tokens = tiny.fields(ours)["tokenizer.ggml.tokens"]
    end = tokens.index("\\xe2\\x9c\\xbf")  # type: ignore[attr-defined]
    flags = [word for flag in llama_flags(G1H, converted=False) for word in flag.replace('"', "").split(" ")]
    flags[flags.index("chat_template.jinja")] = str(tmp_path / "chat_template.jinja")
    flags = [f"tokenizer.ggml.eot_token_id=int:{end}" if "=int:" in flag else flag for flag in flags]
    prompt, reply = cli_prompt(programs, tmp_path, ours, flags)
    assert (prompt, reply) == ("User✿U1✿\nBot✿<think></think>", scripted.ANSWER)


# ---- which one a model speaks


@pytest.mark.fast
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["rwkv7-g1k-2.9b-20260930-ctx25600.pth"], "g1h"),
        (["rwkv7-g1h-1.5b-20260710-ctx10240"], "g1h"),
        (["rwkv7-g1z-1.5b-20271010-ctx10240"], "g1h"),
        (["rwkv7-g1g-7.2b-20260501-ctx8192.pth"], "g1c"),
        (["rwkv7-g1c-13.3b-20251231-ctx8192.pth"], "g1c"),
        (["rwkv7-g1b-1.5b-20251202-ctx8192.pth"], "g1"),
        (["rwkv7-g1a4-2.9b-20251118-ctx8192.pth"], "g1"),
        (["rwkv7-g1-2.9b-20250519-ctx4096.pth"], "g1"),
        (["rwkv7-g0a3-7.2b-20250929-ctx4096.pth"], "g1"),
        (["rwkv7a-g1b-0.1b-20250819-ctx4096.pth"], "g1"),
        (["RWKV7-G1e-7.2B-GGUF"], "g1c"),
        (["RWKV7-G1k-2.9B-20260930-FLA/model.safetensors"], "g1h"),
        (["rwkv7-g1e-7.2b-Q5_K_M-better_quantization-20260319.gguf"], "g1c"),
        (["model.safetensors", "rwkv-rs/rwkv7-g1-st"], "g1"),
        (["rwkv7-g1k-1.5b-20260930-ctx25600/model.safetensors", "rwkv-rs/rwkv7-g1-st"], "g1h"),
        (["rwkv7-g1k-1.5B-lora-dolci.pth"], "g1h"),
        (["Goose_G1j_roleplay.pth"], "g1h"),
        (["model.safetensors", "RWKV/RWKV7-1.5B-20260805"], "g1h"),
        (["model.safetensors", "RWKV/RWKV7-2.9B-20260105"], "g1c"),
        (["RWKV-x070-World-1.5B-v3-20250127-ctx4096.pth", "BlinkDL/rwkv-7-world"], "world"),
        (["RWKV-x070-World-1.5B-v3-20250127-ctx4096.pth", "somebody/rwkv7-g1k-mix"], "world"),
        (["RWKV-x060-World-3B-v2.1-20240417-ctx4096.pth"], "world"),
        (["rwkv-6-g1k.pth"], "world"),
        (["my-tune-20261001.pth"], "world"),  # the day of a fine-tune says nothing of its base
        (["rwkv7-world-lora-20261001.pth", "me/RWKV7-1.5B-20260805"], "world"),
        (["big1k.pth", "me/g12", "org1k"], "world"),
        (["ggufy-demo"], "world"),
        ([], "world"),
    ],
)
def test_what_names_say(names: list[str], expected: str) -> None:
    assert format_named(names) == expected


@pytest.mark.fast
def test_what_a_source_is_called() -> None:
    def source(path: str, **facts: str) -> Source:
        return Source(kind="checkpoint", path=path, size=1, sha256="", **facts)  # type: ignore[arg-type]

    assert names_of(source("/home/g1k/tune.pth")) == ["tune.pth"]
    assert names_of(source("/m/RWKV7-G1k-2.9B/model.safetensors")) == ["RWKV7-G1k-2.9B/model.safetensors"]
    assert names_of(source("a/b.pth", model_id="o/r")) == ["a/b.pth", "o/r"]


@pytest.mark.fast
def test_what_a_request_pins() -> None:
    assert pinned_format("auto", ["rwkv7-g1k.pth"]) == "g1h"
    assert pinned_format("g1c", ["rwkv7-g1k.pth"]) == "g1c"
    assert pinned_format("world", ["rwkv7-g1k.pth"]) == "world"
    assert pinned_format("world", ["demo.pth"]) == pinned_format("auto", ["demo.pth"]) == ""
    with pytest.raises(UsageError, match="unknown chat format 'chatml': one of auto, world, g1, g1c, g1h"):
        pinned_format("chatml", [])


@pytest.mark.fast
def test_a_job_keeps_what_its_model_speaks(tmp_path: Path) -> None:
    source, vocab = scripted.thinker(tmp_path)
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path)})

    def made(path: Path, **options: Any) -> Job:
        wish = JobOptions(source=str(path), vocab=str(vocab), quant_types=("Q8_0",), imatrix="none", **options)
        return make_job(wish, settings)

    by_name, plain, world = made(source), made(source, chat_format="g1c"), made(source, chat_format="world")
    assert [job.request.chat_format for job in (by_name, plain, world)] == ["g1h", "g1c", "world"]
    assert made(source, chat_format="g1h") == by_name
    other = source.rename(tmp_path / "tune.pth")
    assert made(other).request.chat_format == made(other, chat_format="world").request.chat_format == ""
    assert made(other, name="rwkv7-g1e-tune").request.chat_format == "g1c"
    older = replace(by_name.request, chat_format="")
    assert len({job.request.inputs() for job in (by_name, plain, world, Job(request=older))}) == 4
    for job in (by_name, Job(request=older)):
        assert from_json(to_json(job)) == job
        assert ("chat_format" in to_json(job)) is bool(job.request.chat_format)
    assert replace(older, source=replace(older.source, kind="gguf"), chat_format="g1h").inputs() == (
        replace(older, source=replace(older.source, kind="gguf")).inputs()
    )


@pytest.mark.fast
def test_only_official_names_say_what_a_model_is() -> None:
    known = official("RWKV7-G1k-2.9B-20260930-ctx25600")
    assert known and (known.name, known.context) == ("rwkv7-g1k-2.9b-20260930-ctx25600", 25600)
    assert official("BlinkDL-rwkv7-g0a4-13.3b-20251114-ctx8192")
    for name in (
        "rwkv7-g1k-2.9b-20260930-ctx25600-lora",
        "my-rwkv7-g1k-2.9b-20260930-ctx25600",
        "rwkv7-g1k-2.9b",
        "RWKV-x070-World-1.5B-v3-20250127-ctx4096",
    ):
        assert official(name) is None


WORLDS = {"tokenizer.ggml.model": "rwkv", "general.architecture": "rwkv7", "tokenizer.ggml.tokens": 65536}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("metadata", "file", "expected"),
    [
        (WORLDS, "rwkv7-g1k-2.9b-Q4_K_M.gguf", G1H),
        (WORLDS | {"tokenizer.chat_template": "rwkv-world"}, "rwkv7-g1e-2.9b-Q4_K_M.gguf", G1C),
        (WORLDS | {"general.name": "RWKV7 G1a 1.5B"}, "model.gguf", G1),
        (WORLDS | {KEY: "world"}, "rwkv7-g1k-2.9b-Q4_K_M.gguf", WORLD),
        (WORLDS | {KEY: "g1c", "tokenizer.ggml.tokens": 300}, "x.gguf", G1C),
        (WORLDS | {KEY: ["g1c"]}, "x.gguf", WORLD),
        (WORLDS | {"tokenizer.ggml.tokens": 300}, "rwkv7-g1k.gguf", WORLD),  # it may not even have a ✿
        (WORLDS | {"general.architecture": "rwkv6"}, "g1k.gguf", WORLD),
        (WORLDS | {"tokenizer.ggml.model": "gpt2"}, "rwkv7-g1k.gguf", None),
    ],
)
def test_which_format_a_gguf_gets(metadata: dict[str, Any], file: str, expected: RwkvFormat | None) -> None:
    assert format_of_gguf(metadata, file) is expected


def test_worlds_vocabulary_has_the_words_of_all() -> None:
    tokens = load_vocab(world_vocab_path())
    assert all(chat.has_words(tokens) for chat in FORMATS.values())
    assert tokens[G1H.end_token] == G1H.end_text.encode()
    assert not G1H.has_words(tiny.vocab_tokens())


# ---- what is written


def test_what_a_g1_gets(tmp_path: Path) -> None:
    fields = tiny.fields(scripted.converted_thinker(tmp_path))
    flower = fields["tokenizer.ggml.tokens"].index("\\xe2\\x9c\\xbf")  # type: ignore[attr-defined]
    assert fields["tokenizer.ggml.eot_token_id"] == flower
    assert fields["tokenizer.ggml.token_type"][flower] == 3  # type: ignore[index]
    assert fields["tokenizer.chat_template"] == G1H.template
    assert fields[KEY] == "g1h"
    assert fields["rwkv7.context_length"] == 4096
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/BlinkDL/rwkv7-g1"
    assert len(fields["general.languages"]) == 12  # type: ignore[arg-type]


def test_what_an_older_record_gets_is_as_it_was(tmp_path: Path) -> None:
    fields = tiny.fields(scripted.converted_thinker(tmp_path, ""))
    assert fields["tokenizer.chat_template"] == WORLD.template
    assert (fields["tokenizer.ggml.eot_token_id"], fields["rwkv7.context_length"]) == (0, 1 << 20)
    assert not {KEY, "general.license", "general.languages"} & fields.keys()
    assert 3 not in fields["tokenizer.ggml.token_type"][1:]  # type: ignore[index]


def test_a_vocabulary_without_the_words_gets_no_template(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7")
    convert(source, tmp_path / "m.gguf", vocab=vocab, chat_format="g1h")
    assert not {KEY, "tokenizer.chat_template"} & read_head(tmp_path / "m.gguf").metadata.keys()


# ---- replies


@pytest.mark.fast
@pytest.mark.parametrize(
    ("chat", "think", "reply", "coming", "ended"),
    [
        (WORLD, "off", "Hi.\n\nUser: more", ("", "Hi."), ("", "Hi.")),
        (WORLD, "off", "Hi.\n\nUse", ("", "Hi.\n\nUse"), ("", "Hi.")),
        (WORLD, "off", "Hi.\n\nThere", ("", "Hi.\n\nThere"), ("", "Hi.\n\nThere")),
        (WORLD, "off", "<thi", ("", ""), ("", "<thi")),
        (WORLD, "off", " <think>Unasked</think>\nHi", ("Unasked", "Hi"), ("Unasked", "Hi")),
        (G1C, "on", "Hm", ("Hm", ""), ("Hm", "")),
        (G1C, "on", "Hm.\n</thi", ("Hm.", ""), ("Hm.\n</thi", "")),
        (G1C, "on", "Hm.\n\nUser: so</think>\n\nHi.", ("Hm.\n\nUser: so", "Hi."), ("Hm.\n\nUser: so", "Hi.")),
        (G1C, "off", "\n\nHi", ("", "Hi"), ("", "Hi")),
        (G1H, "low", "Hm.</think>Hi✿\nUser✿more", ("Hm.", "Hi"), ("Hm.", "Hi")),
        (G1H, "off", "Hi\n\nUser: more", ("", "Hi"), ("", "Hi")),
    ],
)
def test_thought_and_answer(
    chat: RwkvFormat, think: str, reply: str, coming: tuple[str, str], ended: tuple[str, str]
) -> None:
    assert chat.split(reply, think, ended=False) == coming
    assert chat.split(reply, think, ended=True) == ended


# ---- the document


@pytest.mark.fast
def test_the_document_has_the_prompts() -> None:
    text = (Path(__file__).parent.parent / "docs" / "chat.md").read_text(encoding="utf-8")
    told = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Why?")]
    turns = [{"role": role, "content": content} for role, content in told]
    for chat in FORMATS.values():
        assert f"| `{chat.name}` | {chat.models} | `{chat.prompt(turns).replace(chr(10), '⏎')}` |" in text
    efforts = zip(G1.words.efforts.items(), G1H.words.efforts.values(), strict=True)
    for (level, plain), bracketed in efforts:
        assert f"| {level} | `{plain}` | `{bracketed}` | `<think>` |" in text
    tools = text.partition("```text\n")[2].partition("\n```")[0]
    system, question = tools.split("\n\n")[0].removeprefix("System: "), "How warm is it in Paris?"
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    assert G1C.prompt(turns) == tools
