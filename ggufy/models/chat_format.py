"""RWKV's World format of a conversation, for every program that is to speak it. Pure.

    System: …⏎⏎User: …⏎⏎Assistant: …⏎⏎User: …⏎⏎Assistant:

No blank follows the last colon: the model makes it. A reply ends with the token "end of text" or where the model
begins the next question. A blank line alone ends nothing, since replies have several paragraphs. llama.cpp's own
converter names the blank line's token (261) as end of turn all the same, and so cuts every reply after its first
paragraph; and where a line ends in a full-width stop, another token makes the blank line, and nothing stops at all.

So the GGUF names "end of text" alone, and the next question's beginning is a stop text. No key of a GGUF can hold one:
llama.cpp is given it with `-r`, and Ollama in the file `params`. Ollama reads `template` (in Go's language), `system`
and `params` from beside the GGUFs of a repo on the Hub (https://huggingface.co/docs/hub/ollama). Without them the Hub
translates the GGUF's template; its translator (@huggingface/ollama-utils 0.0.18) puts a blank after the last colon and
makes "User:" anywhere a stop. An answer that ends in blanks goes back to the model with them, as Go's templates cannot
cut any off.

Not every RWKV speaks it: some were trained on music or games alone, with a vocabulary of their own. No file says what
a model has learnt, but a vocabulary that was made from conversations has their words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TOKENIZER = "rwkv"  # a GGUF's tokenizer.ggml.model
_WORLD_ROWS = 65536  # of the embedding of every World model
STOP = "\n\nUser:"  # where the next question would begin
# For llama-cli and llama-server, which read `\n` in a stop text as a new line.
LLAMA_STOP = '-r "\\n\\nUser:"'
# Also for files that others converted: their template may lose the text, or make any model think.
LLAMA_FORMAT = "--no-jinja --chat-template rwkv-world --override-kv tokenizer.ggml.eot_token_id=int:0"

# llama.cpp knows the World format by the line with 'User: ' and needs it letter by letter (src/llama-chat.cpp).
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
_OLLAMA_PARAMS = {"stop": [STOP], "temperature": 1.0, "top_p": 0.5}  # the page's own chat has the same

OLLAMA_FILES = {
    "template": _OLLAMA_TEMPLATE,
    "system": _OLLAMA_SYSTEM,
    "params": json.dumps(_OLLAMA_PARAMS, indent=2) + "\n",
}


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How the models of an architecture hold a conversation."""

    template: str  # in Jinja: goes into the GGUF of a model that speaks it
    sides: frozenset[bytes]  # what both sides of a conversation are called

    def has_words(self, tokens: Iterable[bytes]) -> bool:
        """Whether a vocabulary is of conversations: its tokens name both sides of one, with or without a colon."""
        return {token.strip().removesuffix(b":") for token in tokens} >= self.sides


WORLD = ChatFormat(template=CHAT_TEMPLATE, sides=frozenset({b"User", b"Assistant"}))


def speaks(metadata: Mapping[str, Any]) -> bool:
    """Whether the model of a GGUF with this metadata speaks the format: it has a chat template, or World's vocabulary
    if its converter wrote none."""
    if metadata.get("tokenizer.ggml.model") != TOKENIZER:
        return False
    return bool(metadata.get("tokenizer.chat_template")) or has_world_vocabulary(metadata)


def has_world_vocabulary(metadata: Mapping[str, Any]) -> bool:
    """Whether the GGUF with this metadata has World's vocabulary."""
    tokens = metadata.get("tokenizer.ggml.tokens", 0)
    rows = tokens if isinstance(tokens, int) else len(tokens)
    return metadata.get("tokenizer.ggml.model") == TOKENIZER and rows == _WORLD_ROWS
