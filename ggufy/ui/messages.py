"""Messages in the visitor's language and in the words of the page, and for programs in those of the API.

`messages_zh.toml` has every template in Chinese: a table from English to it, with the same {values}. Another language
is one more such file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from ggufy.core.messages import Message
from ggufy.ui.i18n import Texts, read_table

#: As core.messages.TERMINAL.
PAGE = {
    "AGAIN": "press Retry",
    "ANEW": "start it again from the form",
    "AWQ": "“Activation-aware scales (AWQ)”",
    "COMPENSATED": "compensated rounding",
    "IMATRIX": "“Importance matrix”",
    "KEEP_CARD": "“Keep the repo's own card”",
    "LORA": "“Adapters”",
    "LORA_ALPHA": "“Alpha of the adapters”",
    "LORA_AS_FILE": "“Adapters as files of their own”",
    "LORA_INIT": "“What a PiSSA began with”",
    "MTP": "“Heads for several tokens”",
    "NAME": "“Name”",
    "NO_IMATRIX": "imatrix off",
    "OUT": "GGUFY_OUT",
    "OUTTYPE": "“Base type”",
    "REPO": "“Output repo”",
    "RWKVCPP": "the format rwkv.cpp",
    "TYPES": "quant types",
    "VOCAB": "“Own vocabulary”",
}
#: Where a call of the API has another name for it.
API = PAGE | {
    "AGAIN": "call resume_job",
    "ANEW": "call start_job again",
    "AWQ": "`awq`",
    "COMPENSATED": "`rounding` compensated",
    "KEEP_CARD": "`keep_card`",
    "NAME": "`name`",
    "LORA": "`lora`",
    "LORA_ALPHA": "`lora_alpha`",
    "LORA_AS_FILE": "`lora_as_file`",
    "LORA_INIT": "`lora_init`",
    "MTP": "`mtp`",
    "NO_IMATRIX": "`imatrix` false",
    "RWKVCPP": "`output` rwkv.cpp",
    "TYPES": "`quant_types`",
}
_NAME = re.compile(r"(pip|ggufy)\b|\w+[.-]\w")  # no sentence makes its first letter a capital


def told(text: str, texts: Texts) -> str:
    """A message as the page puts it; any other text, such as the error of an old record, as it is."""
    return _say(text, texts["language"], PAGE)


def told_to_programs(text: str) -> str:
    """A message as the API puts it: in English."""
    return _say(text, "en", API)


def _say(text: str, language: str, words: Mapping[str, str]) -> str:
    if not isinstance(text, Message):
        return text
    said = text.say(catalogue(language), words)
    if language != "en" or not text.template[:1].islower() or _NAME.match(text.template):
        return said
    return said[0].upper() + said[1:]


@cache
def catalogue(language: str) -> dict[str, str]:
    """Templates in a language by the English ones; empty for English."""
    if language == "en":
        return {}
    return read_table(f"messages_{language}.toml")
