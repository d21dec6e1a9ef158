"""The page's rows and HTML, without gradio: what a card says at every stage, and that no text can become markup."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ggufy.catalog import QUANT_TYPES
from ggufy.job import Artifact, Job, Request, Source, Status
from ggufy.plan import plan
from ggufy.progress import Progress, Workload
from ggufy.service import JobView, Preparation
from ggufy.ui import parts
from ggufy.ui.i18n import TEXTS, pick
from ggufy.ui.markup import el, join
from ggufy.ui.views import age, in_page_words, job_card

EN, ZH = TEXTS["en"], TEXTS["zh"]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EVIL = "<img src=x onerror=alert(1)>${alert(2)}\"'`{{evil}}"
SOURCE = Source(kind="checkpoint", path="/models/小模型.pth", size=14_000_000, sha256="ab" * 32)
REQUEST = Request(name="小模型", source=SOURCE, quant_types=("Q4_K_M", "IQ2_XS"), outtype="f16")


class Elements(HTMLParser):
    """Names, attributes and text of everything in a piece of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def job(status: Status, **changes: Any) -> Job:
    times = {"created": "2026-03-01T09:00:00+00:00", "updated": "2026-03-01T11:55:00+00:00"}
    return Job(request=REQUEST, status=status, **(times | changes))


def view(status: Status, *, files: tuple[dict[str, Any], ...] = (), **changes: Any) -> JobView:
    return JobView(job=job(status, **changes), files=files, folder=Path("/out/小模型-GGUF"))


def running_view(*, fraction: float = 0.5) -> JobView:
    """Convert done after 2 s, the imatrix half way after 5 more."""
    clock = iter([0.0] * 3 + [2.0] * 2 + [7.0] * 10)
    progress = Progress(clock=lambda: next(clock))
    steps = plan(REQUEST)
    progress.planned(steps, steps)
    progress.workload(Workload(weights=7_000_000, base_bytes=15_000_000, threads=1))
    progress.started(steps[0])
    progress.finished(steps[0], Artifact(name="小模型-F16.gguf", size=15_000_000, sha256=""))
    progress.started(steps[1])
    progress.fraction(steps[1], fraction)
    return replace(view(Status.RUNNING), snapshot=progress.snapshot(), forecast={"Q4_K_M": 5_400_000})


FILES: tuple[dict[str, Any], ...] = (
    {"file": "小模型-F16.gguf", "kind": "convert", "size": 15_000_000, "sha256": "cd" * 32},
    {"file": "小模型-imatrix.gguf", "kind": "imatrix", "size": 97_000},
    {
        "file": "小模型-Q4_K_M.gguf",
        "kind": "quantize",
        "size": 5_400_000,
        "type": "Q4_K_M",
        "needs_imatrix": False,
        "bpw": 5.843,
        "sha256": "ef" * 32,
    },
    {
        "file": "小模型-IQ2_XS.gguf",
        "kind": "quantize",
        "size": 3_000_000,
        "type": "IQ2_XS",
        "needs_imatrix": True,
        "same_tensors_as": "IQ2_S",
    },
)


def test_a_running_job_says_where_it_is() -> None:
    card = job_card(running_view(), EN, now=NOW)
    assert (card.state, card.action, card.percent) == ("running", "cancel", round(100 * 1.5 / 4))
    assert card.now == "step 2 of 4 · imatrix · 50 %"
    assert re.fullmatch(r"about .+ left · 7\.0 s so far", card.left)
    assert card.steps_sum == "1 of 4"
    assert [(s.label, s.state, s.percent) for s in card.steps] == [
        ("convert", "done", 100),
        ("imatrix", "running", 50),
        ("quantize Q4_K_M", "waiting", 0),
        ("quantize IQ2_XS", "waiting", 0),
    ]
    assert [s.size for s in card.steps] == ["15.0 MB", "", "5.4 MB", ""]  # made, made now, forecast, unknown
    assert card.steps[0].time == "2.0 s"
    assert card.facts == ("小模型.pth", "2 quants", "base f16", "imatrix", "3 h ago")


