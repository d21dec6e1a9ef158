"""Who may see and do what, from tables: visitor × call × where the page is.

Every function that a browser, a program or a model can call has a row here, and every route, button and form field of
ours: what is new fails until somebody has said who may. The page runs in this process, without llama.cpp and without a
browser, and is asked over HTTP as its own scripts would ask it.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import inspect
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.oauth
import httpx
import itsdangerous
import pytest

from ggufy.core.errors import UsageError
from ggufy.core.job import Artifact, FrontierPoint, Job, Request, Status
from ggufy.core.source import Source
from ggufy.jobs.options import BY_NAME, Kind
from ggufy.jobs.workspace import Workspace
from ggufy.records.store import JobStore
from ggufy.service.access import Visitor
from ggufy.service.chat_settings import ChatSettings as Talk
from ggufy.service.service import Services
from ggufy.system.settings import Settings
from ggufy.ui.api import NAMES, _Api
from ggufy.ui.build import gradio_app, serve
from ggufy.ui.jobs_panel import JobsPanel
from tests.processes import free_port

# gradio leaves sockets and event loops to the garbage collector, and loads itself in ways that Python will not allow.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPACE = {"SPACE_ID": "friends/ggufy", "SYSTEM": "spaces"}
PLACES = {"local": {}, "closed": SPACE, "chat": SPACE | {"GGUFY_CHAT": "1"}, "open": SPACE | {"GGUFY_OPEN": "1"}}
OWNERS = {"owner": ("friends",), "member": ("ann", "friends")}  # name and organisations
OTHERS: dict[str, tuple[str, ...]] = {"stranger": ("mallory", "others"), "nobody": ()}
VISITORS = OWNERS | OTHERS
# Where those may do it who are neither its owner nor a member of the organisation that owns it.
RIGHTS = {
    "look": set(PLACES),  # at what they could have made themselves
    "chat": {"local", "chat", "open"},
    "work": {"local", "open"},
    "own": {"local"},  # what only an owner may know
}
REFUSED = "Only its owner may"
HUSH, SHOWN = "hush", "shown"  # in every name of what is private, and of what is public
SECRET = "not a secret"


def may(right: str, visitor: str, place: str) -> bool:
    return visitor in OWNERS or place in RIGHTS[right]


# ---- the tables


@dataclass(frozen=True, kw_only=True)
class Row:
    """One function that can be called: the right that it takes, what is sent, and what the answer holds then."""

    right: str = "look"
    data: dict[str, Any] = field(default_factory=dict)  # by the fields' ids; others are as the page begins with them
    arguments: tuple[Any, ...] = ()  # of an endpoint of the API
    event: dict[str, Any] | None = None
    holds: str = ""
    jobs: bool = False  # the answer is about all jobs
    after: str = ""  # another function that the page has called first


PUBLIC, PRIVATE = "PUBLIC JOB", "PRIVATE JOB"  # stand for their ids
MODEL = f"{SHOWN}-Q8_0.gguf"
QUICK = {"gg-source": "demo", "gg-types": ["Q8_0"], "gg-imatrix": "off", "gg-evaluate": False}
TALK = {"gg-chat-model-a": MODEL, "gg-chat-message": "Hello"}
ENDPOINTS = {
    "JobsPanel.look": Row(jobs=True),
    "JobsPanel.act": Row(right="work", event={"action": "cancel", "job": PUBLIC}, jobs=True),
    "QuantizeTab.choose_imatrix": Row(),
    "QuantizeTab.choose_output": Row(data={"gg-output": "rwkv.cpp"}, holds='"visible":false'),
    "QuantizeTab.choose_evaluate": Row(),
    "QuantizeTab.look": Row(data={"gg-source": "demo"}, holds="RWKV"),
    "QuantizeTab.choose": Row(event={"job": "demo"}, holds="demo"),
    "QuantizeTab.price": Row(data={"gg-source": "demo"}),
    "QuantizeTab.check": Row(),
    "QuantizeTab.begin": Row(
        right="work",
        data=QUICK,
        holds="was added",
    ),
    "QuantizeTab.begin_ticked": Row(
        right="work", data=QUICK, event={"sources": ["demo", "demo"]}, holds="1 jobs were added"
    ),
    "FollowPanel.greet": Row(),
    "FollowPanel.show": Row(),
    "FollowPanel.follow": Row(right="own", data={"gg-follow-source": "demo"}, holds="is no repo on the Hub"),
    "FollowPanel.unfollow": Row(right="own", event={"job": "x/y"}, holds="No repo is followed"),
    "ChatTab.look": Row(jobs=True),
    "ChatTab.choose": Row(data={"gg-chat-model-a": MODEL}),
    "ChatTab.advise": Row(data={"gg-chat-model-a": MODEL, "gg-chat-sampling": "likeliest"}),
    "ChatTab.say": Row(right="chat", data=TALK, holds="llama.cpp is not ready", after="ChatTab.look"),
    "ChatTab.edit": Row(
        right="chat",
        data=TALK,
        event={"side": "a", "turn": 0, "message": "x"},
        holds="no longer there",
        after="ChatTab.look",
    ),
    "ChatTab.regenerate": Row(
        right="chat", data=TALK, event={"side": "a", "turn": 7}, holds="no longer there", after="ChatTab.look"
    ),
    "ChatTab.switch": Row(data={"gg-chat-mode": "text"}),
    "ChatTab.halt": Row(),
    "ChatTab.forget": Row(),
    "_Api.inspect_source": Row(arguments=("demo",), holds="rwkv7"),
    "_Api.start_job": Row(right="work", arguments=("demo", "Q8_0", False), holds="job_id"),
    "_Api.list_jobs": Row(jobs=True, holds="job_id"),
    "_Api.resume_job": Row(right="work", arguments=(PUBLIC,), holds="job_id"),
    "_Api.job_status": Row(arguments=(PUBLIC,), holds=SHOWN),
    "_Api.cancel_job": Row(right="work", arguments=(PUBLIC,), holds="job_id"),
    "_Api.list_results": Row(arguments=(PUBLIC,), holds=MODEL),
    "build.<locals>.greet": Row(),
    "build.<locals>.talk": Row(event={"file": MODEL}),
    "LoginButton._check_login_status": Row(),  # gradio's, on a Space
}
ACTIONS = {  # what the buttons of cards do, and the sizes that they name
    "cancel": "",
    "pause": "",
    "retry": "",
    "resume": "",
    "make-size": "4000000",
    "find-sizes": "",
}
DELETES = ("delete-file", "delete-job", "delete-model")  # for owners only, also where strangers may work
SETTINGS = {"again": "", "threads": "1", "share": "100"}  # buttons that are about no job
ROUTES = {"/files/{job}/{name}", "/comparison.csv", "/comparison.png"}
# Form fields: what somebody writes there, and what becomes of it when a stranger on an open Space does.
FILE = "A FILE OF THE SPACE"
REFUSES, IGNORED, TAKEN = "no file of this machine", "ignored", "taken"
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "gg-source": ({"gg-source": FILE}, REFUSES),
    "gg-types": ({"gg-types": ["Q6_K"]}, TAKEN),
    "gg-output": ({"gg-output": "rwkv.cpp"}, TAKEN),
    "gg-imatrix": ({"gg-imatrix": "have", "gg-imatrix-path": FILE}, REFUSES),
    "gg-imatrix-path": ({"gg-imatrix": "own", "gg-imatrix-path": FILE}, REFUSES),
    "gg-chunks": ({"gg-chunks": 7}, IGNORED),
    "gg-outtype": ({"gg-outtype": "f32"}, TAKEN),
    "gg-evaluate": ({"gg-evaluate": True}, TAKEN),
    "gg-evaluation": ({"gg-evaluate": True, "gg-evaluation": FILE}, REFUSES),
    "gg-evaluation-chunks": ({"gg-evaluate": True, "gg-evaluation-chunks": 7}, IGNORED),
    "gg-vocab": ({"gg-vocab": FILE}, REFUSES),
    "gg-name": ({"gg-name": "flagship"}, IGNORED),
    "gg-repo": ({"gg-repo": "friends/flagship"}, IGNORED),
    "gg-private": ({"gg-private": True}, IGNORED),
    "gg-keep-card": ({"gg-keep-card": True}, IGNORED),
    "gg-mix": ({"gg-mix": "stock"}, TAKEN),
    "gg-rounding": ({"gg-rounding": "plain", "gg-imatrix": "bundled"}, TAKEN),
    "gg-awq": ({"gg-awq": True, "gg-imatrix": "bundled", "gg-evaluate": True}, TAKEN),
    "gg-targets": ({"gg-targets": "5MB"}, TAKEN),
    "gg-chat-format": ({"gg-chat-format": "g1c"}, TAKEN),
    "gg-lora": ({"gg-lora": FILE}, REFUSES),
    "gg-lora-alpha": ({"gg-lora-alpha": "32"}, "more of an adapter"),
    "gg-lora-init": ({"gg-lora-init": FILE}, "no file of this machine"),
    "gg-lora-as-file": ({"gg-lora-as-file": True}, "what becomes of adapters"),
    "gg-mtp": ({"gg-mtp": "file"}, "parts no heads"),
    "gg-mmproj": ({"gg-mmproj": "none"}, IGNORED),  # the demo sees nothing
    "gg-mode": ({"gg-targets": "5MB", "gg-mode": "fast"}, TAKEN),
}


# ---- the page


def session(name: str, *organisations: str) -> str:
    """The cookie that gradio sets after signing in."""
    told = {
        "sub": "1",
        "name": name,
        "preferred_username": name,
        "profile": "",
        "picture": "",
        "orgs": [{"sub": "2", "preferred_username": o} for o in organisations],
    }
    info = {"access_token": "x", "scope": "openid", "expires_at": int(time.time()) + 900, "userinfo": told}
    key = hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()
    data = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    return itsdangerous.TimestampSigner(key).sign(data).decode()


class Page:
    """A page that is served, and how its visitors ask it."""

    def __init__(self, services: Services, place: str):
        self.services, self.place, self.count = services, place, itertools.count()
        self.store = JobStore(services.settings.out)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{services.settings.server_port}", timeout=60)
        self.app: Any = None  # gradio's

    @property
    def blocks(self) -> Any:
        return self.app.get_blocks()

    def headers(self, visitor: str) -> dict[str, str]:
        return {"Cookie": f"session={session(*VISITORS[visitor])}"} if VISITORS[visitor] else {}

    def functions(self) -> dict[int, str]:
        """Names of the functions behind /config's events and the API, by their number."""
        return {number: fn.fn.__qualname__ for number, fn in self.blocks.fns.items() if fn.fn is not None}

    def call(self, number: int, row: Row, visitor: str) -> str:
        """What the server answers to one call, in the browser's own way."""
        session = str(next(self.count))
        for first, name in self.functions().items():
            if name == row.after:
                self._ask(first, ENDPOINTS[name], visitor, session)
        return self._ask(number, row, visitor, session)

    def calls(self, asked: list[tuple[int, Row, str]]) -> list[str]:
        """The answers to calls that are made at the same time."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda one: self.call(*one), asked))

    def _ask(self, number: int, row: Row, visitor: str, session: str) -> str:
        body = {"data": self._data(number, row), "fn_index": number, "session_hash": session}
        if row.event is not None:
            body["event_data"] = {key: self.named(value) for key, value in row.event.items()}
        joined = self.http.post("/gradio_api/queue/join", json=body, headers=self.headers(visitor))
        assert joined.status_code == 200, joined.text
        url = f"/gradio_api/queue/data?session_hash={session}"
        return self.http.get(url, headers=self.headers(visitor)).text.encode().decode("unicode_escape")

    def _data(self, number: int, row: Row) -> list[Any]:
        inputs = self.blocks.fns[number].inputs
        if row.arguments:
            given = [self.named(value) for value in row.arguments]
            return given + [item.value for item in inputs[len(given) :]]
        return [row.data.get(item.elem_id or "", getattr(item, "value", None)) for item in inputs]

    def named(self, value: Any) -> Any:
        """With the ids of the jobs that are meant."""
        ids = {PUBLIC: self.job("shown"), PRIVATE: self.job(f"{HUSH}-repo")}
        return ids[value].id if isinstance(value, str) and value in ids else value

    def job(self, name: str) -> Job:
        return next(job for job in self.store.jobs() if job.request.name == name)

    def tool(self, name: str, arguments: dict[str, Any], visitor: str) -> str:
        """What a model is answered."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        headers = {"Accept": "application/json, text/event-stream", **self.headers(visitor)}
        return self.http.post("/gradio_api/mcp/", json=body, headers=headers).text


