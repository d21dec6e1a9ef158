"""Who reaches a page that is not a Space's: by its own names, and from other machines only if somebody said so."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError

from ggufy.core.errors import UsageError
from ggufy.core.job import Job, Status
from ggufy.service.access import check_reach, is_own_host
from ggufy.service.service import Services
from ggufy.system.settings import Settings
from ggufy.ui.api import NAMES
from ggufy.ui.build import serve
from tests.processes import free_port
from tests.test_service import record

# gradio leaves sockets and event loops to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PASSWORD = "sésame: open"
BASIC = {"Authorization": "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}
SPACE = {"SPACE_ID": "somebody/ggufy", "SYSTEM": "spaces"}


# ---- rules


@pytest.mark.parametrize("name", ["0.0.0.0", "::", "192.168.1.5", "my-machine", "2001:db8::1"])
def test_what_other_machines_reach_needs_a_word(name: str) -> None:
    with pytest.raises(UsageError, match=r"^[^.]*GGUFY_PASSWORD[^.]*GGUFY_TRUSTED_NETWORK=1\.$|^on [\d.]+ ") as told:
        check_reach(Settings.from_env({"GRADIO_SERVER_NAME": name}))
    assert "GGUFY_PASSWORD" in str(told.value) and "GGUFY_TRUSTED_NETWORK=1" in str(told.value)
    no_word = {"GGUFY_PASSWORD": "  ", "GGUFY_TRUSTED_NETWORK": "0"}
    with pytest.raises(UsageError):
        check_reach(Settings.from_env({"GRADIO_SERVER_NAME": name, **no_word}))
    for word in ({"GGUFY_PASSWORD": "x"}, {"GGUFY_TRUSTED_NETWORK": "1"}, SPACE):
        check_reach(Settings.from_env({"GRADIO_SERVER_NAME": name, **word}))


@pytest.mark.parametrize("name", ["", "127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_what_only_this_machine_reaches_does_not(name: str) -> None:
    check_reach(Settings.from_env({"GRADIO_SERVER_NAME": name}))


def test_the_page_does_not_start_without_it(tmp_path: Path) -> None:
    environment = {"GGUFY_OUT": str(tmp_path), "GGUFY_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    services = Services(Settings.from_env(environment | {"GRADIO_SERVER_NAME": "0.0.0.0"}))
    with pytest.raises(UsageError, match="GGUFY_TRUSTED_NETWORK"):
        serve(services)
    services.shutdown()


@pytest.mark.parametrize(
    ("host", "environment", "own"),
    [
        ("localhost:7860", {}, True),
        ("LOCALHOST", {}, True),
        ("localhost.", {}, True),
        ("127.0.0.1:7860", {}, True),
        ("[::1]:7860", {}, True),
        ("this-machine", {}, True),
        ("evil.example", {}, False),
        ("evil.example:7860", {}, False),
        ("localhost.evil.example", {}, False),
        ("127.0.0.1.evil.example", {}, False),
        ("user@evil.example", {}, False),
        ("", {}, False),
        ("[::1", {}, False),
        ("192.168.1.5", {}, False),  # nobody reaches it so
        ("192.168.1.5", {"GRADIO_SERVER_NAME": "0.0.0.0"}, True),  # an address is nobody else's name
        ("evil.example", {"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        ("box.lan", {"GGUFY_HOSTS": "a.b, Box.lan"}, True),
        ("x.hf.jobs", {"GGUFY_HOSTS": "*.hf.jobs"}, True),
        ("hf.jobs", {"GGUFY_HOSTS": "*.hf.jobs"}, False),
        ("anything", {"GGUFY_HOSTS": "*"}, True),
    ],
)
def test_names_of_the_page(host: str, environment: dict[str, str], own: bool) -> None:
    assert is_own_host(host, Settings.from_env(environment), names=("This-Machine",)) is own


# ---- a page with a password


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    folder = tmp_path_factory.mktemp("locked")
    made = record(folder, Status.DONE, artifacts=("m-F16.gguf", "m-Q8_0.gguf"))
    return folder, made


@pytest.fixture(scope="module")
def locked(job: tuple[Path, Job]) -> Iterator[str]:
    """The address of a page on all addresses, with a password."""
    folder = str(job[0])
    environment = {"GGUFY_OUT": f"{folder}/out", "GGUFY_CACHE": f"{folder}/cache", "HOME": folder}
    environment |= {
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(free_port()),
        "GGUFY_PASSWORD": PASSWORD,
    }
    services = Services(Settings.from_env(environment))
    page = serve(services)
    yield f"http://127.0.0.1:{services.settings.server_port}"
    page._server.force_exit = True  # open connections of this process are not waited for
    page.close()
    services.shutdown()
    gc.collect()


def test_its_health_is_told_without_the_password(locked: str) -> None:
    """As Docker's health check asks; the worker of this page was not started."""
    told = httpx.get(f"{locked}/health", timeout=60)
    assert told.status_code == 503 and told.json()["worker"] == {"alive": False, "silent_s": 0.0}


