"""How Ollama is told to talk with a model: what it reads from beside the GGUFs of a repo, or from a Modelfile.

Ollama's templates are in Go's language and cannot be made from a model's Jinja in general. So the usual ones are a
table here, and a model gets one if its own template, on five conversations, writes the same prompts letter by letter;
that a Go template writes them too is tested with Go itself. Where a template of the model cuts blanks around a text,
Go's cannot. A model that none of them fits gets no template: Ollama then looks for one of its own by the GGUF's.

A Modelfile is written as Ollama's parser reads it (parser/parser.go): three quotes stand around a text of several
lines, and nothing inside can be escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufy.formats.gguf import GgufHead
from ggufy.models.rendering import CONVERSATIONS, FOR_OLLAMA, KEY, Rendering, Turns, render, special_tokens

_QUOTES = '"""'
TEMPLATE = "template"  # name of a file that Ollama reads from a repo; others are system and params
FIRST, LAST = "first", "last"


@dataclass(frozen=True, kw_only=True)
class Around:
    """What stands before and after a text."""

    before: str
    after: str

    def put(self, text: str) -> str:
        return self.before + text + self.after

    @property
    def go(self) -> str:
        return f"{_literal(self.before)}{{{{ .Content }}}}{_literal(self.after)}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models whose prompts have the same form."""

    name: str
    user: Around
    assistant: Around
    system: Around  # on its own, or what stands around it in a question
    system_in: str = ""  # the question that a system prompt goes into: FIRST or LAST; empty: none, it is a turn
    stops: tuple[str, ...]
    default_system: str = ""  # what the template says of itself where nobody says anything

    def prompt(self, turns: Turns) -> str:
        """The text that the model is to go on with; a system prompt is the first turn, or there is none."""
        told = turns[0]["content"] if turns[0]["role"] == "system" else self.default_system
        questions = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
        chosen = {FIRST: questions[0], LAST: questions[-1]}.get(self.system_in)
        text = self.system.put(told) if told and chosen is None else ""
        for place, turn in enumerate(turns):
            if turn["role"] == "user":
                said = self.system.put(told) + turn["content"] if told and place == chosen else turn["content"]
                text += self.user.put(said)
            elif turn["role"] == "assistant":
                text += self.assistant.put(turn["content"])
        return text + self.opening

    @property
    def opening(self) -> str:
        """What an answer is begun with: a blank before it is the model's to make."""
        return self.assistant.before.rstrip(" ")

    @property
    def template(self) -> str:
        """The same in Go's language; an answer that comes last is gone on with."""
        user, answer, told = self.user, self.assistant, ""
        lines = ["{{- $open := false }}"]
        if self.system_in:
            put = f"{_literal(self.system.before)}{{{{ $system }}}}{_literal(self.system.after)}"
            told = f"{{{{ if and $system (eq $i $asked) }}}}{put}{{{{ end }}}}"
            is_it = 'and (eq .Role "user") (lt $asked 0)' if self.system_in == FIRST else 'eq .Role "user"'
            lines += [
                '{{- $system := "" }}{{ $asked := -1 }}',
                "{{- range $i, $_ := .Messages }}",
                f"{{{{- if {is_it} }}}}{{{{ $asked = $i }}}}{{{{ end }}}}",
                '{{- if eq .Role "system" }}{{ $system = .Content }}{{ end }}',
                "{{- end }}",
            ]
        turn = "" if self.system_in else self.system.go
        lines += [
            "{{- range $i, $_ := .Messages }}{{ $open = false }}",
            f'{{{{- if eq .Role "system" }}}}{turn}',
            f'{{{{- else if eq .Role "user" }}}}{_literal(user.before)}{told}{{{{ .Content }}}}{_literal(user.after)}',
            f'{{{{- else if eq .Role "assistant" }}}}{_literal(answer.before)}{{{{ .Content }}}}',
            "{{- if eq (len (slice $.Messages $i)) 1 }}{{ $open = true }}",
            f"{{{{- else }}}}{_literal(answer.after)}{{{{ end }}}}",
            "{{- end }}",
            "{{- end }}",
            f"{{{{- if not $open }}}}{_literal(self.opening)}{{{{ end -}}}}",
        ]
        return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """A text in Go's language."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _turned(before: str, after: str, names: tuple[str, str, str] = ("system", "user", "assistant")) -> dict[str, Any]:
    """Turns that differ in a name alone."""
    parts = zip(("system", "user", "assistant"), names, strict=True)
    return {role: Around(before=before.replace("ROLE", name), after=after) for role, name in parts}


def _bracketed(user_after: str, answer_before: str, answer_after: str, user_before: str = "[INST] ") -> dict[str, Any]:
    return {
        "user": Around(before=user_before, after=user_after),
        "assistant": Around(before=answer_before, after=answer_after),
    }


_LLAMA_2 = Around(before="<<SYS>>\n", after="\n<</SYS>>\n\n")
_SYSTEM_PROMPT = Around(before="[SYSTEM_PROMPT]", after="[/SYSTEM_PROMPT]")
_TEKKEN = _bracketed("[/INST]", "", "</s>", "[INST]")
_PLAIN = Around(before="", after="\n\n")
_GEMMA = _turned("<start_of_turn>ROLE\n", "<end_of_turn>\n", ("user", "user", "model")) | {"system": _PLAIN}
FAMILIES = (
    Family(name="chatml", **_turned("<|im_start|>ROLE\n", "<|im_end|>\n"), stops=("<|im_start|>", "<|im_end|>")),
    Family(
        name="llama-3",
        **_turned("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>"),
        stops=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Family(name="gemma", **_GEMMA, system_in=FIRST, stops=("<start_of_turn>", "<end_of_turn>")),
    Family(name="phi-3", **_turned("<|ROLE|>\n", "<|end|>\n"), stops=("<|end|>", "<|user|>", "<|assistant|>")),
    Family(name="phi-4", **_turned("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"), stops=("<|im_start|>", "<|im_end|>")),
    Family(name="zephyr", **_turned("<|ROLE|>\n", "</s>\n"), stops=("</s>", "<|user|>", "<|assistant|>")),
    Family(
        name="llama-2",
        **_bracketed(" [/INST]", " ", " </s><s>"),
        system=_LLAMA_2,
        system_in=FIRST,
        stops=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    Family(name="mistral", **_bracketed(" [/INST]", "", "</s>"), system=_PLAIN, system_in=FIRST, stops=("[INST]",)),
    Family(
        name="mistral-blank", **_bracketed(" [/INST]", " ", "</s>"), system=_PLAIN, system_in=FIRST, stops=("[INST]",)
    ),
    Family(name="mistral-v3", **_bracketed("[/INST]", " ", "</s>"), system=_PLAIN, system_in=LAST, stops=("[INST]",)),
    Family(name="mistral-nemo", **_TEKKEN, system=_PLAIN, system_in=LAST, stops=("[INST]",)),
    Family(name="mistral-v7", **_TEKKEN, system=_SYSTEM_PROMPT, stops=("[INST]",)),
)


def family_in(path: Path, head: GgufHead) -> Family | None:
    """The family of a GGUF with a chat template. Raises SourceError for a template that cannot be tried at all."""
    template = head.metadata.get(KEY)
    if not isinstance(template, str):
        return None
    tokens = special_tokens(path, head)
    found = family_of(render(template, [CONVERSATIONS[name] for name in FOR_OLLAMA], tokens), tokens["bos_token"])
    if found and "strftime_now" in template:
        return replace(found, default_system="")  # it names the day, which would be this one for ever
    return found


def family_of(renderings: Sequence[Rendering], bos: str) -> Family | None:
    """The family that writes these prompts, which are of the conversations FOR_OLLAMA in their order; those that the
    template refuses with a system prompt do not count.

    A prompt may begin with `bos`, where the tokenizer puts it too; some models have a word of their prompts for it.
    """
    found = {name: one.text for name, one in zip(FOR_OLLAMA, renderings, strict=True) if not one.error}
    plain = {name for name in FOR_OLLAMA if CONVERSATIONS[name][0]["role"] != "system"}
    if not plain <= found.keys():
        return None
    for prompts in (found, {name: text.removeprefix(bos) for name, text in found.items()}):
        for family in FAMILIES:
            said = replace(family, default_system=_default_system(family, prompts["one question"]))
            if all(said.prompt(CONVERSATIONS[name]) == text for name, text in prompts.items()):
                return said
    return None


def _default_system(family: Family, prompt: str) -> str:
    """What stands as the system prompt where nobody gave one; nothing if it would end the quotes of a Modelfile, since
    it is a stranger's text."""
    if family.system_in or not prompt.startswith(family.system.before):
        return ""
    told = prompt.removeprefix(family.system.before).partition(family.system.after)[0]
    return "" if _QUOTES in told else told


def family_files(family: Family) -> dict[str, str]:
    """What Ollama reads from beside the GGUFs of a repo, by name."""
    files = {TEMPLATE: family.template, "params": json.dumps({"stop": list(family.stops)}, indent=2) + "\n"}
    return files | ({"system": family.default_system} if family.default_system else {})


def modelfile(model: str, files: Mapping[str, str]) -> str:
    """A Modelfile for a GGUF of this name beside it, with what such files say."""
    lines = [f"FROM ./{model}"]
    for name, command in ((TEMPLATE, "TEMPLATE"), ("system", "SYSTEM")):
        if name in files:
            lines.append(f"{command} {_QUOTES}{files[name]}{_QUOTES}")
    for name, value in json.loads(files.get("params", "{}")).items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"PARAMETER {name} {_quoted(one) if isinstance(one, str) else one}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f"{_QUOTES}{text}{_QUOTES}" if "\n" in text or '"' in text else f'"{text}"'
