"""The page's rows and HTML, without gradio: what a card says at every stage, and that no text can become markup."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.catalog import QUANT_TYPES
from ggufy.core.job import Artifact, FrontierPoint, Job, Request, Status
from ggufy.core.messages import Message
from ggufy.core.plan import Workload
from ggufy.core.progress import Progress
from ggufy.core.source import Source
from ggufy.publish.markup import el, join
from ggufy.service.job_views import JobView
from ggufy.service.machine_load import MachineLoad
from ggufy.service.preparation import Preparation
from ggufy.steps import plan
from ggufy.ui import job_parts, model_parts, parts
from ggufy.ui.file_rows import picks, points
from ggufy.ui.i18n import TEXTS, pick, texts_of
from ggufy.ui.job_facts import age
from ggufy.ui.messages import told
from ggufy.ui.models import SECTIONS, ModelCard, by_model, model_card
from ggufy.ui.plot import plot
from ggufy.ui.views import JobLine, job_line

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


EVALUATION: dict[str, Any] = {
    "quality": {"kld": 0.0123, "ppl_ratio": 1.0021, "same_top": 91.98},
    "speed": {
        "generation_tps": 57.3,
        "generation_tps_error": 2.1,
        "threads": 2,
        "prompt_tps": 1,
        "prompt_tps_error": 0,
    },
}
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


def card_of(
    *views: JobView, texts: dict[str, str] = EN, ready: bool = True, shown: Collection[str] = SECTIONS
) -> ModelCard:
    """The card of a model with these jobs, the newest first."""
    (model,) = by_model(views)
    lines = [job_line(view, texts, now=NOW, ready=ready) for view in views]
    return model_card(model, lines, texts, now=NOW, shown=shown)


def line_of(view: JobView, *, texts: dict[str, str] = EN, ready: bool = True) -> JobLine:
    return job_line(view, texts, now=NOW, ready=ready)


def opened(card: ModelCard) -> list[str]:
    """Every section of a card and of its jobs."""
    lines = (*card.jobs, *card.earlier)
    return [*card.sections, *(f"{name} {line.id}" for line in lines for name in line.sections)]


def column(cards: list[ModelCard], *, may_work: bool = True) -> str:
    """The machine's line, and cards with every section open."""
    pieces = [model_parts.model(card, EN, may_work=may_work, folded=False, opened=opened(card)) for card in cards]
    head = job_parts.head(MachineLoad(), EN, may_work=may_work)
    return join(head, *(text for card in pieces for _, text in card))


def test_a_running_job_says_where_it_is() -> None:
    card = line_of(running_view())
    assert (card.state, card.actions, card.percent) == ("running", ("pause", "cancel"), round(100 * 1.5 / 4))
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
    assert card.facts == ("Q4_K_M, IQ2_XS", "imatrix", "3 h ago")
    assert card_of(running_view()).facts == ("小模型.pth", "base f16")


def test_a_finished_job_lists_its_files() -> None:
    card = card_of(view(Status.DONE, files=FILES))
    (line,) = card.jobs
    assert (line.state_text, line.actions, line.percent, line.now, line.left) == ("done", (), 100, "", "")
    assert card.files_sum == "4 · 23.5 MB"
    base, imatrix, second, first = card.files  # quants by size
    assert (base.type, base.bpw, base.imatrix, base.sha256) == ("base GGUF", "", "", "cd" * 32)
    assert (imatrix.type, imatrix.size, imatrix.sha256) == ("imatrix", "97.0 kB", "")
    assert (first.bpw, first.imatrix, first.note) == ("5.84", "no", EN["advice_Q4_K_M"])
    assert (second.bpw, second.imatrix, second.note) == ("", "yes", "Same tensors as IQ2_S on this model.")
    assert first.link == f"files/{job(Status.DONE).id}/小模型-Q4_K_M.gguf".replace(
        "小模型", "%E5%B0%8F%E6%A8%A1%E5%9E%8B"
    )
    assert line.facts[-1] == card.age == "5 min ago"