def mcp(url: str, method: str, headers: dict[str, str], **parameters: object) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    accept = {"Accept": "application/json, text/event-stream"}
    return httpx.post(f"{url}/gradio_api/mcp/", json=body, headers=accept | headers, timeout=60)


def signed_in(url: str, password: str = PASSWORD) -> httpx.Client:
    """After gradio's own sign-in page."""
    browser = httpx.Client(base_url=url, timeout=60)
    browser.post("/login", data={"username": "me", "password": password})
    return browser


CLOSED = (
    "/config",
    "/gradio_api/info",
    "/gradio_api/mcp/",
    "/gradio_api/mcp/schema",
    "/gradio_api/queue/data?session_hash=x",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/user",
    "/gradio_api/heartbeat/x",
    "/files/x/y",
    "/nothing",
)


@pytest.mark.parametrize("path", CLOSED)
def test_nothing_is_open(locked: str, path: str) -> None:
    assert httpx.get(locked + path, timeout=60).status_code == 401
    for wrong in ("Bearer nothing", "Basic !!", "Basic bWU6eA==", "Digest x", "Bearer"):
        assert httpx.get(locked + path, headers={"Authorization": wrong}, timeout=60).status_code == 401
    with contextlib.closing(signed_in(locked, "wrong")) as browser:
        assert browser.get(path).status_code == 401


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_sent(locked: str, method: str) -> None:
    for path in ("queue/join", "upload", "cancel", "reset", "mcp/"):
        assert getattr(httpx, method)(f"{locked}/gradio_api/{path}").status_code == 401


def test_the_page_shows_its_sign_in_and_no_more(locked: str, job: tuple[Path, Job]) -> None:
    page = httpx.get(locked, timeout=60)
    assert page.status_code == 200 and '"auth_required":true' in page.text
    assert job[1].id not in page.text and "gg-jobs" not in page.text


def test_a_browser_signs_in(locked: str, job: tuple[Path, Job]) -> None:
    with contextlib.closing(signed_in(locked)) as browser:
        assert "gg-jobs" in browser.get("/").text
        assert browser.get(f"/files/{job[1].id}/m-Q8_0.gguf").status_code == 200
        assert browser.get("/config").status_code == 200


def test_programs_sign_in(locked: str, job: tuple[Path, Job]) -> None:
    with pytest.raises(AuthenticationError):
        Client(locked, verbose=False, httpx_kwargs={"timeout": 60})
    for client in (
        Client(locked, auth=("me", PASSWORD), verbose=False, httpx_kwargs={"timeout": 60}),
        Client(locked, headers=BASIC, verbose=False, httpx_kwargs={"timeout": 60}),
    ):
        assert client.predict(job[1].id, api_name="/job_status")["status"] == "done"
        with pytest.raises(AppError, match="There is no job"):
            client.predict("nothing", api_name="/job_status")
    assert httpx.get(f"{locked}/files/{job[1].id}/m-Q8_0.gguf", headers=BASIC, timeout=60).status_code == 200


def test_models_sign_in(locked: str, job: tuple[Path, Job]) -> None:
    assert mcp(locked, "tools/list", {}).status_code == 401
    for name in NAMES:
        assert mcp(locked, "tools/call", {}, name=name, arguments={}).status_code == 401
    listed = mcp(locked, "tools/list", BASIC).text
    assert all(f'"name":"{name}"' in listed for name in NAMES)
    told = mcp(locked, "tools/call", BASIC, name="job_status", arguments={"job_id": job[1].id}).text
    assert "done" in json.loads(told[told.index("{") :].strip())["result"]["content"][0]["text"]


def test_foreign_names_are_refused_everywhere(locked: str) -> None:
    """Review B-S5: DNS rebinding. A browser that was led here brings the foreign name as host and origin."""
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
    for path in ("/", *CLOSED, "/theme.css"):
        for headers in (foreign, foreign | BASIC):
            answer = httpx.get(locked + path, headers=headers, timeout=60)
            assert answer.status_code == 400 and "GGUFY_HOSTS" in answer.text
            assert "access-control-allow-origin" not in answer.headers
    for path in ("/gradio_api/queue/join", "/gradio_api/call/inspect_source", "/gradio_api/mcp/"):
        assert (
            httpx.post(locked + path, json={"data": ["demo"]}, headers=foreign | BASIC, timeout=60).status_code == 400
        )
        assert httpx.options(locked + path, headers=foreign).status_code == 400


def test_the_model_server_calls_no_other_page_than_its_own(locked: str) -> None:
    """gradio's would keep the address by which its first caller named it."""
    led = BASIC | {"X-Forwarded-Host": "evil.example", "X-Gradio-Server": "http://evil.example"}
    told = mcp(locked, "tools/call", led, name="job_status", arguments={"job_id": "nothing"}).text
    assert "There is no job" in told
