"""The page of a Space: what visitors may not do, and what its owner may after signing in."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import itsdangerous
import pytest
from playwright.sync_api import BrowserContext, expect

from ggufy.records.store import JobStore
from ggufy.ui.i18n import TEXTS
from tests.browser.pages import DEMO, App, Tab, make_app, write_results

pytestmark = pytest.mark.browser
SECRET = "not a secret"
RESULTS = 2
SIGN_IN = {
    "OAUTH_CLIENT_ID": "id",
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile",
    "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
}


@pytest.fixture(scope="module")
def space(llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A Space of somebody's, with a sign-in and no llama.cpp where it should be."""
    folder = tmp_path_factory.mktemp("space")
    space = make_app(folder, folder, SPACE_ID="somebody/ggufy", SYSTEM="spaces", **SIGN_IN)
    write_results(space.out, RESULTS)
    space.start()
    yield space
    assert space.stop() == 0


def session(name: str, *organisations: str) -> str:
    """The cookie that gradio sets after signing in as `name`, signed with the Space's secret."""
    told = {
        "sub": "1",
        "name": name,
        "preferred_username": name,
        "profile": f"https://huggingface.co/{name}",
        "picture": "",
        "orgs": [{"sub": "2", "preferred_username": o} for o in organisations],
    }
    info = {"access_token": "x", "scope": "openid", "expires_at": int(time.time()) + 900, "userinfo": told}
    key = hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()
    data = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    return itsdangerous.TimestampSigner(key).sign(data).decode()


def call(space: App, field: str, written: dict[str, Any] | None = None, **headers: str) -> str:
    """Sends what the page would send to every event that takes the field with this id, by hand; returns the answer
    that is about owners or jobs. Fields have the values that the page begins with, but for those in `written`."""
    config = json.loads(space.get("config")[1])
    fields = {component["id"]: component["props"] for component in config["components"]}
    events = [
        (event["id"], [fields[number] for number in event["inputs"]])
        for event in config["dependencies"]
        if event["backend_fn"] and field in [fields[number].get("elem_id") for number in event["inputs"]]
    ]
    assert events
    for number, (event, inputs) in enumerate(events):
        data = [(written or {}).get(one.get("elem_id"), one.get("value")) for one in inputs]
        body = {"data": data, "fn_index": event, "session_hash": f"byhand{number}{len(headers)}"}
        post = urllib.request.Request(
            f"{space.url}gradio_api/queue/join",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        urllib.request.urlopen(post).close()
        answer = space.get(f"gradio_api/queue/data?session_hash={body['session_hash']}")[1].decode()
        if "owner" in answer or "added" in answer:
            return answer
    return ""


LAST = "gg-private"  # a field that only Start takes


def test_visitors_only_look(space: App, open_tab: Callable[..., Tab]) -> None:
    """The check is the server's: the same request as the form's, sent by hand, is refused too."""
    tab = open_tab(at=space)
    expect(tab.page.get_by_text("You are looking as a visitor")).to_be_visible()
    expect(tab.page.get_by_text("which has no llama-quantize")).to_be_visible()
    expect(tab.page.get_by_role("button", name="Start")).to_be_disabled()
    expect(tab.page.get_by_role("button", name="Try again")).to_have_count(0)
    expect(tab.page.get_by_role("link", name="Sign in")).to_have_attribute("href", "login/huggingface")
    tab.page.get_by_role("tab", name="Chat").click()
    expect(tab.page.get_by_text("Only the owner of this Space may chat here.")).to_be_visible()
    expect(tab.page.get_by_role("button", name="Send")).to_be_disabled()
    assert "Only its owner may start" in call(space, LAST)
    assert "Only its owner may chat" in call(space, "gg-chat-message", {"gg-chat-message": "Hi"})
    assert len(JobStore(space.out).jobs()) == RESULTS
    tab.page.goto("about:blank")


@pytest.mark.parametrize(("language", "width"), [("en", 1280), ("zh-CN", 390)])
def test_visitors_meet_results_and_the_way_to_a_space_of_their_own(
    language: str, width: int, space: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    texts, page = TEXTS[language[:2]], (tab := open_tab(width, 844, at=space, locale=language)).page
    expect(page.get_by_role("article")).to_have_count(RESULTS)
    duplicate = page.get_by_role("button", name=texts["space_duplicate"])
    expect(duplicate).to_be_visible()
    expect(page.get_by_text(texts["space_duplicate_info"])).to_be_visible()
    expect(page.locator("#gg-form").get_by_role("note")).to_contain_text(texts["space_closed"])
    result, form = page.get_by_role("article").first.bounding_box(), page.locator("#gg-form").bounding_box()
    assert result is not None and form is not None
    assert result["x"] + result["width"] < form["x"] or result["y"] + result["height"] < form["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shoot(tab, f"visitor-{width}")
    page.context.route("https://huggingface.co/**", lambda route: route.fulfill(body="there"))
    with page.expect_popup() as popup:
        duplicate.click()
    popup.value.wait_for_url("https://huggingface.co/spaces/somebody/ggufy?duplicate=true")
    page.goto("about:blank")


@pytest.mark.parametrize(("name", "organisations", "may"), [("somebody", [], True), ("else", [], False)])
def test_only_the_owner_may_start_after_signing_in(
    name: str, organisations: list[str], may: bool, space: App, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(at=space)
    context: BrowserContext = tab.page.context
    value = session(name, *organisations)
    context.add_cookies([{"name": "session", "value": value, "url": space.url}])
    tab.page.reload()
    expect(tab.page.get_by_role("link", name=f"Sign out {name}")).to_be_visible()
    if may:
        expect(tab.page.get_by_role("button", name="Start")).to_be_enabled()
        expect(tab.page.get_by_role("button", name="Try again")).to_be_visible()
        expect(tab.page.get_by_text("No token is set")).to_be_visible()
        expect(tab.page.get_by_role("button", name="Duplicate")).to_have_count(0)
        expect(tab.page.locator("#gg-form").get_by_role("note")).to_have_count(0)
        tab.page.get_by_role("button", name="Start").click()
        expect(tab.page.locator("#gg-message")).to_contain_text("was added", timeout=60_000)
        expect(tab.card(DEMO)).to_contain_text("queued")
        tab.page.get_by_role("button", name=f"Cancel {DEMO}").click()
        expect(tab.card(DEMO)).to_contain_text("cancelled")
    else:
        expect(tab.page.get_by_role("button", name="Start")).to_be_disabled()
        assert "Only its owner may start" in call(space, LAST, None, Cookie=f"session={value}")
    tab.page.goto("about:blank")


def test_a_forged_session_is_a_stranger_s(space: App) -> None:
    forged = session("somebody")[:-3] + "abc"
    assert "Only its owner may start" in call(space, LAST, None, Cookie=f"session={forged}")
