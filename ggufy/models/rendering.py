"""What a model's own chat template, in Jinja, makes of conversations: ten that show what templates differ in.

Templates come with models of strangers, and Jinja is a language to write programs in: each is rendered in a process of
its own, in a sandbox (template_renderer.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message
from ggufy.core.words import brief
from ggufy.formats.gguf import GgufHead, read_items
from ggufy.system.isolated import IsolatedFailure, run_isolated

KEY = "tokenizer.chat_template"
_CPU_S, _MEMORY = 10, 1 << 30
Turns = list[dict[str, str]]
_SYSTEM = {"role": "system", "content": "You are brief."}


def _talk(*texts: str) -> Turns:
    """Questions and answers in turn."""
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]


# What is asked, by name. The last five are for the lint alone: Ollama's templates can neither cut nor refuse a text.
CONVERSATIONS: dict[str, Turns] = {
    "one question": _talk("Hello!"),
    "system prompt": [_SYSTEM, *_talk("Hello!")],
    "several turns": _talk("Hello!", "Hi.", "Who are you?", "A model.", "Thanks!"),
    "system prompt and turns": [_SYSTEM, *_talk("Hello!", "Hi.", "Who are you?")],
    "Chinese, quotes, code": _talk("把 “x” 和 'y' 写成 {{ x }}：\n\n\tif a < b && c: \\n 🙂", "`a`\n\n- b", "好"),
    "words of templates": _talk("<s>[INST] <|im_end|> {% raw %} </think>", "<|eot_id|>", "User: x\n\nAssistant: y"),
    "blanks around": [{"role": "system", "content": " S \n"}, *_talk("  a \n\n b\n", "\n c \n", " d ")],
    "a thought in an answer": _talk("1+1?", "<think>\nSimple.\n</think>\n\n2", "And 2+2?"),
    "two questions in a row": [*_talk("One."), *_talk("Two.")],
    "an empty system prompt": [{"role": "system", "content": ""}, *_talk("Hello!")],
}
FOR_OLLAMA = tuple(CONVERSATIONS)[:5]


@dataclass(frozen=True)
class Rendering:
    """A prompt, or why the template gave none."""

    text: str = ""
    error: str = ""


def template_of(head: GgufHead, name: str) -> str:
    """The chat template of a GGUF. Raises SourceError if it has none."""
    template = head.metadata.get(KEY)
    if not isinstance(template, str) or not template.strip():
        raise SourceError(
            "{name} has no chat template: convert it again from a source that has one.",
            name=name,
        )
    return template


def special_tokens(path: Path, head: GgufHead) -> dict[str, str]:
    """`bos_token` and `eos_token` as a template gets them: the texts that the vocabulary has for them, else empty."""
    ids = {kind: head.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")}
    texts = read_items(path, head, "tokenizer.ggml.tokens", [one for one in ids.values() if isinstance(one, int)])
    return {f"{kind}_token": texts.get(one, "") if isinstance(one, int) else "" for kind, one in ids.items()}


def render(template: str, conversations: Sequence[Turns], names: Mapping[str, Any]) -> list[Rendering]:
    """The prompts up to where an answer begins; `names` are what the template is given besides.

    Raises SourceError for a template that cannot be tried at all.
    """
    asked: list[dict[str, Any]] = [
        {"messages": turns, "add_generation_prompt": True, **names} for turns in conversations
    ]
    script = Path(__file__).with_name("template_renderer.py").absolute()
    with tempfile.TemporaryDirectory(prefix="ggufy-template-") as folder:
        file = Path(folder) / "asked.json"
        file.write_text(json.dumps({"template": template, "conversations": asked}), encoding="utf-8")
        try:
            found = run_isolated(script, [str(file)], cpu_s=_CPU_S, memory=_MEMORY)
        except IsolatedFailure as failure:
            raise SourceError(
                "the chat template cannot be rendered ({reason}): do not trust this model, and convert it again from "
                "a source that you know.",
                reason=brief(str(failure)) or Message("it takes too much memory or time"),
            ) from None
    return [Rendering(text=one.get("text", ""), error=one.get("error", "")) for one in found]
