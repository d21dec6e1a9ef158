"""Chat templates: rendered in a sandbox, compared with llama.cpp's reading of them, and known to Ollama or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.cli.lint import same, template_in
from ggufy.cli.ollama import files_for
from ggufy.core.errors import SourceError, UsageError
from ggufy.formats.gguf import read_head, read_items
from ggufy.models import rendering
from ggufy.models.ollama import FAMILIES, Family, family_files, family_in, family_of, modelfile
from ggufy.models.rendering import CONVERSATIONS, FOR_OLLAMA, Rendering, Turns, render, special_tokens
from ggufy.publish.card_facts import ollama_of
from tests import chatty
from tests.conftest import Ggufy, Go

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALKS = [CONVERSATIONS[name] for name in FOR_OLLAMA]
# Templates of our own, one for each family, written as models have them: with a default system prompt, with a refusal,
# with roles renamed, with the system prompt inside of a question.
JINJA = {
    "chatml": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% set told = '' %}{% if messages[0].role == 'system' %}"
        "{% set told = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + {'assistant': 'model'}.get(m.role, m.role) + '\\n' }}"
        "{% if loop.first %}{{ told }}{% endif %}{{ m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "phi-3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "phi-4": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "llama-2": (
        "{% set told = '' %}{% if messages[0].role == 'system' %}"
        "{% set told = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (told if loop.first else '') + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "mistral-blank": (
        "{{ bos_token }}{% set told = '' %}{% if messages[0].role == 'system' %}"
        "{% set told = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (told if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral-v3": (
        "{{ bos_token }}{% set told = '' %}{% if messages[0].role == 'system' %}"
        "{% set told = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (told if loop.last else '') + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral-nemo": (
        "{{ bos_token }}{% set told = '' %}{% if messages[0].role == 'system' %}"
        "{% set told = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST]' + (told if loop.last else '') + m.content + '[/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral-v7": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
}
HARMFUL = {
    "{{ 'a' * 10**10 }}": "MemoryError",
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    "{{ ().__class__.__mro__ }}": "is unsafe",
    "{{ messages.append(1) }}": "is unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}": "more than a million letters",
    "{% for m in messages %}": "Unexpected end of template",
    "{{ raise_exception('not like this') }}": "not like this",
    "{{ 1 / 0 }}": "division by zero",
}


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def told(turns: Turns) -> dict[str, object]:
    """A conversation as Ollama gives it to a template."""
    return {"Messages": [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]}


# ---- the sandbox


@pytest.mark.parametrize(("template", "why"), HARMFUL.items())
def test_a_template_that_would_harm_is_refused(template: str, why: str) -> None:
    (found,) = render(template, [CONVERSATIONS["one question"]], TOKENS)
    assert not found.text and why in found.error


def test_a_template_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_CPU_S", 1)
    with pytest.raises(SourceError, match=r"cannot be rendered \(it takes too much memory or time\): do not trust"):
        render("{{ 2 ** (2 ** 40) }}", [CONVERSATIONS["one question"]], TOKENS)


def test_names_and_blocks_of_transformers() -> None:
    template = (
        "{%- for m in messages %}\n    {%- if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}"
        "{% continue %}{% endif %}\n{{ {'a': '<é>'} | tojson }}{{ strftime_now('%%') }}{{ bos_token }}\n{% endfor %}"
    )
    (found,) = render(template, [CONVERSATIONS["several turns"]], TOKENS)
    assert (found.text, found.error) == ('{"a": "<é>"}%<s>\nHi.{"a": "<é>"}%<s>\nA model.{"a": "<é>"}%<s>\n', "")


def test_special_tokens_of_a_gguf(tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf")
    head = read_head(path)
    assert special_tokens(path, head) == TOKENS
    long = {5: "<0x02>", 258: "<0xFF>"}
    assert read_items(path, head, "tokenizer.ggml.tokens", [258, 5, 99999, -1]) == long
    assert read_items(path, head, "tokenizer.ggml.scores", [1]) == read_items(path, head, "none", [1]) == {}


# ---- Ollama


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_template_for_ollama_by_go(family: Family, go: Go) -> None:
    begun: Turns = [*CONVERSATIONS["system prompt"], {"role": "assistant", "content": "We"}]
    *found, went_on = go(family.template, [*map(told, TALKS), told(begun)])
    assert found == [family.prompt(turns) for turns in TALKS]
    prompt = family.prompt(CONVERSATIONS["system prompt"]).removesuffix(family.opening)
    assert went_on == f"{prompt}{family.assistant.before}We"


@pytest.mark.parametrize(("name", "template"), JINJA.items())
def test_a_models_own_template_tells_its_family(name: str, template: str, tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf", template)
    found = family_in(path, read_head(path))
    default = "You help." if name == "chatml" else ""
    assert found == replace(named(name), default_system=default)


@pytest.mark.fast
def test_a_model_whose_prompts_begin_with_its_beginning_of_text() -> None:
    """As SmolLM2's do, whose `<|im_start|>` is both."""
    said = replace(named("chatml"), default_system="You help.")
    prompts = [Rendering(text=said.prompt(turns)) for turns in TALKS]
    assert family_of(prompts, "<|im_start|>") == family_of(prompts, "") == said
    with_bos = [Rendering(text="<s>" + one.text) for one in prompts]
    assert family_of(with_bos, "<s>") == said and family_of(with_bos, "") is None
    assert same(with_bos[0], prompts[0], "<s>") and same(prompts[0], prompts[0], "<|im_start|>")
    assert not same(with_bos[0], prompts[0], "") and not same(prompts[0], Rendering(error="no"), "")


