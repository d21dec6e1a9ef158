"""What a model replies, as HTML. A reply is a stranger's text: of Markdown it has what only shows something.

Tags are text, images are links to them, and a link leads to another site, in a tab of its own: a page of ours could do
something (`/logout`). Nothing is ever fetched. What would take long to read as Markdown is shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from ggufy.publish.markup import Markup, el

_PLACES = ("https://", "http://", "mailto:")
_MOST_BRACKETS, _MOST_LINES = 500, 1500  # the reader's time grows with their square


@lru_cache(maxsize=512)
def markdown(text: str) -> Markup:
    """The text as Markdown."""
    if text.count("[") > _MOST_BRACKETS or text.count("\n") > _MOST_LINES:
        return el("div", text, class_="gg-plain")
    return Markup(_READER.render(text))


_ELSEWHERE = {"target": "_blank", "rel": "noopener noreferrer nofollow"}


def _link(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    tokens[place].attrs |= _ELSEWHERE
    return renderer.renderToken(tokens, place, options, env)


def _image(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    source = str(tokens[place].attrs["src"])
    return el("a", tokens[place].content or source, href=source, **_ELSEWHERE)


def _reader() -> MarkdownIt:
    reader = MarkdownIt("js-default", {"html": False, "breaks": True})
    reader.validateLink = lambda url: url.lower().startswith(_PLACES)  # type: ignore[method-assign]
    reader.add_render_rule("link_open", _link)
    reader.add_render_rule("image", _image)
    return reader


_READER = _reader()
