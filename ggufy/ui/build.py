"""Builds the page and serves it.

The only files that it hands out are finished products of jobs that the visitor may see, by a route of our own:
gradio's `allowed_paths` would open a whole folder, records and logs included. What a page needs that is not a Space's
is in guard.py.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
import gradio.routes
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from ggufy.service.access import check_reach, is_own_host
from ggufy.service.service import Services
from ggufy.system.settings import Settings
from ggufy.ui import comparing, parts
from ggufy.ui.api import NAMES, add_api
from ggufy.ui.chat_tab import ChatTab
from ggufy.ui.file_rows import FILES_ROUTE
from ggufy.ui.follow_panel import FollowPanel
from ggufy.ui.guard import HEALTH, KnownHosts, Locked
from ggufy.ui.head import EarlyScript
from ggufy.ui.i18n import TEXTS, texts_of
from ggufy.ui.jobs_panel import JobsPanel
from ggufy.ui.quantize_tab import QuantizeTab
from ggufy.ui.server import PageServer
from ggufy.ui.visitors import Profile, visitor_of, visitor_of_route
from ggufy.ui.wiring import HERE, OWN, QUIET, script

logger = logging.getLogger(__name__)
_QUEUE_S = 0.02  # between two looks of gradio's queue at itself: its own thousand a second take 5 % of a core for ever
_SANS = ["system-ui", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", "monospace"]


def build(services: Services) -> gr.Blocks:
    """The page, not served yet."""
    i18n = gr.I18n(**_translations())
    with gr.Blocks(title="ggufy", analytics_enabled=False) as page:
        header = gr.HTML(parts.header(TEXTS["en"]), js_on_load=script("header"), elem_id="gg-head", **OWN)
        if services.settings.login:
            gr.LoginButton(visible=False)  # with it in the page, gradio serves the sign-in; the header links to it
        banner = JobsPanel.banner_above()
        with gr.Tabs(elem_id="gg-tabs") as tabs:
            with gr.Tab(i18n("tab_quantize"), id="quantize"), gr.Row(elem_id="gg-columns"):
                with gr.Column(scale=2, min_width=340, elem_id="gg-form"):
                    form = QuantizeTab(services, i18n)
                    follow = FollowPanel(services, i18n)
                with gr.Column(scale=3, min_width=340):
                    jobs = JobsPanel(services)
            with gr.Tab(i18n("tab_chat"), id="chat") as tab:
                chat = ChatTab(services, i18n, tab)
        jobs.connect(page, banner)
        form.connect(page, jobs.show_after)
        follow.connect(page, form)
        chat.connect()

        def talk(event: gr.EventData, request: gr.Request, profile: Profile) -> list[Any]:
            names = services.chats.models(visitor_of(services, request, profile))
            file = getattr(event, "file", "")
            return [
                gr.Tabs(selected="chat"),
                gr.Dropdown(choices=[*names], value=file) if file in names else gr.skip(),
            ]

        jobs.jobs.talk(talk, None, [tabs, chat.models[0]], **QUIET)

        def greet(request: gr.Request, profile: Profile) -> list[Any]:
            texts, visitor = texts_of(request), visitor_of(services, request, profile)
            shown = parts.header(texts, login=services.settings.login, name=visitor.name)
            return [shown, *form.greet(texts, visitor)]

        add_api(services)
        page.load(greet, None, [header, *form.greeted], **QUIET)
    for event in page.fns.values():
        if event.api_name not in NAMES:  # such as the sign-in button's own
            event.api_visibility = "private"
    page.space_id = None  # or the page would fetch a header and fonts from other sites; the login does not look at it
    return page


def serve(services: Services) -> PageServer:
    """Serves the page in a thread, and returns what `close()`s it. Raises UsageError for a port in use, or for an
    address that strangers reach."""
    settings = services.settings
    check_reach(settings)
    late = services.limit.share.page_answered
    server = PageServer(make_app(services), settings.server_name, settings.server_port, late=late)
    server.start()
    logger.info("the page is at %s", server.url)
    return server


def make_app(services: Services) -> FastAPI:
    """The page with all its routes, and with what stands before them."""
    settings, page, key = services.settings, build(services), secrets.token_urlsafe()

    def cookies() -> tuple[list[str], set[str]]:
        names = [f"access-token-{inner.cookie_id}", f"access-token-unsecure-{inner.cookie_id}"]
        return names, {*inner.tokens}

    middleware = [Middleware(EarlyScript, script("early"))]
    if settings.password and not settings.space_id:
        middleware.insert(0, Middleware(Locked, settings.password, key, cookies))
    if not settings.space_id:
        name = socket.gethostname()
        known = partial(is_own_host, settings=settings, names=(name, f"{name}.local"))
        middleware.insert(0, Middleware(KnownHosts, known))
    app = FastAPI(middleware=middleware, docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=settings.server_name,
        server_port=settings.server_port,
        theme=_theme(),
        css_paths=[HERE / "page.css", HERE / "chat.css"],
        i18n=gr.I18n(**_translations()),
        footer_links=[],
        mcp_server=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        show_error=True,  # the API's callers get our sentences
        max_file_size="1kb",  # nothing is uploaded here; gradio's upload route is open all the same
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        auth=_sign_in(settings.password) if settings.password and not settings.space_id else None,
        auth_message="",
    )
    inner = gradio_app(app)
    inner.tokens[key] = "ggufy"
    inner.router.routes[:0] = [_files_route(services), *comparing.routes(services)]  # where sessions are known
    app.router.routes.insert(0, _health_route(services))
    # gradio's MCP server calls the page by the name of whoever asked first, and goes on so.
    page.mcp_server_obj._local_url = _own_url(settings, key)
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = _QUEUE_S
    return app


def gradio_app(app: FastAPI) -> gradio.routes.App:
    return next(
        route.app for route in app.routes if isinstance(route, Mount) and isinstance(route.app, gradio.routes.App)
    )


def _sign_in(password: str) -> Callable[[str, str], bool]:
    """With any name."""
    return lambda name, given: secrets.compare_digest(given.encode(), password.encode())


def _own_url(settings: Settings, key: str) -> str:
    """How this process reaches its own page."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.server_name, settings.server_name)
    host = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
    sign_in = f"ggufy:{key}@" if settings.password and not settings.space_id else ""
    return f"http://{sign_in}{host}:{settings.server_port}/"


