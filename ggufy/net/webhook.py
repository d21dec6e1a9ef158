"""One POST of JSON to an address of somebody's own choice."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import httpx2
from huggingface_hub import get_session

from ggufy.net.session import QUICK_TIMEOUT, identify, use_timeouts


def post_json(url: str, body: Mapping[str, object]) -> int:
    """Sends it once, without a token, and follows no redirect; returns the HTTP status. Raises one of
    session.FAILURES, or RuntimeError where another thread has closed the session."""
    use_timeouts()
    session = get_session()
    request = session.build_request("POST", url, json=dict(body), timeout=QUICK_TIMEOUT)
    identify(request, {}, frozenset())
    response: httpx2.Response = session.send(request, stream=True, follow_redirects=False)
    with contextlib.closing(response):
        return int(response.status_code)
