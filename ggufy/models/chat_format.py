"""How RWKVs hold a conversation: the table of their formats, for every program that is to speak them. Pure.

    world           System: …⏎⏎User: …⏎⏎Assistant: …⏎⏎User: …⏎⏎Assistant:
    g1, g1c         the same, and then <think>, or an empty thought
    g1h             System✿…✿⏎User✿…✿⏎Bot✿…✿⏎User✿…✿⏎Bot✿<think>

No blank follows the last colon: the model makes it. A reply ends with the token "end of text" or where the model
begins the next question. A blank line alone ends nothing, since replies have several paragraphs. llama.cpp's own
converter names the blank line's token (261) as end of turn all the same, and so cuts every reply after its first
paragraph; and where a line ends in a full-width stop, another token makes the blank line, and nothing stops at all.

So the GGUF names "end of text" alone, and the next question's beginning is a stop text. No key of a GGUF can hold one:
llama.cpp is given it with `-r`, and Ollama in the file `params`. A ✿ is a token, which the GGUF names instead, as a
control token that is not printed. Ollama reads `template` (in Go's language), `system` and `params` from beside the
GGUFs of a repo on the Hub (https://huggingface.co/docs/hub/ollama). Without them the Hub translates the GGUF's
template; its translator (@huggingface/ollama-utils 0.0.18) puts a blank after the last colon and makes "User:"
anywhere a stop. An answer that ends in blanks goes back to the model with them, as Go's templates cannot cut any off.

From G1 on the models think, in `<think>…</think>` before the answer, unless an empty thought was begun for them; how
much, words behind the question say. What a model has thought is never given back to it. Sources of the strings:
BlinkDL's RWKV-v7/RWKV7-G1x-templates.txt and the templates of rwkv-rs; docs/chat.md has them all.

Not every RWKV speaks one of these: some were trained on music or games alone, with a vocabulary of their own. No file
says what a model has learnt, but a vocabulary that was made from conversations has their words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.core.errors import UsageError
from ggufy.core.words import brief
from ggufy.models import chat_template
from ggufy.models.chat_names import format_named
from ggufy.models.chat_template import Words

KEY = "ggufy.chat_format"  # of a GGUF of ours: name of its format; World's has none
TOKENIZER = "rwkv"  # a GGUF's tokenizer.ggml.model
_WORLD_ROWS = 65536  # of the embedding of every World model
STOP = "\n\nUser:"  # where the next question would begin
_LLAMA_WORLD = "--no-jinja --chat-template rwkv-world"
TEMPLATE_FILE = "chat_template.jinja"  # beside a GGUF that others converted, whose own template may be any

# World's. llama.cpp knows it by the line with 'User: ' and needs it letter by letter (src/llama-chat.cpp).
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- 'System: ' + message['content']|trim + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- 'User: ' + message['content']|trim + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' and message['content'] -%}
{{- 'Assistant: ' + message['content']|trim + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""

# An answer that comes last is gone on with. Replies begin with the blank after the colon, and come back with it.
_OLLAMA_TEMPLATE = """\
{{- $open := false }}
{{- range $i, $message := .Messages }}
{{- $open = false }}
{{- if eq .Role "system" }}System: {{ .Content }}

{{ else if eq .Role "user" }}User: {{ .Content }}

{{ else if and (eq .Role "assistant") .Content }}Assistant:{{ if ne (slice .Content 0 1) " " }} {{ end }}{{ .Content }}
{{- if eq (len (slice $.Messages $i)) 1 }}{{ $open = true }}{{ else }}

{{ end }}
{{- end }}
{{- end }}
{{- if not $open }}Assistant:{{ end -}}
"""
_OLLAMA_SYSTEM = "You are a helpful assistant."

AUTO = "auto"  # a wish: the format follows from the names
FLOWER = "✿"
_THINK, _THOUGHT = "<think>", "</think>"
OFF, ON = "off", "on"  # whether to think; on with an effort: low, medium, high
_BLANKS = " \t\n"


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How the models of an architecture hold a conversation."""

    template: str  # in Jinja: goes into the GGUF of a model that speaks it
    sides: frozenset[bytes]  # what both sides of a conversation are called

    def has_words(self, tokens: Iterable[bytes]) -> bool:
        """Whether a vocabulary is of conversations: its tokens name both sides of one, with or without a colon."""
        return {token.strip().removesuffix(b":") for token in tokens} >= self.sides


