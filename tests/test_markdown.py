"""A reply is a stranger's text: what becomes of it on the page."""

from __future__ import annotations

import random
import time
from html.parser import HTMLParser

import pytest

from ggufy.ui.markdown import markdown

SHOWN = [
    ("one\ntwo\n\nthree", "<p>one<br>\ntwo</p>\n<p>three</p>"),
    ("**b** *i* `c < d`", "<p><strong>b</strong> <em>i</em> <code>c &lt; d</code></p>"),
    ("```py\nx < 1\n```", '<pre><code class="language-py">x &lt; 1\n</code></pre>'),
    ("```py\nstill coming", '<pre><code class="language-py">still coming</code></pre>'),
    ("# T\n\n- a\n- b", "<h1>T</h1>\n<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
    ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
]
ELSEWHERE = 'target="_blank" rel="noopener noreferrer nofollow"'
# What is tried -> where its link leads; None: there is none
LINKS = {
    "[x](https://a.example/b?c=d)": "https://a.example/b?c=d",
    "[x](mailto:a@b.example)": "mailto:a@b.example",
    "<https://a.example>": "https://a.example",
    "![x](https://a.example/b.png)": "https://a.example/b.png",
    '[x](https://a.example/"onclick="y)': "https://a.example/%22onclick=%22y",
    "[x](javascript:alert(1))": None,
    "[x](JaVaScript:alert(1))": None,
    "[x](&#106;avascript:alert(1))": None,
    "[x](data:text/html,y)": None,
    "![x](data:image/svg+xml,y)": None,
    "[x](vbscript:y)": None,
    "[x](/logout)": None,
    "[x](//evil.example)": None,
    "[x](?a=b)": None,
    "[x](#gg-head)": None,
    "[x][y]\n\n[y]: javascript:z": None,
    "<javascript:x>": None,
    "<img src=x onerror=y>": None,
    "<script>x</script>": None,
}
TAGS = set(
    "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul".split()
)
NAMES = {"a": {"href", "title", "target", "rel"}, "code": {"class"}, "ol": {"start"}, "td": {"style"}, "th": {"style"}}


class Tags(HTMLParser):
    """The tags and attributes of HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(("text", "html"), SHOWN)
def test_markdown_is_shown(text: str, html: str) -> None:
    assert markdown(text).strip() == html


@pytest.mark.parametrize(("text", "target"), LINKS.items())
def test_links_lead_to_other_sites_and_nothing_is_fetched(text: str, target: str | None) -> None:
    html = markdown(text)
    links = [attributes for tag, attributes in Tags(html).found if tag == "a"]
    assert [link["href"] for link in links] == ([] if target is None else [target])
    assert html.count(ELSEWHERE) == len(links)
    assert {tag for tag, _ in Tags(html).found} <= {"a", "p"}


def test_no_mixture_makes_another_tag_or_attribute() -> None:
    rng = random.Random(1)
    pieces = [
        "<",
        ">",
        "[",
        "](",
        ")",
        "!",
        "`",
        "```",
        "\n",
        "\n\n",
        "|",
        "-|-",
        "*",
        "_",
        "~~",
        "#",
        " ",
        "\t",
        "&lt;",
    ]
    pieces += [
        "javascript:x",
        "https://a.b",
        "img src=x onerror=y",
        "script",
        '"',
        "'",
        "style=x",
        "x",
        "1. ",
        "- ",
        "&#0;",
    ]
    for _ in range(800):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        for tag, attributes in Tags(markdown(text)).found:
            assert tag in TAGS, text
            assert attributes.keys() <= NAMES.get(tag, set()), text
            assert (attributes.get("href") or "https://").startswith(("https://", "http://", "mailto:")), text
            assert attributes.get("style", "text-align:") in ("text-align:", *(f"text-align:{w}" for w in WAYS)), text


WAYS = ("left", "right", "center")


@pytest.mark.parametrize("text", ["[", "![", "[a](", "a\n=\n", "[x]: y\n", "*a ", "<a", "`a", "> ", "|a"])
def test_no_reply_keeps_the_page_busy(text: str) -> None:
    """Unbounded, some of these take a minute."""
    start = time.process_time()
    assert markdown((text * 128_000)[:128_000])
    assert time.process_time() - start < 10
