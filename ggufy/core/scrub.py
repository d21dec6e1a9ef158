"""Secrets, taken out of every text that leaves the program.

No secret is put into a text on purpose, but libraries quote what they are given: a header with the token, the address
of a proxy with its password. So errors (errors.py), records of jobs (job.py) and both output streams (streams.py) pass
what they say through `scrub`, which knows the secrets of this process and the looks of others.
"""

from __future__ import annotations

import re

_MASK = "***"
_SHORTEST = 6  # letters; anything shorter stands in texts by chance
_LOOKS = re.compile(
    r"\bhf_(?:[A-Za-z0-9]{30,}|oauth_[\w.-]{20,})"  # a token of the Hub
    r"|(?<=Bearer )[^\s'\"\\*]{6,}"  # what a header says of one
    r"|(?<=://)[^\s/@'\"]+(?=@)",  # the account and password of an address
)
_known: set[str] = set()


def remember(secret: str | None) -> None:
    """From now on this is taken out of every text."""
    if secret and len(secret) >= _SHORTEST:
        _known.add(secret)


def scrub(text: str) -> str:
    """The text without any secret."""
    for secret in _known:
        text = text.replace(secret, _MASK)
    return _LOOKS.sub(_MASK, text)
