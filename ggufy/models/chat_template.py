"""The chat formats as templates for other programs: Jinja for llama.cpp and LM Studio, Go's language for Ollama. Pure.

What a template may be is not what it could be: several programs read its text to find out what the model can do.

- Programs take a thought for one where the prompt ends in a whole `<think>`, and where it is on and off show the tag.
  Without `>`, as RWKV people write it, the thought would land in the answer.
- `enable_thinking` undefined is off: LM Studio never defines it, and a model of 2026 thinks for thousands of tokens.
  llama.cpp always does, as true unless it is told `--reasoning off`.
- `add_generation_prompt` gets no default: llama.cpp would find no beginning of a reply, and split nothing.
- Nothing is used that one of the engines lacks (llama.cpp's own, Python's, @huggingface/jinja).
- Ollama prefers the Jinja of the GGUF to a Go template that shows less: both show the same. It learns the tags from
  text around `.Thinking`, which stands here where it is never printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_JINJA = """\
{%- macro cleaned(text) -%}
{%- for line in text.split('\\n') if line|trim -%}{{- line + '\\n' -}}{%- endfor -%}
{%- endmacro -%}
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- 'SYSTEM' + cleaned(message['content'])|trimREPLACED + 'END' -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER' + cleaned(message['content'])|trimREPLACED -}}
{%- if loop.index0 == last.question and enable_thinking is defined and enable_thinking \
and reasoning_effort is defined -%}
{{- {EFFORTS}[reasoning_effort] -}}
{%- endif -%}
{{- 'END' -}}
{%- elif message['role'] == 'assistant' and message['content'] -%}
{{- 'ASSISTANT' + message['content'].split('</think>')[-1]|trim + 'END' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT<think>' -}}
{%- if not (enable_thinking is defined and enable_thinking) -%}{{- 'CLOSED' -}}{%- endif -%}
{%- endif -%}
"""

# A reply that comes last is gone on with. Go's templates cannot clean or trim a text: it goes as it comes.
_GO = """\
{{- $question := -1 }}
{{- range $i, $message := .Messages }}{{ if eq .Role "user" }}{{ $question = $i }}{{ end }}{{ end }}
{{- $open := false }}
{{- range $i, $message := .Messages }}
{{- $open = false }}
{{- if eq .Role "system" }}SYSTEM{{ .Content }}END
{{- else if eq .Role "user" }}USER{{ .Content }}
{{- if and $.Think (eq $i $question) }}EFFORTS{{ end }}END
{{- else if and (eq .Role "assistant") .Content }}
{{- if eq (len (slice $.Messages $i)) 1 }}{{ $open = true }}ASSISTANT<think>CLOSED{{ .Content }}
{{- else }}SAID{{ .Content }}END
{{- end }}
{{- end }}
{{- if and .Thinking (eq .Role "never") }}<think>{{ .Thinking }}</think>{{ end }}
{{- end }}
{{- if not $open }}ASSISTANT<think>{{ if not $.Think }}CLOSED{{ end }}{{ end -}}
"""


class Words(NamedTuple):
    """What stands around the texts of a conversation with a model that thinks."""

    system: str  # before a text
    user: str
    assistant: str
    end: str  # after it
    closed: str  # after `<think>`, for an empty thought
    efforts: Mapping[str, str]  # level -> what follows the last question
    replaced: str = ""  # what a text of people must not hold: each letter becomes the next one of this


def jinja(words: Words) -> str:
    """The template for a GGUF's `tokenizer.chat_template`."""
    efforts = ", ".join(f"'{level}': '{text}'" for level, text in words.efforts.items())
    replaced = f"|replace('{words.replaced[0]}', '{words.replaced[1]}')" if words.replaced else ""
    text = _JINJA.replace("REPLACED", replaced).replace("{EFFORTS}", f"{{{efforts}}}")
    return _filled(text, words, "\\n")


def go(words: Words) -> str:
    """The template for Ollama's file of that name."""
    levels = [f'if eq $.ThinkLevel "{level}" }}}}{text}' for level, text in words.efforts.items()]
    efforts = "{{ " + "{{ else ".join(levels) + "{{ end }}"
    # A reply that comes back may have kept the blank that it began with.
    blank = words.assistant.removesuffix(" ")
    said = words.assistant
    if blank != said:
        said = blank + '{{ if ne (slice .Content 0 1) " " }} {{ end }}'
    text = _GO.replace("EFFORTS", efforts).replace("SAID", said)
    return _filled(text, words, "{{ $newline }}").replace("{{ $newline }}", '{{ "\\n" }}')


def _filled(text: str, words: Words, newline: str) -> str:
    named = {"SYSTEM": words.system, "USER": words.user, "ASSISTANT": words.assistant, "END": words.end}
    for name, value in (named | {"CLOSED": words.closed}).items():
        text = text.replace(name, value.replace("\n", newline))
    return text
