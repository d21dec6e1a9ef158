"""Every text of the page, in English and in Simplified Chinese.

`TEXTS[language][key]`; keys are the same in both, and `{…}` in a text is filled with `str.format`. The browser's
language decides, unless the visitor has chosen one: the choice is a cookie, which `texts_of` reads for what the server
writes, and which early.js tells gradio's own components. A language is one file, texts_LANGUAGE.toml, and its name
in `TEXTS`. What errors say is not here, as they come from everywhere: see messages.py.
"""

from __future__ import annotations

import tomllib
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any

from ggufy.core.outputs import GGUF, OUTPUT_NAMES, RWKVCPP
from ggufy.quantize.search.target import ADVICE

Texts = dict[str, str]
COOKIE = "ggufy_language"


def read_table(name: str) -> dict[str, Any]:
    """What a .toml file of this package holds."""
    return tomllib.loads(resources.files("ggufy.ui").joinpath(name).read_text(encoding="utf-8"))


def advice_key(output: str, quant: str) -> str:
    """Of the text that says what a quant type of a format is good for."""
    return f"advice_{quant}" if output == GGUF else f"advice_{output}_{quant}"


def _texts(language: str) -> Texts:
    table = read_table(f"texts_{language}.toml")
    advice = {GGUF: table.pop("advice", {}), RWKVCPP: table.pop("advice_rwkvcpp", {})}
    told = {advice_key(output, name): text for output, texts in advice.items() for name, text in texts.items()}
    return table | told


TEXTS: dict[str, Texts] = {
    "en": _texts("en")
    | {advice_key(name, t): row.advice for name, one in OUTPUT_NAMES.items() for t, row in one.types.items()}
    | {f"advice_order_{kind}": text for kind, text in ADVICE.items()},
    "zh": _texts("zh"),
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