def test_a_finished_job_lists_its_files() -> None:
    card = job_card(view(Status.DONE, files=FILES), EN, now=NOW)
    assert (card.state_text, card.action, card.percent, card.now, card.left) == ("done", "", 100, "", "")
    assert card.files_sum == "4 · 23.5 MB"
    base, imatrix, first, second = card.files
    assert (base.type, base.bpw, base.needs_imatrix, base.sha256) == ("base GGUF", "", "", "cd" * 32)
    assert (imatrix.type, imatrix.size, imatrix.sha256) == ("imatrix", "97.0 kB", "")
    assert (first.bpw, first.needs_imatrix, first.note) == ("5.84", "no", EN["advice_Q4_K_M"])
    assert (second.bpw, second.needs_imatrix, second.note) == ("", "yes", "Same tensors as IQ2_S on this model.")
    assert first.link == f"files/{job(Status.DONE).id}/小模型-Q4_K_M.gguf".replace(
        "小模型", "%E5%B0%8F%E6%A8%A1%E5%9E%8B"
    )
    assert card.facts[-1] == "5 min ago"


def test_what_can_be_done_follows_the_status() -> None:
    queued = replace(running_view(), job=job(Status.QUEUED))
    assert job_card(queued, EN, now=NOW).action == "cancel"
    assert job_card(queued, EN, now=NOW).now == "waits for its turn"
    assert job_card(queued, EN, now=NOW, ready=False).now == "waits for llama.cpp"
    assert job_card(view(Status.FAILED, error="x"), EN, now=NOW).action == "retry"
    assert job_card(view(Status.CANCELLED), EN, now=NOW).action == "retry"
    stopping = job_card(replace(running_view(), stopping=True), EN, now=NOW)
    assert (stopping.state, stopping.action) == ("cancelling", "")
    elsewhere = job_card(view(Status.RUNNING, files=FILES[:1]), EN, now=NOW)
    assert (elsewhere.now, elsewhere.action, elsewhere.steps_sum) == ("another process works on it", "", "1 of 4")


def test_a_download_counts_as_done_when_something_was_made_of_it() -> None:
    remote = replace(REQUEST, source=replace(SOURCE, model_id="owner/repo", path="dir/小模型.pth"))
    there = replace(view(Status.FAILED, files=FILES[:1]), job=replace(job(Status.FAILED), request=remote))
    card = job_card(there, EN, now=NOW)
    assert [(s.label, s.state) for s in card.steps[:3]] == [
        ("download", "done"),
        ("convert", "done"),
        ("imatrix", "waiting"),
    ]
    assert card.facts[0] == "owner/repo:小模型.pth"


def test_nothing_that_a_stranger_names_becomes_markup() -> None:
    """Names, errors, folders and build messages are text, in elements and in attributes."""
    source = replace(SOURCE, path=f"/models/{EVIL}.pth", model_id=EVIL)
    evil_job = replace(job(Status.FAILED, error=EVIL), request=replace(REQUEST, name=EVIL, source=source))
    rows = tuple({**row, "file": EVIL + row["file"], "sha256": EVIL} for row in FILES)
    card = job_card(JobView(job=evil_job, files=rows, folder=Path(f"/out/{EVIL}")), EN, now=NOW)
    pieces = [
        parts.jobs([card], EN, read_only=False),
        parts.message(EVIL),
        parts.banner(Preparation(text=EVIL, total=2), EN, read_only=False),
        parts.banner(Preparation(error=EVIL), EN, read_only=False),
    ]
    for piece in pieces:
        elements = Elements(piece)
        assert EVIL in elements.text
        assert all(tag != "img" for tag, _ in elements.tags)
        assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    links = [attributes["href"] for tag, attributes in Elements(pieces[0]).tags if tag == "a"]
    assert len(links) == len(rows)
    assert all(re.fullmatch(r"files/[\w.%~-]+/[\w.%~-]+", link or "") for link in links)  # no slash of theirs either


def test_everything_of_a_card_is_on_the_page() -> None:
    names = ("name", "state_text", "now", "left", "folder", "error", "steps_sum", "files_sum")
    marked = replace(
        job_card(running_view(), EN, now=NOW),
        facts=("field-facts",),
        files=job_card(view(Status.DONE, files=FILES), EN, now=NOW).files,
        **{name: f"field-{name}" for name in names},
    )
    text = Elements(parts.jobs([marked], EN, read_only=False)).text
    for name in (*names, "facts"):
        assert f"field-{name}" in text
    for row in FILES:
        assert row["file"] in text


def test_old_jobs_are_counted_and_an_empty_page_says_what_to_do() -> None:
    card = job_card(view(Status.DONE, files=FILES), EN, now=NOW)
    assert "7 older" in parts.jobs([card], EN, read_only=False, older=7)
    assert "older" not in parts.jobs([card], EN, read_only=False)
    assert EN["no_jobs_hint"] in Elements(parts.jobs([], EN, read_only=False)).text
    assert EN["no_jobs_hint"] not in Elements(parts.jobs([], EN, read_only=True)).text


