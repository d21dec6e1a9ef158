"""Models on the Hub by a few letters of their name: those with RWKV checkpoints first.

The page asks with every letter that somebody types, and everybody on a Space shares one allowance (1,000 calls in five
minutes). So answers are kept for some minutes, and between two questions to the Hub there is always half a second. A
question whose turn is too far away is not asked, and a Hub that wants to be left alone is.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ggufy.core.errors import HubAway
from ggufy.core.messages import Message
from ggufy.net.http_get import ask_hub
from ggufy.net.hub_errors import quota_wait_s, setup_sentence, status_of
from ggufy.net.session import FAILURES, is_transient, pause, short
from ggufy.sources.registry import models_among

SHORTEST = 2  # letters
SHOWN = 10  # results
_LOOKED_AT = 30  # the best of so many are shown
INTERVAL_S, LONGEST_TURN_S = 0.5, 2.0
KEPT_S, KEPT = 300.0, 256  # for how long, and how many answers
_AFTER_429_S = 60.0  # where the Hub names no time
_BROKEN = (json.JSONDecodeError, LookupError, TypeError, AttributeError)  # a page of something between us and the Hub
_FIELDS = ["downloads", "likes", "gated", "tags", "siblings", "usedStorage"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One repo of the Hub."""

    id: str  # owner/name
    downloads: int  # in the last 30 days
    likes: int
    size: int  # bytes of all its files and their history; 0: the Hub does not say
    gated: bool
    tags: tuple[str, ...]
    checkpoints: int  # how many models it has that need not be named

    @property
    def rwkv(self) -> bool:
        return any("rwkv" in text.lower() for text in (self.id, *self.tags))


class Search:
    """Asks the Hub, seldom; safe to share between threads."""

    def __init__(self, *, endpoint: str | None = None):
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[float, list[Found]]] = OrderedDict()
        self._next = 0.0  # when the Hub may be asked again, by time.monotonic()

    def __call__(self, query: str, *, token: str | None) -> list[Found]:
        """At most SHOWN repos, the most useful first; none for a query of fewer than SHORTEST letters.

        Raises HubAway if the Hub cannot be asked now.
        """
        query = " ".join(query.lower().split())[:96]
        if len(query) < SHORTEST:
            return []
        # What a token may see is for its owner only; the token itself is not kept.
        key = (query, hashlib.sha256(token.encode()).hexdigest() if token else "")
        with self._lock:
            kept_until, known = self._kept.get(key, (0.0, []))
        if time.monotonic() < kept_until:
            return list(known)
        found = self._ask(query, "" if "rwkv" in query else "rwkv", token)
        if not found and "rwkv" not in query:
            found = self._ask(query, "", token)
        found = sorted(found, key=_rank)[:SHOWN]
        with self._lock:
            self._kept[key] = (time.monotonic() + KEPT_S, found)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return list(found)

    def _ask(self, query: str, tag: str, token: str | None) -> list[Found]:
        """One question, in its turn."""
        self._wait_for_turn()
        # Not HfApi.list_models: it asks a busy Hub six times, for minutes if the Hub says so.
        asked: dict[str, str | int | list[str]] = {"search": query, "sort": "downloads", "limit": _LOOKED_AT}
        asked |= {"expand": _FIELDS} | ({"filter": tag} if tag else {})
        try:
            models = ask_hub("/api/models", token=token, endpoint=self._endpoint, params=asked)
            return [_found(model) for model in models]
        except (*FAILURES, *_BROKEN, RuntimeError) as error:
            if status_of(error) == 429:
                with self._lock:
                    self._next = time.monotonic() + quota_wait_s(error, _AFTER_429_S)
            raise HubAway(_sentence(error)) from error

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if turn - now > LONGEST_TURN_S:
                raise HubAway("the search is busy: try again in a moment, or type the name as owner/repo.")
            self._next = turn + INTERVAL_S
        pause(turn - now)


search = Search()


def _sentence(error: Exception) -> str:
    """Why the Hub could not be searched, and what to do."""
    if said := setup_sentence(error):
        return said
    advice, status = Message("type the name as owner/repo, or try again later."), status_of(error)
    if status == 401:
        return Message("the Hub does not know the token: set HF_TOKEN to a valid one, or leave it out.")
    if is_transient(status):
        return Message("the Hub is busy (HTTP status {status}): {advice}", status=status, advice=advice)
    if status:
        return Message("the Hub refuses to search (HTTP status {status}): {advice}", status=status, advice=advice)
    if isinstance(error, _BROKEN):
        return Message("the Hub's answer cannot be understood: {advice}", advice=advice)
    return Message("the Hub cannot be searched ({reason}): {advice}", reason=short(error), advice=advice)


def _rank(found: Found) -> tuple[bool, bool, int]:
    """RWKV with checkpoints, other RWKV, other models; the most downloaded first."""
    return not (found.rwkv and found.checkpoints), not found.rwkv, -found.downloads


def _found(model: dict[str, Any]) -> Found:
    """From one entry of the Hub's answer, of which only `id` is always there."""
    names = [file["rfilename"] for file in model.get("siblings") or ()]
    return Found(
        id=model["id"],
        downloads=model.get("downloads") or 0,
        likes=model.get("likes") or 0,
        size=model.get("usedStorage") or 0,
        gated=bool(model.get("gated")),
        tags=tuple(model.get("tags") or ()),
        checkpoints=sum(form.unnamed for form in models_among(names).values()),
    )
