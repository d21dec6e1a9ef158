"""What programs call: gradio_client runs the demo to its end, and models find the same functions as tools."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from ggufy.ui.api import NAMES
from tests.browser.pages import DEMO, App, make_app

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def app(llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = make_app(tmp_path_factory.mktemp("api"), llama_bin)
    app.start()
    yield app
    assert app.stop() == 0


@pytest.fixture(scope="module")
def client(app: App) -> Client:
    return Client(app.url, verbose=False)


def test_the_demo_from_a_program(app: App, client: Client) -> None:
    looked: dict[str, Any] = {}
    deadline = time.monotonic() + 120
    while not looked.get("quants") and time.monotonic() < deadline:  # llama.cpp is being looked at
        looked = client.predict("demo", api_name="/inspect_source")
    assert (looked["version"], looked["layers"], looked["problem"]) == ("7", 6, "")
    job = client.predict("demo", "Q4_K_M,Q8_0", evaluate=True, api_name="/start_job")
    assert job["job_id"].startswith(DEMO)
    deadline = time.monotonic() + 240
    while (state := client.predict(job["job_id"], api_name="/job_status"))["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    assert (state["status"], state["done"], state["total"], state["files"]) == ("done", 4, 4, 4)
    results = client.predict(job["job_id"], api_name="/list_results")
    sizes = {row["type"]: row["size"] for row in results if "type" in row}
    assert sizes == {name: looked["quants"][name]["size"] for name in ("Q4_K_M", "Q8_0")}  # to the byte
    assert all(row["evaluation"]["quality"]["kld"] < 0.05 for row in results if "type" in row)
    with urllib.request.urlopen(app.url + results[-1]["link"]) as answer:
        assert answer.read(4) == b"GGUF"
    again = client.predict(job["job_id"], api_name="/cancel_job")
    assert again["status"] == "done"  # it had ended


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("start_job", ["/nowhere/m.pth"], "does not exist"),
        ("start_job", ["demo", "Q4_KM"], "did you mean Q4_K_M"),
        ("start_job", [""], "No source given"),
        ("start_job", ["demo", "", True, False, "", "4.2 apples"], "is no size to order"),
        ("start_job", ["demo", "", True, False, "", "4.2MB", "hasty"], "Unknown mode"),
        ("job_status", ["nothing"], "There is no job"),
        ("cancel_job", ["nothing"], "There is no job"),
        ("list_results", ["../.."], "There is no job"),
    ],
)
def test_errors_are_one_sentence(client: Client, name: str, arguments: list[str], told: str) -> None:
    with pytest.raises(AppError, match=told) as error:
        client.predict(*arguments, api_name=f"/{name}")
    assert "Traceback" not in str(error.value)


def test_nothing_else_is_offered(app: App) -> None:
    """Every function is documented and typed, for programs and for models alike; no other is there."""
    named = json.loads(app.get("gradio_api/info")[1])["named_endpoints"]
    assert list(named) == [f"/{name}" for name in NAMES]
    for endpoint in named.values():
        for parameter in endpoint["parameters"]:
            kinds = parameter["type"].get("anyOf", [parameter["type"]])
            assert {kind["type"] for kind in kinds} <= {"string", "boolean", "integer", "number"}
    listed = mcp(app, "tools/list")["tools"]
    assert [tool["name"] for tool in listed] == list(NAMES)
    for tool in listed:
        assert len(tool["description"]) > 40
        properties = tool["inputSchema"]["properties"]
        assert not {"request", "profile"} & properties.keys()
        assert all(len(value["description"]) > 10 for value in properties.values())


def test_a_model_may_ask_too(app: App) -> None:
    told = mcp(app, "tools/call", name="inspect_source", arguments={"source": "demo"})
    assert "rwkv7" in told["content"][0]["text"]


def mcp(app: App, method: str, **parameters: Any) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    request = urllib.request.Request(
        f"{app.url}gradio_api/mcp/",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    line = next(line for line in text.splitlines() if line.startswith("data:"))
    result: dict[str, Any] = json.loads(line.removeprefix("data:"))["result"]
    return result