@pytest.mark.parametrize("change", [("'\\n' + m.content", "' ' + m.content"), ("'<|im_end|>'", "'<|end|>'")])
def test_a_template_that_writes_anything_else_has_none(change: tuple[str, str], tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf", JINJA["chatml"].replace(*change))
    assert JINJA["chatml"] != JINJA["chatml"].replace(*change)
    assert files_for(path, read_head(path)) == ({}, "")


def test_a_modelfile(ggufy: Ggufy, tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "My Model Q4_K_M.gguf", JINJA["chatml"])
    made = tmp_path / "My Model Q4_K_M.Modelfile"
    done = ggufy("ollama", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{made}  chatml",
        f"ollama create my-model-q4_k_m -f '{made}'",
        "ollama run my-model-q4_k_m",
    ]
    assert made.read_text() == (
        'FROM ./My Model Q4_K_M.gguf\nTEMPLATE """' + named("chatml").template + '"""\n'
        'SYSTEM """You help."""\nPARAMETER stop "<|im_start|>"\nPARAMETER stop "<|im_end|>"\n'
    )
    assert ggufy("ollama", path).code == 0
    made.write_text("FROM x")
    again = ggufy("ollama", path)
    assert again.code == 2 and "is there already, and says something else: move it away first." in again.err
    assert made.read_text() == "FROM x"


def test_nothing_of_a_stranger_becomes_a_line_of_a_modelfile(ggufy: Ggufy, tmp_path: Path) -> None:
    hostile = JINJA["chatml"].replace("You help.", 'You.\\"\\"\\"\\nADAPTER /etc/passwd\\nSYSTEM \\"\\"\\"')
    path = chatty.write(tmp_path / "m.gguf", hostile)
    (prompt,) = render(hostile, [CONVERSATIONS["one question"]], TOKENS)
    assert '"""\nADAPTER /etc/passwd\n' in prompt.text
    assert family_in(path, read_head(path)) is None
    done = ggufy("ollama", path.rename(tmp_path / "m\nADAPTER x.gguf"))
    assert done.code == 2 and "has characters that cannot be printed: rename the file." in done.err


def test_a_day_is_not_written_down(tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf", JINJA["chatml"].replace("You help.", "' + strftime_now('%F') + '"))
    assert family_in(path, read_head(path)) == named("chatml")


def test_a_modelfile_for_an_unknown_template(ggufy: Ggufy, tmp_path: Path) -> None:
    done = ggufy("ollama", chatty.write(tmp_path / "m.gguf"))
    assert done.code == 0 and "no template of m.gguf is known here: Ollama looks for one itself." in done.err
    assert (tmp_path / "m.Modelfile").read_text() == "FROM ./m.gguf\n"


@pytest.mark.fast
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_nothing_in_a_modelfile_ends_its_quotes(family: Family) -> None:
    text = modelfile("m.gguf", family_files(replace(family, default_system="Be brief.")))
    assert text.count('"""') == 4


def test_files_beside_published_quants(tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf", JINJA["gemma"])
    assert ollama_of(path, read_head(path)) == family_files(named("gemma"))
    hostile = chatty.write(tmp_path / "h.gguf", "{{ 'a' * 10**10 }}")
    assert ollama_of(hostile, read_head(hostile)) == {}


# ---- the lint


@pytest.mark.tools
@pytest.mark.parametrize("name", ["chatml", "gemma", "llama-2"])
def test_llama_cpp_reads_these_alike(name: str, ggufy: Ggufy, tmp_path: Path) -> None:
    done = ggufy("lint", chatty.write(tmp_path / "m.gguf", JINJA[name]), "--json")
    report = json.loads(done.out)
    assert [row["conversation"] for row in report["conversations"]] == list(CONVERSATIONS)
    different = [row for row in report["conversations"] if not row["same"]]
    assert (done.code, different) == (0, [])


@pytest.mark.tools
def test_llama_cpp_gives_a_system_prompt_to_a_template_that_refuses_one(ggufy: Ggufy, tmp_path: Path) -> None:
    """It puts the words into the question; transformers does not answer at all."""
    done = ggufy("lint", chatty.write(tmp_path / "m.gguf", JINJA["mistral"]))
    assert done.code == 1 and "6 of 10 conversations are the same." in done.out
    assert "system prompt, transformers: Only user and assistant roles are supported!" in done.out
    assert 'system prompt, llama.cpp: "[INST] You are brief.' in done.out


@pytest.mark.tools
def test_the_source_has_another_template(ggufy: Ggufy, tmp_path: Path) -> None:
    """Such as one that was mended after the GGUF had been made."""
    path = chatty.write(tmp_path / "m.gguf", JINJA["chatml"])
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": JINJA["chatml"].replace("You help.", "You help!")}))
    done = ggufy("lint", path, "--template", config)
    assert done.code == 1 and "4 of 10 conversations are the same." in done.out
    assert 'one question, transformers: "<|im_start|>system\\nYou help!<|im_end|>' in done.out
    assert 'one question, llama.cpp: "<|im_start|>system\\nYou help.<|im_end|>' in done.out
    assert "system prompt, " not in done.out


@pytest.mark.tools
def test_nothing_to_lint(ggufy: Ggufy, tmp_path: Path) -> None:
    done = ggufy("lint", chatty.write(tmp_path / "m.gguf", ""))
    assert done.code == 1 and done.err == (
        "ggufy: m.gguf has no chat template: convert it again from a source that has one.\n"
    )


@pytest.mark.fast
def test_where_a_template_is_written(tmp_path: Path) -> None:
    config, plain = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    plain.write_text("{{ 1 }}")
    assert template_in(plain) == "{{ 1 }}"
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert template_in(config) == "D"
    config.write_text("{}")
    with pytest.raises(SourceError, match="has no chat template: give the chat_template.jinja beside it"):
        template_in(config)
    for broken in ("[]", "{"):
        config.write_text(broken)
        with pytest.raises(UsageError, match="cannot be read as a template"):
            template_in(config)