def records(out: Path) -> None:
    """A public job, and jobs that are private for one reason each, with their files."""
    public = Source(
        kind="checkpoint", path=f"{SHOWN}.pth", size=1, sha256="ab" * 32, model_id=f"x/{SHOWN}", public=True
    )
    hidden = replace(public, path=f"{HUSH}.pth", sha256="cd" * 32, model_id=f"x/{HUSH}")
    reasons: dict[str, tuple[Source, bool]] = {
        SHOWN: (public, False),
        f"{HUSH}-repo": (hidden, True),  # its source is public, its repo is not
        f"{HUSH}-source": (replace(hidden, public=False), False),  # read with the token; and so is an old record
        f"{HUSH}-file": (Source(kind="checkpoint", path=f"/x/{HUSH}.pth", size=1, sha256="ef" * 32), False),
    }
    for name, (source, private) in reasons.items():
        request = Request(
            name=name, source=source, quant_types=("Q8_0",), outtype="f16", imatrix="none", private=private
        )
        (out / f"{name}-GGUF").mkdir(parents=True)
        made = [f"{name}-F16.gguf", f"{name}-Q8_0.gguf"]
        for product in made:
            (out / f"{name}-GGUF" / product).write_bytes(b"GGUF of " + name.encode())
        artifacts = tuple(Artifact(name=product, size=1, sha256="12" * 32) for product in made)
        points = (FrontierPoint(size=4_000_000, bpw=4.5, kld=0.1),)
        JobStore(out).save(Job(request=request, status=Status.DONE, artifacts=artifacts, frontier=points))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the texts that other tests have made, since making them takes a while."""
    folder, made = tmp_path_factory.mktemp("cache"), Settings.from_env().cache / "texts"
    if made.is_dir():
        shutil.copytree(made, folder / "texts")
    return folder


@pytest.fixture(scope="module", params=PLACES)
def page(request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp(request.param)
    environment = {"GGUFY_OUT": str(folder / "out"), "GGUFY_CACHE": str(cache), "HOME": str(folder)}
    environment |= {"GRADIO_SERVER_PORT": str(free_port()), **PLACES[request.param]}
    records(folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        if PLACES[request.param]:
            sign_in = {"CLIENT_ID": "id", "CLIENT_SECRET": SECRET, "SCOPES": "openid profile"}
            for name, value in sign_in.items():
                patch.setattr(gradio.oauth, f"OAUTH_{name}", value)
            patch.setattr(gradio.oauth, "OPENID_PROVIDER_URL", "http://127.0.0.1:9")
            for name, value in PLACES[request.param].items():
                patch.setenv(name, value)  # gradio looks for itself whether it is on a Space
            environment["OAUTH_CLIENT_ID"] = "id"
        services = Services(Settings.from_env(environment))
        server = serve(services)
        asked = Page(services, request.param)
        asked.app = gradio_app(server._server.config.app)  # type: ignore[arg-type]
        yield asked
        asked.http.close()
        server._server.force_exit = True  # open connections of this process are not waited for
        server.close()
        services.shutdown()
    gc.collect()  # what gradio has left, while that is no error


def check(answer: str, right: str, visitor: str, page: Page) -> None:
    """What holds for every answer: nothing private for strangers, no traceback, and a refusal where it is due."""
    assert "Traceback" not in answer and "nexpected" not in answer, answer
    assert (REFUSED in answer) == (not may(right, visitor, page.place)), (visitor, answer[:2000])
    if not may("own", visitor, page.place):
        assert HUSH not in answer, answer


# ---- the tests


@pytest.mark.parametrize("visitor", VISITORS)
def test_every_endpoint(page: Page, visitor: str) -> None:
    functions = page.functions()
    known = {name for name in ENDPOINTS if page.place != "local" or not name.startswith("LoginButton")}
    assert set(functions.values()) == known, "each needs a row in ENDPOINTS: who may call it?"
    rows = [(number, ENDPOINTS[name], visitor) for number, name in functions.items()]
    for name, (_, row, _), answer in zip(functions.values(), rows, page.calls(rows), strict=True):
        check(answer, row.right, visitor, page)
        if may(row.right, visitor, page.place):
            assert re.search(row.holds, answer), (name, answer[:2000])
        if row.jobs:
            assert SHOWN in answer, (name, answer[:2000])
            assert (HUSH in answer) == may("own", visitor, page.place), name


@pytest.mark.parametrize("visitor", VISITORS)
def test_every_button(page: Page, visitor: str) -> None:
    known = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', inspect.getsource(JobsPanel._act))) - {
        "action",
        "job",
        "size",
    }
    assert known == {*ACTIONS, *DELETES, *SETTINGS}, "each needs a row: who may press it?"
    (number,) = (number for number, name in page.functions().items() if name == "JobsPanel.act")
    for action, value in SETTINGS.items():
        row = Row(event={"action": action, "job": value})
        check(page.call(number, row, visitor), "work", visitor, page)
    for action in DELETES:  # who may is told that there is no such job
        row = Row(event={"action": action, "job": "nothing-00000000" if may("own", visitor, page.place) else PUBLIC})
        check(page.call(number, row, visitor), "own", visitor, page)
    hidden = {job.id: job.status for job in page.store.jobs() if HUSH in job.request.name}
    for action, size in ACTIONS.items():
        row = Row(event={"action": action, "job": PUBLIC, "size": size})
        check(page.call(number, row, visitor), "work", visitor, page)
        if may("own", visitor, page.place):
            continue
        told = [
            page.call(number, Row(event={"action": action, "job": job, "size": size}), visitor)
            for job in (PRIVATE, "nothing-00000000", "../jobs/x")
        ]
        assert len({said(answer) for answer in told}) == 1, told  # as if it did not exist
        check(told[0], "work", visitor, page)
    assert hidden.items() <= {job.id: job.status for job in page.store.jobs()}.items() or visitor in OWNERS


def said(answer: str) -> str:
    """What an answer tells people, without what the page shows beside it."""
    return "|".join(re.findall(r'"log": ?"([^"]*)"', answer))


@pytest.mark.parametrize("visitor", VISITORS)
def test_every_tool_and_endpoint_about_a_private_job(page: Page, visitor: str) -> None:
    functions = {name.rpartition(".")[2]: number for number, name in page.functions().items()}
    tools = page.http.post(
        "/gradio_api/mcp/",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
        headers={"Accept": "application/json, text/event-stream"},
    ).text
    assert sorted(re.findall(r'"name":"(?:ggufy_)?(\w+)"', tools)) == sorted(NAMES)
    for name in NAMES:
        row, prefix = ENDPOINTS[f"_Api.{name}"], "" if page.place == "local" else "ggufy_"
        arguments = inspect_names(page, functions[name])
        given = dict(zip(arguments, map(page.named, row.arguments), strict=False))
        answer = page.tool(prefix + name, given, visitor)
        check(answer, row.right, visitor, page)
        if may(row.right, visitor, page.place):
            assert re.search(row.holds, answer), answer
        if row.arguments != (PUBLIC,):
            continue
        unknown = "nothing-00000000"
        for ask in (
            lambda job_id, name=prefix + name: page.tool(name, {"job_id": job_id}, visitor),
            lambda job_id, name=name: page.call(functions[name], Row(arguments=(job_id,)), visitor),
        ):
            private, none = ask(page.named(PRIVATE)), ask(unknown)
            known = may("own", visitor, page.place)
            same = plain(private, page.named(PRIVATE)) == plain(none, unknown)
            assert same != known, (private, none)


def inspect_names(page: Page, number: int) -> list[str]:
    """Of an endpoint's arguments."""
    return [name for name in inspect.signature(page.blocks.fns[number].fn).parameters if name not in _OURS]


