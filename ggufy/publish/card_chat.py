"""The part of a card that says how to talk with an RWKV: prompt letter by letter, thinking, stops, sampling. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ggufy.models.chat_format import OFF, ON, RwkvFormat
from ggufy.models.chat_names import Official

TITLE = "## How to talk with it"
_TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why?"},
)
_THINKING = (
    "With llama.cpp, `--reasoning on` and `off` choose between the first two; it is on if nothing is said. A request "
    'to the server may say `"chat_template_kwargs": {"enable_thinking": true, "reasoning_effort": "low"}`. Ollama '
    "thinks unless it is told `--think=false`, and LM Studio does not."
)


def how_to_talk(chat: RwkvFormat, known: Official | None) -> list[str]:
    """Lines of Markdown; `known` is what the model's name says."""
    lines = [TITLE, ""]
    if known:
        lines += [
            f"The model was trained on texts of {known.context} tokens, which llama.cpp takes for its limit. It has "
            "none of its own, and needs no more memory for a longer text.",
            "",
        ]
    lines += [
        f"Its chat format is `{chat.name}` ({chat.models}), which llama.cpp and Ollama find by themselves. "
        "Letter by letter, ⏎ being a line feed:",
        "",
        "```text",
        _visible(chat.prompt(_TURNS)),
        "```",
        "",
    ]
    if chat.thinks:
        lines += _thinking(chat)
    end = f"with the token `{chat.end_text}` ({chat.end_token}), " if chat.end_token else ""
    stop = _visible(chat.stops[-1])
    lines += [f"A reply ends {end}with the end of text (0), or before `{stop}`.", ""]
    if chat.thinks:
        lines += ["| sampling | not thinking | thinking |", "|---|---|---|"]
        lines += [
            f"| {name} | {chat.sampling[OFF][name]:g} | {value:g} |" for name, value in chat.sampling[ON].items()
        ]
    else:
        lines += [f"Advised sampling: {_numbers(chat.sampling[OFF])}."]
    return [*lines, ""]


def _thinking(chat: RwkvFormat) -> list[str]:
    """How to have it think, and how much."""
    question = [{"role": "user", "content": "Why?"}]
    lines = ["| thinking | the prompt ends |", "|---|---|"]
    lines += [f"| {mode} | `{_visible(chat.prompt(question, mode))}` |" for mode in (OFF, ON, *chat.words.efforts)]
    return [*lines, "", _THINKING, "", "What it thought is left out of the turns that it is given back.", ""]


def _visible(text: str) -> str:
    return text.replace("\n", "⏎")


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
