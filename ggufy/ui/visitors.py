"""Who sent a request."""

from __future__ import annotations

from typing import TypeAlias

import gradio as gr
from gradio.oauth import OAuthProfile

from ggufy.access import STRANGER, Visitor
from ggufy.service import Services

Profile: TypeAlias = OAuthProfile | None
_SCHEME = "Bearer "


def visitor_of(services: Services, request: gr.Request, profile: Profile) -> Visitor:
    """The account that has signed in, or, for a program, whose token `gradio_client` sends."""
    if profile is not None:
        found: object = profile.get("orgs")
        organisations = found if isinstance(found, list) else []
        names = {str(o.get("preferred_username", "")) for o in organisations if isinstance(o, dict)}
        return Visitor(name=profile.username, organisations=frozenset(names - {""}))
    shown = request.headers.get("x-hf-authorization", "") if services.settings.space_id else ""
    return services.who(shown.removeprefix(_SCHEME)) if shown.startswith(_SCHEME) else STRANGER
