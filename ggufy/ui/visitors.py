"""Who sent a request."""

from __future__ import annotations

from typing import TypeAlias

import gradio as gr
from gradio import oauth
from gradio.oauth import OAuthProfile
from starlette.requests import Request

from ggufy.service.access import STRANGER, Visitor
from ggufy.service.service import Services

Profile: TypeAlias = OAuthProfile | None
_TOKEN = "x-hf-authorization"  # how a Space's callers show theirs; gradio_client sends it
_SCHEME = "Bearer "


def visitor_of(services: Services, request: gr.Request, profile: Profile) -> Visitor:
    """The account that has signed in, or, for a program, whose token it shows."""
    return _signed_in(profile) if profile is not None else _shown(services, request.headers.get(_TOKEN, ""))


def visitor_of_route(services: Services, request: Request) -> Visitor:
    """The same for a route of our own in gradio's app, whose session it is."""
    session = oauth._get_valid_oauth_info_from_session(request.scope.get("session") or {})
    return _signed_in(session["userinfo"]) if session else _shown(services, request.headers.get(_TOKEN, ""))


def _signed_in(told: dict[str, object]) -> Visitor:
    """From what the Hub tells of an account that signs in."""
    found = told.get("orgs")
    organisations = found if isinstance(found, list) else []
    names = {str(o.get("preferred_username", "")) for o in organisations if isinstance(o, dict)}
    return Visitor(name=str(told.get("preferred_username", "")), organisations=frozenset(names - {""}))


def _shown(services: Services, header: str) -> Visitor:
    if not services.settings.space_id or not header.startswith(_SCHEME):
        return STRANGER
    return services.who(header.removeprefix(_SCHEME))