@dataclass(frozen=True, kw_only=True)
class RwkvFormat(ChatFormat):
    """How a generation of RWKVs does."""

    name: str  # as it is chosen
    models: str  # whose it is, for people
    words: Words
    thinks: bool
    stops: tuple[str, ...]  # texts that a reply ends before
    end_token: int = 0  # id in World's vocabulary of what ends a turn, besides the end of text
    ollama_template: str
    sampling: Mapping[str, Mapping[str, float]]  # off and on -> what the models' makers advise

    @property
    def modes(self) -> tuple[str, ...]:
        """What can be said of thinking; a single one if the models do not."""
        return (OFF, "low", ON, "medium", "high") if self.thinks else (OFF,)

    @property
    def end_text(self) -> str:
        """The token that ends a turn, if it has one of its own."""
        return FLOWER if self.end_token else ""

    def prompt(self, turns: Sequence[Mapping[str, str]], think: str = OFF) -> str:
        """The text that the model is to go on with; `turns` have a role (system, user, assistant) and a content."""
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
        text = ""
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant":
                said = turn["content"].rpartition(_THOUGHT)[2] if self.thinks else turn["content"]
                text += f"{self.words.assistant}{said.strip(_BLANKS)}{self.words.end}" if turn["content"] else ""
                continue
            label = self.words.user if turn["role"] == "user" else self.words.system
            effort = self.words.efforts.get(think, "") if place == last else ""
            text += label + self.cleaned(turn["content"]) + effort + self.words.end
        return text + self.begun(think)

    def begun(self, think: str = OFF) -> str:
        """What a reply is begun with."""
        if not self.thinks:
            return self.words.assistant.rstrip()
        return self.words.assistant + _THINK + (self.words.closed if think == OFF else "")

    def cleaned(self, text: str) -> str:
        """What a person has written, as it may stand in a turn: a blank line would end it, and so would a ✿."""
        if not self.thinks:
            return text.strip(_BLANKS)
        lines = (line for line in text.replace("\r\n", "\n").split("\n") if line.strip())
        text = "\n".join(lines).strip(_BLANKS)
        return text.replace(*self.words.replaced) if self.words.replaced else text

    def split(self, reply: str, think: str = OFF, *, ended: bool) -> tuple[str, str]:
        """(thought, answer) of what has come of a reply.

        Some think unasked, and begin with the tag themselves. While more may come (not `ended`), what could be the
        beginning of a tag is held back; in the end, what could be that of a stop goes.
        """
        opened = self.thinks and think != OFF
        text = reply.lstrip(_BLANKS)
        if not opened:
            if text.startswith(_THINK):
                opened, reply = True, text.removeprefix(_THINK)
            elif not ended and _THINK.startswith(text):
                return "", ""
        thought, closed, answer = reply.partition(_THOUGHT) if opened else ("", _THOUGHT, reply)
        if not closed and not ended:
            thought = _without_beginning(thought, _THOUGHT)
        return thought.strip(_BLANKS), self._stopped(answer, ended=ended).strip(_BLANKS)

    def _stopped(self, answer: str, *, ended: bool) -> str:
        """The answer until it stops."""
        for stop in self.stops:
            answer = answer.partition(stop)[0]
        for stop in self.stops if ended else ():  # a reply of the greatest length may end inside of one
            answer = _without_beginning(answer, stop)
        return answer


def _without_beginning(text: str, of: str) -> str:
    """The text without the longest beginning of another one that it ends in."""
    size = next((size for size in range(len(of) - 1, 0, -1) if text.endswith(of[:size])), 0)
    return text[: len(text) - size]