def _files_route(services: Services) -> Route:
    """GET /files/<job id>/<file name>: a finished file as a download, whole or by ranges."""

    def download(request: Request) -> Response:
        path = services.file(
            request.path_params["job"], request.path_params["name"], visitor_of_route(services, request)
        )
        if path is None:
            return PlainTextResponse("no such file\n", status_code=404)
        return FileResponse(path, filename=path.name, media_type="application/octet-stream")

    return Route(f"/{FILES_ROUTE}/{{job}}/{{name}}", download, methods=["GET"])


def _health_route(services: Services) -> Route:
    """GET /health: 200 while all is well, 503 else, and JSON that says what is not."""

    def health(_: Request) -> Response:
        facts = services.health.facts()
        return JSONResponse(facts, status_code=200 if facts["ok"] else 503)

    return Route(HEALTH, health, methods=["GET"])


def _theme() -> gr.themes.Base:
    """Gradio's parts without boxes around them: the form is one card (page.css)."""
    base = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=_SANS, font_mono=_MONO)
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        body_text_color_subdued="var(--gg-quiet)",
        body_text_color_subdued_dark="var(--gg-quiet)",
        block_border_width="0px",
        block_padding="0px",
        block_info_text_size="12.5px",
        block_info_text_color="var(--gg-quiet)",
        block_info_text_color_dark="var(--gg-quiet)",
        block_label_text_color="var(--body-text-color)",
        block_title_text_color="var(--body-text-color)",
        block_title_text_weight="500",
        block_title_text_size="14.5px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        input_border_color="var(--gg-line)",
        input_border_color_dark="var(--gg-line)",
        input_radius="8px",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="var(--gg-soft)",
        checkbox_label_background_fill_hover_dark="var(--gg-soft)",
        checkbox_label_background_fill_selected="var(--gg-run-soft)",
        checkbox_label_background_fill_selected_dark="var(--gg-run-soft)",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="var(--gg-line)",
        checkbox_label_border_color_dark="var(--gg-line)",
        checkbox_label_padding="5px 10px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_large_radius="9px",
        button_large_padding="10px 16px",
    )


def _translations() -> dict[str, Any]:
    return TEXTS | {"zh-CN": TEXTS["zh"], "zh-TW": TEXTS["zh"]}
