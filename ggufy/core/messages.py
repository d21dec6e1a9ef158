"""What people read, together with the template and the values that it was made from, so that it can be said again in
another language, or in the words of another place.

A template holds `{name}` for every value, and `{NAME}` for words that differ from place to place: what a
terminal calls `--name` is a field of the page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

from ggufy.core.scrub import scrub

#: The words of a terminal; ui/messages.py has those of the page.
TERMINAL = {
    "AGAIN": "run the same command again",
    "ANEW": "run the same quantize command again",
    "AWQ": "--awq",
    "COMPENSATED": "--round compensated",
    "IMATRIX": "--imatrix",
    "KEEP_CARD": "--keep-card",
    "LORA": "--lora",
    "LORA_ALPHA": "--lora-alpha",
    "LORA_AS_FILE": "--lora-as-file",
    "LORA_INIT": "--lora-init",
    "MTP": "--mtp",
    "NAME": "--name",
    "NO_IMATRIX": "--imatrix none",
    "OUT": "--out",
    "OUTTYPE": "--outtype",
    "REPO": "--repo",
    "RWKVCPP": "--format rwkv.cpp",
    "TYPES": "--types",
    "VOCAB": "--vocab",
}
_HOLE = re.compile(r"\{(\w+)\}")
_WIDE = re.compile("[\u4e00-\u9fff]")
_DEEPEST = 5  # of messages in messages; records may come from anybody


class Message(str):
    """English text as a terminal shows it, that knows its `template` and `values`.

    A value is text, or a message of its own; an error made from a message stands for that message. Braces that belong
    to no value stay as they are.
    """

    template: str
    values: dict[str, str]

    def __new__(cls, template: str, /, **values: object) -> Self:
        known = {name: _value(value) for name, value in values.items()}
        message = super().__new__(cls, scrub(_fill(template, known, TERMINAL)))
        message.template, message.values = scrub(template), known
        return message

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        return (self.template,), self.values

    def say(self, catalogue: Mapping[str, str], words: Mapping[str, str]) -> str:
        """The text in another language and in the words of a place; English where the catalogue has no template."""
        template = catalogue.get(self.template, self.template)
        told = dict(self.values)
        for name, value in self.values.items():
            if isinstance(value, Message):
                told[name] = value.say(catalogue, words)
                if catalogue and _WIDE.match(told[name][:1]):  # blanks are for what is not Chinese
                    template = template.replace(f" {{{name}}}", f"{{{name}}}")
                if catalogue and _WIDE.match(told[name][-1:]):
                    template = template.replace(f"{{{name}}} ", f"{{{name}}}")
        return _fill(template, told, words)

    def changed(self, change: Callable[[str], str]) -> Self:
        """The message with its template and every value as `change` gives them, which has to do the same for values
        that are messages."""
        return type(self)(change(self.template), **{name: change(value) for name, value in self.values.items()})

    def to_record(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        values = {n: v.to_record() if isinstance(v, Message) else v for n, v in self.values.items()}
        return {"template": self.template, "values": values}

    @classmethod
    def from_record(cls, record: Any, deepest: int = _DEEPEST) -> Self:
        """Reads what `to_record` gave. Raises ValueError for anything else."""
        if not deepest or not isinstance(record, dict) or not isinstance(record.get("values"), dict):
            raise ValueError("not a message")
        template = str(record.get("template"))
        if max(Counter(_HOLE.findall(template)).values(), default=0) > 1:
            raise ValueError("not a message")  # a long value, many times: it would fill the memory
        values = {
            name: value if isinstance(value, str) else cls.from_record(value, deepest - 1)
            for name, value in record["values"].items()
        }
        return cls(template, **values)


def holes(template: str) -> set[str]:
    """The names of what is filled in."""
    return set(_HOLE.findall(template))


def message_of(error: BaseException) -> str:
    """What an error says: its message if it was made from one."""
    return error.args[0] if error.args and isinstance(error.args[0], Message) else str(error)


def _value(value: object) -> str:
    if isinstance(value, BaseException):
        value = message_of(value)
    return value if isinstance(value, Message) else scrub(str(value))


def _fill(template: str, values: Mapping[str, str], words: Mapping[str, str]) -> str:
    return _HOLE.sub(lambda hole: str(values.get(hole[1], words.get(hole[1], hole[0]))), template)