def test_who_may_only_look_gets_no_buttons() -> None:
    cards = [job_card(v, EN, now=NOW) for v in (running_view(), view(Status.FAILED, error="x"))]
    assert [tag for tag, _ in Elements(parts.jobs(cards, EN, read_only=False)).tags].count("button") == 2
    assert "button" not in [tag for tag, _ in Elements(parts.jobs(cards, EN, read_only=True)).tags]
    failed = Preparation(error="no compiler")
    assert "button" in [tag for tag, _ in Elements(parts.banner(failed, EN, read_only=False)).tags]
    looking = Elements(parts.banner(failed, EN, read_only=True))
    assert "button" not in [tag for tag, _ in looking.tags]
    assert EN["space_closed"] in looking.text


def test_the_banner_follows_the_preparation() -> None:
    assert parts.banner(Preparation(ready=True), EN, read_only=False) == ""
    building = Elements(parts.banner(Preparation(done=84, total=238, text="ggml.c"), EN, read_only=False))
    assert "step 84 of 238" in building.text
    assert ("35", "0", "100") in [
        tuple(attributes.get(f"aria-value{k}") for k in ("now", "min", "max")) for _, attributes in building.tags
    ]


@pytest.mark.parametrize("texts", [EN, ZH])
def test_the_type_table_has_every_type(texts: dict[str, str]) -> None:
    elements = Elements(parts.types(texts))
    boxes = [attributes for tag, attributes in elements.tags if tag == "input"]
    assert [box["value"] for box in boxes] == [row.name for row in QUANT_TYPES]
    assert [row.name for row in QUANT_TYPES if row.needs_imatrix] == [
        box["value"] for box in boxes if "data-needs-imatrix" in box
    ]
    assert [row.name for row in QUANT_TYPES if row.recommended] == [
        box["value"] for box in boxes if "data-recommended" in box
    ]
    for row in QUANT_TYPES:
        assert texts[f"advice_{row.name}"] in elements.text


def test_both_languages_say_the_same_things() -> None:
    assert EN.keys() == ZH.keys()
    places = {key: sorted(re.findall(r"\{\w*\}", text)) for key, text in EN.items()}
    assert places == {key: sorted(re.findall(r"\{\w*\}", text)) for key, text in ZH.items()}
    assert {f"advice_{row.name}" for row in QUANT_TYPES} <= ZH.keys()


def test_the_browser_chooses_the_language() -> None:
    assert pick("zh-CN,zh;q=0.9,en;q=0.8") is ZH
    assert pick("zh") is ZH
    assert pick("en-US,en;q=0.9,zh;q=0.1") is EN
    assert pick("fr-FR,fr;q=0.9") is EN
    assert pick("") is EN


def test_errors_speak_the_page_s_words() -> None:
    assert in_page_words("leave out --imatrix none, or them.") == "leave out imatrix off, or them."
    assert in_page_words("give one with --name.") == "give one with “Name”."
    assert in_page_words("choose fewer --types or another --out.") == "choose fewer quant types or another GGUFY_OUT."
    assert in_page_words("leave --outtype f16 out.") == "leave “Base type” f16 out."
    assert in_page_words("free some space and run the same command again; it stays.").endswith(
        "press Retry; it stays."
    )
    assert in_page_words("a --strange one, --outer") == "a --strange one, --outer"


def test_ages() -> None:
    assert age("2026-03-01T11:59:40+00:00", EN, NOW) == "just now"
    assert age("2026-03-01T11:01:00+00:00", EN, NOW) == "59 min ago"
    assert age("2026-02-27T13:00:00+00:00", EN, NOW) == "47 h ago"
    assert age("2026-02-20T12:00:00+00:00", EN, NOW) == "9 d ago"
    assert age("", EN, NOW) == "just now"


def test_markup_escapes_text_and_keeps_elements() -> None:
    assert el("p", "a < b", el("b", "&"), None, class_="x y") == '<p class="x y">a &lt; b<b>&amp;</b></p>'
    assert el("input", type="checkbox", disabled=True, checked=False, value='"') == (
        '<input type="checkbox" disabled value="&quot;">'
    )
    assert join("<", el("br"), ">") == "&lt;<br>&gt;"
