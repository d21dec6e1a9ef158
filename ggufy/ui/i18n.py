"""Every text of the page, in English and in Simplified Chinese.

`TEXTS[language][key]`; keys are the same in both, and `{…}` in a text is filled with `str.format`. The browser's
language decides, unless the visitor has chosen one: the choice is a cookie, which `texts_of` reads for what the server
writes, and which language.js tells gradio's own components. Another language is one more table.
What errors say is not here, as they come from everywhere: see messages.py.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Any

from ggufy.core.catalog import QUANT_TYPES
from ggufy.quantize.search.target import ADVICE
from ggufy.ui.texts_en import EN
from ggufy.ui.texts_zh import ADVICE_ZH, ZH

Texts = dict[str, str]
COOKIE = "ggufy_language"

TEXTS: dict[str, Texts] = {
    "en": EN
    | {f"advice_{row.name}": row.advice for row in QUANT_TYPES}
    | {f"advice_order_{kind}": text for kind, text in ADVICE.items()},
    "zh": ZH | {f"advice_{name}": text for name, text in ADVICE_ZH.items()},
}


def pick(accept_language: str) -> Texts:
    """The texts for a browser's Accept-Language header: its first language if there is one here, else English."""
    first = accept_language.split(",")[0].split(";")[0].split("-")[0].strip().lower()
    return TEXTS.get(first, TEXTS["en"])


def texts_of(request: Any) -> Texts:
    """The texts for the visitor who sent `request` (a gr.Request, with any headers)."""
    chosen = ""
    try:
        cookie = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
        chosen = cookie.value if cookie else ""
    except CookieError:
        pass
    return TEXTS.get(chosen) or pick(request.headers.get("accept-language", ""))
