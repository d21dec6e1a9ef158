"""HTML written so that nothing has to be escaped by hand: text is always escaped, elements never are.

    el("p", "a < b", class_="note")  ->  <p class="note">a &lt; b</p>

Names of files, models and errors come from strangers. They may stand in text and in attribute values, where this
makes them harmless. They must never stand in a gradio `html_template`: gradio fills that in and then runs the result
as a JavaScript template, so that a file called `${…}` would be run.
"""

from __future__ import annotations

import html

_EMPTY_ELEMENTS = frozenset({"input", "br"})


class Markup(str):
    """Finished HTML."""

    __slots__ = ()


Child = Markup | str | None
Attribute = str | int | bool | None


def el(name: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element. `class_` is class, `data_job` is data-job; None and False leave an attribute out."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(label if value is True else f'{label}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in _EMPTY_ELEMENTS else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Elements and texts after one another; None is nothing."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))