_OURS = {"request", "profile"}


def plain(answer: str, job_id: str) -> str:
    """Without what differs from call to call."""
    ids = re.sub(
        r'"(event_id|id)": ?"[0-9a-f]+"|"(duration|average_duration|rank_eta|code|time)": ?[\d.]+', "", answer
    )
    return ids.replace(job_id, "THE JOB")


@pytest.mark.parametrize("visitor", VISITORS)
def test_every_route_of_ours(page: Page, visitor: str) -> None:
    routes = [route for route in page.app.routes if hasattr(route, "endpoint")]
    ours = {route.path for route in routes if route.endpoint.__module__.startswith("ggufy")}
    assert ours == ROUTES, "each needs a test: who may have what it gives?"
    headers = page.headers(visitor)
    shown = page.http.get(f"/files/{page.named(PUBLIC)}/{MODEL}", headers=headers)
    assert (shown.status_code, shown.content) == (200, f"GGUF of {SHOWN}".encode())
    none = page.http.get(f"/files/nothing-00000000/{HUSH}.gguf", headers=headers)
    assert none.status_code == 404
    for job in page.store.jobs():
        if HUSH in job.request.name:
            got = page.http.get(f"/files/{job.id}/{job.request.name}-F16.gguf", headers=headers)
            if may("own", visitor, page.place):
                assert (got.status_code, got.content) == (200, f"GGUF of {job.request.name}".encode())
            else:
                assert (got.status_code, got.content) == (404, none.content)
    every = [("file", f"{job.request.folder}/{job.request.name}-Q8_0.gguf") for job in page.store.jobs()]
    table = page.http.get("/comparison.csv", params=[*every, ("file", "../x"), ("file", "")], headers=headers)
    assert table.status_code == 200 and MODEL in table.text
    assert (HUSH in table.text) == may("own", visitor, page.place)
    plot = page.http.get("/comparison.png", params=every, headers=headers)
    assert plot.status_code == 404 and "a KLD to draw" in plot.text  # nobody has measured them