def test_what_can_be_done_follows_the_status() -> None:
    queued = replace(running_view(), job=job(Status.QUEUED))
    assert line_of(queued).actions == ("pause", "cancel")
    assert line_of(queued).now == "waits for its turn"
    assert line_of(queued, ready=False).now == "waits for llama.cpp"
    assert line_of(view(Status.FAILED, error="x")).actions == ("retry",)
    assert line_of(view(Status.CANCELLED)).actions == ("retry",)
    assert line_of(view(Status.PAUSED)).actions == ("resume", "cancel")
    for ending, actions in (("cancelling", ()), ("pausing", ("cancel",))):
        stopping = line_of(replace(running_view(), stopping=ending))
        assert (stopping.state, stopping.actions) == (ending, actions)
    elsewhere = line_of(view(Status.RUNNING, files=FILES[:1]))
    assert (elsewhere.now, elsewhere.actions, elsewhere.steps_sum) == ("another process works on it", (), "1 of 4")


def test_measured_files_show_their_figures() -> None:
    rows = (FILES[0], FILES[1], {**FILES[2], "evaluation": EVALUATION})
    card = card_of(view(Status.DONE, files=rows))
    quant = card.files[2]
    assert (quant.kld, quant.ppl_ratio, quant.same_top, quant.speed) == ("0.0123", "1.002", "92.0 %", "57.3 ± 2.1")
    assert (card.files[0].kld, card.measured) == ("", True)
    assert all(word in Elements(column([card])).text for word in ("0.0123", "1.002", "92.0 %", "PPL ratio"))
    plain = card_of(view(Status.DONE, files=FILES))
    assert "PPL ratio" not in Elements(column([plain])).text


def test_the_pick_for_every_amount_of_memory() -> None:
    """Each line is the nearest to the base of all that fit; what is larger and worse is never picked."""

    def row(name: str, size: int, kld: float) -> dict[str, Any]:
        quality = EVALUATION["quality"] | {"kld": kld}
        return {
            **FILES[2],
            "file": f"m-{name}.gguf",
            "type": name,
            "size": size,
            "evaluation": {"quality": quality, "speed": None},
        }

    made = [row("Q2_K", 10**9, 0.2), row("Q4_0", 3 * 10**9, 0.1), row("Q4_K_M", 2 * 10**9, 0.01)]
    found = picks([*made, {**FILES[0], "size": 8 * 10**9}], "F16")
    assert [pick.type for pick in found] == ["Q2_K", "Q4_K_M", "F16"]
    assert [pick.memory for pick in found] == ["1.35 GB", "2.45 GB", "9.05 GB"]


def test_the_plot_shows_size_alone_where_nothing_was_measured() -> None:
    bars = Elements(plot(points(FILES, "F16"), EN))
    assert "svg" not in [tag for tag, _ in bars.tags]
    assert [name in bars.text for name in ("IQ2_XS", "Q4_K_M", "F16")] == [True] * 3
    two = [{**FILES[n], "evaluation": EVALUATION} for n in (2, 3)]
    scatter = Elements(plot(points([FILES[0], *two], "F16"), EN))
    circles = [tag for tag, _ in scatter.tags].count("circle")
    assert circles == 2 * 2  # on a desktop and on a phone; the base is what the others are compared with
    assert "Q4_K_M: 5.4 MB, KLD 0.0123" in scatter.text


def test_a_download_counts_as_done_when_something_was_made_of_it() -> None:
    remote = replace(REQUEST, source=replace(SOURCE, kind="gguf", model_id="owner/repo", path="dir/小模型.gguf"))
    there = replace(view(Status.FAILED, files=FILES[:1]), job=replace(job(Status.FAILED), request=remote))
    card = card_of(there)
    assert [(s.label, s.state) for s in card.jobs[0].steps[:3]] == [
        ("download", "done"),
        ("convert", "done"),
        ("imatrix", "waiting"),
    ]
    assert card.facts[0] == "owner/repo:小模型.gguf"


