"""Messages in the visitor's language and in the words of the page.

`messages_zh.toml` has every template in Chinese: a table from English to it, with the same {values}. Another language
is one more such file.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

from ggufy.core.messages import Message
from ggufy.ui.i18n import Texts

#: As core.messages.TERMINAL.
PAGE = {
    "AGAIN": "press Retry",
    "ANEW": "start it again from the form",
    "IMATRIX": "“Importance matrix”",
    "KEEP_CARD": "“Keep the repo's own card”",
    "NAME": "“Name”",
    "NO_IMATRIX": "imatrix off",
    "OUT": "GGUFY_OUT",
    "OUTTYPE": "“Base type”",
    "REPO": "“Output repo”",
    "TYPES": "quant types",
    "VOCAB": "“Own vocabulary”",
}


def told(text: str, texts: Texts) -> str:
    """A message as the page puts it; any other text, such as the error of an old record, as it is."""
    return text.say(catalogue(texts["language"]), PAGE) if isinstance(text, Message) else text


@cache
def catalogue(language: str) -> dict[str, str]:
    """Templates in a language by the English ones; empty for English."""
    if language == "en":
        return {}
    text = resources.files("ggufy.ui").joinpath(f"messages_{language}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
