"""Renders a model's chat template: a script that rendering.py runs (see system/isolated.py).

The template is a stranger's program. It runs in jinja2's sandbox, with the names that transformers gives to it
(transformers/utils/chat_template_utils.py): `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, loops
with break and continue, and `generation` blocks, which mark an answer and change nothing.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_MOST = 1 << 20  # letters of a rendering
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` is what stands in it."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox, as transformers sets it up."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return made


def render_all(template: str, conversations: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The `text` of each conversation, whose keys are the template's names, or why there is none, the `error`."""
    try:
        compiled = environment().from_string(template)
    except (*_FAILURES, RecursionError) as error:
        return [_failed(error)] * len(conversations)
    return [_rendered(compiled, conversation) for conversation in conversations]


def _rendered(compiled: jinja2.Template, names: dict[str, Any]) -> dict[str, str]:
    pieces, size = [], 0
    try:
        for piece in compiled.generate(**names):
            size += len(piece)
            if size > _MOST:
                return {"error": "it writes more than a million letters"}
            pieces.append(piece)
    except (*_FAILURES, RecursionError, MemoryError) as error:
        return _failed(error)
    return {"text": "".join(pieces)}


def _failed(error: BaseException) -> dict[str, str]:
    return {"error": (str(error).splitlines() or [""])[0][:300] or type(error).__name__}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(render_all(asked["template"], asked["conversations"])))  # noqa: T201