def test_nothing_that_a_stranger_names_becomes_markup() -> None:
    """Names, errors, folders and build messages are text, in elements and in attributes."""
    source = replace(SOURCE, path=f"/models/{EVIL}.pth", model_id=EVIL)
    evil_job = replace(job(Status.FAILED, error=EVIL), request=replace(REQUEST, name=EVIL, source=source))
    rows = tuple({**row, "file": EVIL + row["file"], "sha256": EVIL} for row in FILES)
    card = card_of(JobView(job=evil_job, files=rows, folder=Path(f"/out/{EVIL}")))
    pieces = [
        column([card]),
        parts.message(EVIL),
        parts.banner(Preparation(text=EVIL, total=2), EN, may_work=True),
        parts.banner(Preparation(error=EVIL), EN, may_work=True),
        parts.banner(Preparation(waiting=EVIL), EN, may_work=True),
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
    names = ("now", "left", "log", "error", "steps_sum")
    line = replace(
        line_of(running_view()),
        sections=("steps", "log"),
        facts=("field-facts",),
        **{name: f"field-{name}" for name in names},  # type: ignore[arg-type]
    )
    card = replace(
        card_of(view(Status.DONE, files=FILES)),
        jobs=(line,),
        facts=("field-source",),
        **{name: f"field-{name}" for name in ("name", "state_text", "files_sum")},  # type: ignore[arg-type]
        where=(("field-where", ""),),
    )
    text = Elements(column([card])).text
    for name in (*names, "facts", "source", "name", "state_text", "files_sum", "where"):
        assert f"field-{name}" in text
    for row in FILES:
        assert row["file"] in text


def test_old_models_are_counted_and_an_empty_page_says_what_to_do() -> None:
    _, more = model_parts.more(27, 20, EN)
    assert "27 older" in more
    assert "Show 20 more" in more
    assert "Show 7 more" in model_parts.more(7, 20, EN)[1]
    assert EN["no_jobs_hint"] in Elements(model_parts.nothing(EN, may_work=True)[1]).text
    assert EN["no_jobs_hint"] not in Elements(model_parts.nothing(EN, may_work=False)[1]).text


def test_a_card_is_sent_without_what_is_not_open() -> None:
    """A folded one is a line: its name, where it stands, what it has, when, and its buttons."""
    card = card_of(view(Status.FAILED, error="the disk is full.", files=FILES), shown=())
    assert (card.files, card.points) == ((), ())
    ((key, text),) = model_parts.model(card, EN, may_work=True, folded=True, opened=opened(card))
    folded = Elements(text)
    assert key == f"card {card.id}"
    assert {"article", "h3"} <= {tag for tag, _ in folded.tags}
    assert [attributes.get("data-action") for tag, attributes in folded.tags if tag == "button"] == [None, "retry"]
    for word, there in (
        ("小模型", True),
        ("failed", True),
        ("4 · 23.5 MB", True),
        ("5 min ago", True),
        ("disk", False),
    ):
        assert (word in folded.text) == there
    ((_, text),) = model_parts.model(card, EN, may_work=True, folded=False, opened=())
    assert "the disk is full." in text
    assert "Files" in Elements(text).text
    assert "小模型-Q4_K_M.gguf" not in text
    sections = ("files", f"log {card.jobs[0].id}")
    keys = [key for key, _ in model_parts.model(card, EN, may_work=True, folded=False, opened=sections)]
    assert keys == [f"card {card.id}", f"files {card.id}"]  # it has no log


# ---- several jobs of one model


def another(status: Status, *quants: str, targets: tuple[str, ...] = (), **changes: Any) -> Job:
    request = replace(REQUEST, quant_types=quants, targets=targets, mode="standard" if targets else "")
    return replace(job(status, **changes), request=request)


def test_jobs_of_one_model_share_a_card_and_its_table() -> None:
    """Each file once, quants by size, with all that any job knows of it; what is at work is spoken of first."""
    measured = {**FILES[2], "evaluation": EVALUATION}
    larger = {**FILES[2], "file": "小模型-Q8_0.gguf", "type": "Q8_0", "size": 7_700_000}
    first = replace(view(Status.DONE), job=another(Status.DONE, "Q8_0"), files=(FILES[0], larger, measured))
    second = view(Status.DONE, files=FILES)
    third = replace(running_view(), job=another(Status.RUNNING, "Q6_K"))
    fourth = replace(view(Status.CANCELLED), job=another(Status.CANCELLED, "Q5_K_M"))
    card = card_of(fourth, third, second, first)
    assert [row.type for row in card.files] == ["base GGUF", "imatrix", "IQ2_XS", "Q4_K_M", "Q8_0"]
    assert [row.kld for row in card.files] == ["", "", "", "0.0123", ""]
    assert [row.job for row in card.files] == [second.job.id] * 4 + [first.job.id]
    assert card.files_sum == "5 · 31.2 MB"
    assert [line.facts[0] for line in card.jobs] == ["Q6_K", "Q5_K_M"]
    assert [line.facts[0] for line in card.earlier] == ["Q4_K_M, IQ2_XS", "Q8_0"]
    assert (card.state, card.sections) == ("running", ("files", "plot", "sizes", "jobs"))
    shown = Elements(column([card]))
    lines = [attributes["data-job"] for _, attributes in shown.tags if "gg-run " in (attributes.get("class") or "")]
    assert lines == [v.job.id for v in (third, fourth, second, first)]
    assert [tag for tag, _ in shown.tags].count("table") == 1


def test_other_bytes_under_the_same_name_keep_their_own_figures() -> None:
    newer = view(Status.DONE, files=({**FILES[2], "sha256": "aa" * 32},))
    older = replace(
        view(Status.DONE), job=another(Status.DONE, "Q4_K_M"), files=({**FILES[2], "evaluation": EVALUATION},)
    )
    (row,) = card_of(newer, older).files
    assert (row.kld, row.sha256) == ("", "aa" * 32)


def test_what_is_at_work_stands_above_what_waits_and_that_above_the_rest() -> None:
    statuses = (Status.DONE, Status.QUEUED, Status.FAILED, Status.RUNNING, Status.PAUSED)
    views = [
        replace(view(status), job=replace(job(status), request=replace(REQUEST, name=f"m{n}")))
        for n, status in enumerate(statuses)
    ]
    assert [model.lead.job.request.name for model in by_model(views)] == ["m3", "m1", "m0", "m2", "m4"]


def test_what_was_expected_of_a_size_stands_beside_what_was_measured() -> None:
    label = "3MB-IQ2_XS_FIT"
    row = {**FILES[3], "file": f"小模型-{label}.gguf", "type": label, "size": 3_010_000, "evaluation": EVALUATION}
    points = (FrontierPoint(size=3_000_000, bpw=3.2, kld=0.0119), FrontierPoint(size=9_000_000, bpw=9.0, kld=0.001))
    done = another(Status.DONE, targets=(label,), frontier=points)
    card = card_of(replace(view(Status.DONE), job=done, files=(FILES[2], row)))
    assert [(one.kld, one.expected) for one in card.files] == [("0.0123", "0.0119"), ("", "")]
    assert "≈ 0.0119" in Elements(column([card])).text


@pytest.mark.parametrize(
    ("texts", "waits", "needs"),
    [
        (EN, "Another run holds /out: wait for it to end.", "HF_TOKEN"),
        (ZH, "另一个任务占用着 /out", "HF_TOKEN"),
    ],
)
def test_what_a_job_waits_for_and_needs_is_said(texts: dict[str, str], waits: str, needs: str) -> None:
    reason = Message("another run holds {path}: wait for it to end.", path="/out")
    running = running_view()
    assert running.snapshot is not None
    waiting = line_of(replace(running, snapshot=replace(running.snapshot, waiting=reason)), texts=texts)
    assert waits in waiting.now
    error = "the token in HF_TOKEN is not valid any more."
    paused = card_of(view(Status.PAUSED, error=error), texts=texts)
    assert needs in Elements(column([paused])).text
    assert "gg-needs" in column([paused])


@pytest.mark.parametrize("texts", [EN, ZH])
def test_the_banner_says_what_a_start_waits_for(texts: dict[str, str]) -> None:
    reason = Message("another runner is at work on {repo}: this one waits for it.", repo="a/ggufy-state")
    waiting = Elements(parts.banner(Preparation(waiting=reason), texts, may_work=True))
    assert texts["preparing"] not in waiting.text  # llama.cpp is not what takes so long
    assert texts["preparing_wait"] in waiting.text
    assert "progressbar" not in [attributes.get("role") for _, attributes in waiting.tags]
    assert told(reason, texts) in waiting.text
    assert (texts is EN) == (reason[1:] in waiting.text)


def test_who_may_only_look_gets_no_buttons() -> None:
    cards = [card_of(v) for v in (running_view(), view(Status.FAILED, error="x"))]
    assert [tag for tag, _ in Elements(column(cards)).tags].count(
        "button"
    ) == 7  # two names; pause, cancel, retry; the share
    looked = [attributes for tag, attributes in Elements(column(cards, may_work=False)).tags if tag == "button"]
    assert all("data-fold" in attributes for attributes in looked)
    failed = Preparation(error="no compiler")
    assert "button" in [tag for tag, _ in Elements(parts.banner(failed, EN, may_work=True)).tags]
    looking = Elements(parts.banner(failed, EN, may_work=False, notes=[EN["space_closed"]]))
    assert "button" not in [tag for tag, _ in looking.tags]
    assert EN["space_closed"] in looking.text


def test_the_banner_follows_the_preparation() -> None:
    assert parts.banner(Preparation(ready=True), EN, may_work=True) == ""
    building = Elements(parts.banner(Preparation(done=84, total=238, text="ggml.c"), EN, may_work=True))
    assert "step 84 of 238" in building.text
    assert ("35", "0", "100") in [
        tuple(attributes.get(f"aria-value{k}") for k in ("now", "min", "max")) for _, attributes in building.tags
    ]


def test_errors_come_in_the_visitor_s_language() -> None:
    text = "Q2_K is not finite in blk.0 <1>"
    code = Message("exit code {code}", code=1)
    error = Message("{tool} failed ({code}): {reason}", tool="llama-quantize", code=code, reason=text)
    failed = view(Status.FAILED, error=error)
    for texts, said in ((EN, error), (ZH, f"llama-quantize 失败（退出码 1）：{text}")):
        assert said in Elements(column([card_of(failed, texts=texts)])).text
    full = Message(
        "building llama.cpp needs {needed} in {folder}, and {free} are free: free some space and {AGAIN}.",
        needed="1 GB",
        folder="/a",
        free="2 MB",
    )
    told = Elements(parts.banner(Preparation(error=full), ZH, may_work=True)).text
    assert "编译 llama.cpp 在 /a 中需要 1 GB，可用空间为 2 MB：请释放空间后再试一次。" in told
    building = Preparation(text=Message("configuring llama.cpp"))
    assert "配置 llama.cpp" in Elements(parts.banner(building, ZH, may_work=True)).text


@pytest.mark.parametrize("texts", [EN, ZH])
def test_the_type_table_has_every_type(texts: dict[str, str]) -> None:
    elements = Elements(parts.types(texts))
    boxes = [attributes for tag, attributes in elements.tags if tag == "input"]
    recommended_first = sorted(QUANT_TYPES, key=lambda row: not row.recommended)
    assert [box["value"] for box in boxes] == [row.name for row in recommended_first]
    assert [row.name for row in recommended_first if row.needs_imatrix] == [
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


class Asked:
    """A request with these headers."""

    def __init__(self, **headers: str):
        self.headers = headers


def test_the_visitor_s_choice_of_language_comes_first() -> None:
    chinese = {"accept-language": "zh-CN"}
    assert texts_of(Asked(**chinese)) is ZH
    assert texts_of(Asked(**chinese, cookie="a=b; ggufy_language=en")) is EN
    assert texts_of(Asked(**chinese, cookie="ggufy_language=xx")) is ZH
    assert texts_of(Asked(cookie=f"ggufy_language={EVIL}")) is EN
    assert texts_of(Asked()) is EN


def test_errors_speak_the_page_s_words() -> None:
    message = Message("choose fewer {TYPES} or another {OUT}, and {AGAIN}; {file} stays.", file="--out")
    assert message == "choose fewer --types or another --out, and run the same command again; --out stays."
    assert told(message, EN) == "Choose fewer quant types or another GGUFY_OUT, and press Retry; --out stays."
    assert told("an older record's: --out.", EN) == "an older record's: --out."


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