@pytest.mark.parametrize("visitor", VISITORS)
def test_a_private_model_cannot_be_talked_to(page: Page, visitor: str) -> None:
    (number,) = (number for number, name in page.functions().items() if name == "ChatTab.say")
    private = TALK | {"gg-chat-model-a": f"{HUSH}-repo-Q8_0.gguf"}
    answer = page.call(number, Row(data=private, after="ChatTab.look"), visitor)
    if may("own", visitor, page.place):
        assert "llama.cpp is not ready" in answer
    else:  # gradio refuses what was not on the list that it has shown; behind it stands Chats
        assert "Error" in answer and "llama.cpp" not in answer
        who, model = Visitor(name=(*VISITORS[visitor], "")[0]), private["gg-chat-model-a"]
        with pytest.raises(UsageError, match="not among the finished quants"):
            next(page.services.chats.say("v", "a", model=model, settings=Talk(), message="x", who=who))


def test_every_field_of_the_form(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What strangers of an open Space write into it."""
    (number,) = (number for number, name in page.functions().items() if name == "QuantizeTab.begin")
    fields = {item.elem_id for item in page.blocks.fns[number].inputs}
    assert fields == set(FIELDS), "each needs a row in FIELDS: what may a stranger write there?"
    if page.place != "open":
        return
    secret = tmp_path / f"{HUSH}.pth"
    secret.write_text("x" * 3000)
    monkeypatch.setattr(Workspace, "owner", "friends")
    usual = ENDPOINTS["QuantizeTab.begin"].data
    page.call(number, Row(data=usual), "nobody")
    plain_job = max(page.store.jobs(), key=lambda job: job.created)
    for name, (written, outcome) in FIELDS.items():
        data = usual | {key: str(secret) if value == FILE else value for key, value in written.items()}
        before = {job.id for job in page.store.jobs()}
        answer = page.call(number, Row(data=data), "stranger")
        made = [job for job in page.store.jobs() if job.id not in before]
        if outcome not in (IGNORED, TAKEN):
            assert outcome in answer and not made, (name, answer[:500])
            continue
        assert "was added" in answer, (name, answer[:500])
        assert bool(made) == (outcome == TAKEN), (name, made)
        for job in made:
            account, *_ = plain_job.request.repo_id.rpartition("-")
            assert job.request.repo_id.startswith(account) and not job.request.private
            page.services.cancel(job.id)
    assert plain_job.request.by_stranger and plain_job.request.repo_id.startswith("friends/RWKV")


_TAKES: dict[Kind, Any] = {Kind.TEXT: (), Kind.FLAG: bool, Kind.WORDS: (), Kind.PLACES: ()}
_TAKES |= {Kind.NUMBER: int, Kind.REAL: (int, float)}
NOT_TEXT: tuple[Any, ...] = (5, {"a": 1}, [["x"]], True, 1.5)


def test_values_of_any_kind_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """What a program may send is anything; no word of Python's comes back."""
    environment = {"GGUFY_OUT": str(tmp_path), "GGUFY_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    api, request = _Api(Services(Settings.from_env(environment))), SimpleNamespace(headers={})
    for name in NAMES:
        call = getattr(api, name)
        arguments = [argument for argument in inspect.signature(call).parameters if argument not in _OURS]
        usual = {"source": "demo", "job_id": "x", "quant_types": "Q8_0", "imatrix": False}
        for argument, value in itertools.product(arguments, NOT_TEXT):
            option = BY_NAME.get(argument)
            if isinstance(value, _TAKES[option.kind] if option else ()) or (argument, value) == ("imatrix", True):
                continue
            given = {one: usual.get(one) for one in arguments} | {argument: value}
            told = "(text: put it between quotes|true or false|a whole number, and not negative|a number, such as 32)"
            with pytest.raises(gr.Error, match=f"{argument} must be {told}"):
                call(request, None, **given)
        if arguments:
            with pytest.raises(gr.Error, match="No source given|There is no job"):
                call(request, None, **dict.fromkeys(arguments))


def test_lists_are_taken(page: Page) -> None:
    if page.place != "local":
        return
    (number,) = (number for number, name in page.functions().items() if name == "_Api.start_job")
    answer = page.call(number, Row(arguments=("demo", ["q4_0", "Q5_0"], False, None, None, ["4.9MB"])), "nobody")
    assert "job_id" in answer, answer
    newest = max(page.store.jobs(), key=lambda job: job.updated)
    assert newest.request.quant_types == ("Q5_0", "Q4_0") and len(newest.request.targets) == 1


def test_descriptions_are_whole(page: Page) -> None:
    """Every argument's description, as models are told it, ends a sentence; so does what is returned."""
    for name in NAMES:
        (fn,) = (fn for fn in page.blocks.fns.values() if fn.fn and fn.fn.__qualname__ == f"_Api.{name}")
        prefix = "" if page.place == "local" else "ggufy_"
        description, arguments = page.blocks.mcp_server_obj.get_fn_description(fn, prefix + name)
        for argument, told in arguments.items():
            assert argument in _OURS or (len(told) > 10 and told.endswith(".")), (name, argument, told)
        assert description.endswith(".") and ",," not in description and ", ," not in description