_PLAIN = {"system": "System: ", "user": "User: ", "assistant": "Assistant: ", "end": "\n\n"}
_FLOWERS = {"system": "System✿", "user": "User✿", "assistant": "Bot✿", "end": "✿\n", "replaced": "✿❀"}
_IN_BRACKETS = {"low": " (think a bit)", "medium": " (think)", "high": " (think a lot)"}
_NAMES = frozenset({b"User", b"Assistant"})
# rwkv-rs publishes both with its models of August 2026, BlinkDL's demo of G1j lies between them.
_G1_SAMPLING: dict[str, Mapping[str, float]] = {
    OFF: {"temperature": 1.0, "top_p": 0.28, "top_k": 32, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    ON: {"temperature": 0.96, "top_p": 0.76, "top_k": 32, "presence_penalty": 1.0, "frequency_penalty": 0.1},
}


def _thinking(words: Words, **fields: Any) -> RwkvFormat:
    return RwkvFormat(
        words=words,
        template=chat_template.jinja(words),
        ollama_template=chat_template.go(words),
        thinks=True,
        sampling=_G1_SAMPLING,
        **fields,
    )


WORLD = RwkvFormat(
    name="world",
    models="RWKV-6 World, RWKV-7 World and older ones",
    words=Words(**_PLAIN, closed="", efforts={}),
    thinks=False,
    template=CHAT_TEMPLATE,
    ollama_template=_OLLAMA_TEMPLATE,
    sides=_NAMES,
    stops=(STOP,),
    sampling={OFF: {"temperature": 1.0, "top_p": 0.5}},
)
G1 = _thinking(
    Words(**_PLAIN, closed="\n</think>", efforts={"low": " think a bit", "medium": " think", "high": " think a lot"}),
    name="g1",
    models="RWKV-7 G1, G1a, G1b and G0",
    sides=_NAMES,
    stops=(STOP,),
)
G1C = _thinking(
    Words(**_PLAIN, closed="</think>", efforts=_IN_BRACKETS),
    name="g1c",
    models="RWKV-7 G1c to G1g",
    sides=_NAMES,
    stops=(STOP,),
)
G1H = _thinking(
    Words(**_FLOWERS, closed="</think>", efforts=_IN_BRACKETS),
    name="g1h",
    models="RWKV-7 G1h and newer",
    sides=frozenset({b"User", b"Bot", FLOWER.encode()}),
    stops=(FLOWER, STOP),
    end_token=10060,
)
FORMATS = {chat.name: chat for chat in (WORLD, G1, G1C, G1H)}


def format_called(name: str) -> RwkvFormat:
    """The format that a record or a GGUF of ours names; World's if it names none, as older ones do."""
    return FORMATS.get(name, WORLD)


def format_of_gguf(metadata: Mapping[str, Any], *names: str) -> RwkvFormat | None:
    """The format to speak with the model of a GGUF: what ours says, else by the names of a file of RWKV-7 with World's
    vocabulary, whoever converted it and whatever its template is. None for other models than RWKV."""
    if metadata.get("tokenizer.ggml.model") != TOKENIZER:
        return None
    said = metadata.get(KEY)
    if isinstance(said, str) and said in FORMATS:
        return FORMATS[said]
    if metadata.get("general.architecture") != "rwkv7" or _rows(metadata) != _WORLD_ROWS:
        return WORLD
    return FORMATS[format_named([*names, str(metadata.get("general.name", ""))])]


def pinned_format(asked: str, names: Iterable[str], metadata: Mapping[str, Any] | None = None) -> str:
    """What a request pins of the format that was asked for: its name, or nothing where it is World's by these names
    too, as in older records. `metadata` are those of a source that is a GGUF, and say more than names. Raises
    UsageError for an unknown one."""
    if asked not in (AUTO, *FORMATS):
        raise UsageError(
            "unknown chat format {name}: one of {names}.", name=repr(brief(asked)), names=", ".join((AUTO, *FORMATS))
        )
    names = list(names)
    known = format_of_gguf(metadata, *names) if metadata is not None else FORMATS[format_named(names)]
    derived = known.name if known else WORLD.name
    chosen = derived if asked == AUTO else asked
    return "" if chosen == derived == WORLD.name else chosen


def speaks(metadata: Mapping[str, Any]) -> bool:
    """Whether the model of a GGUF with this metadata speaks a format: it has a chat template, or World's vocabulary if
    its converter wrote none."""
    if metadata.get("tokenizer.ggml.model") != TOKENIZER:
        return False
    return bool(metadata.get("tokenizer.chat_template")) or _rows(metadata) == _WORLD_ROWS


def _rows(metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens", 0)
    return tokens if isinstance(tokens, int) else len(tokens)


def ollama_files(chat: RwkvFormat) -> dict[str, str]:
    """What Ollama reads from beside the GGUFs of a repo, by name. It thinks unless it is told `--think=false`."""
    params = {"stop": list(chat.stops), **chat.sampling[ON if chat.thinks else OFF]}
    return {
        "template": chat.ollama_template,
        "system": _OLLAMA_SYSTEM,
        "params": json.dumps(params, indent=2, ensure_ascii=False) + "\n",
    }


def llama_flags(chat: RwkvFormat, *, converted: bool) -> list[str]:
    """Options of llama-cli and llama-server for a GGUF; `converted`: by ggufy, so that its metadata are ours.

    Others' templates may lose the text, or make any model think, and their end of turn is the blank line.
    """
    flags = []
    if not converted:
        flags += [f"--override-kv tokenizer.ggml.eot_token_id=int:{chat.end_token}"]
        flags.insert(0, f"--jinja --chat-template-file {TEMPLATE_FILE}" if chat.thinks else _LLAMA_WORLD)
    if not converted or not chat.end_token:  # in a stop text they read `\n` as a new line
        text = chat.stops[0].replace("\n", "\\n")
        flags.append(f'-r "{text}"')
    if chat.thinks:
        names = {"temperature": "temp", "top_p": "top-p", "top_k": "top-k"}
        sampling = chat.sampling[OFF].items()
        flags += ["--reasoning off", *(f"--{names[name]} {value:g}" for name, value in sampling if name in names)]
    return flags
