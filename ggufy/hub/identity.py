"""Whose token a caller of the API has shown."""

from __future__ import annotations

import logging

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ggufy.access import STRANGER, Visitor

logger = logging.getLogger(__name__)


def account_of(token: str) -> Visitor:
    """The account and its organisations; STRANGER for a token that the Hub does not know, or while it is away."""
    try:
        found = HfApi(token=token).whoami()
    except (HfHubHTTPError, OSError) as error:
        logger.info("a token was shown that the Hub does not confirm: %s", type(error).__name__)
        return STRANGER
    organisations = frozenset(str(o.get("name", "")) for o in found.get("orgs", ()) if isinstance(o, dict))
    return Visitor(name=str(found.get("name", "")), organisations=organisations - {""})
