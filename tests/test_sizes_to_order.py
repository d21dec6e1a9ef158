"""Sizes to order in jobs: pinned, planned, made by the real runner, killed and stopped; and what the page shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_fixture import ALICE, LocalHub, running_hub

from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import COMPENSATED, PLAIN, Artifact, FrontierPoint, Job, Request, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.plan import base_name, imatrix_name, pending
from ggufy.core.progress import RUNNING
from ggufy.formats.gguf import read_head
from ggufy.jobs.estimate import finding_seconds
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.publish.card import CardFacts, card
from ggufy.quantize.search import target
from ggufy.quantize.search.target import FAST, STANDARD, THOROUGH
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from ggufy.service.access import STRANGER, Visitor
from ggufy.service.service import Services
from ggufy.steps import plan
from ggufy.steps.target_size import FRONTIER, Stages
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.ui.i18n import TEXTS
from ggufy.ui.messages import told as said
from tests import small, tiny
from tests.conftest import ROOT, Ggufy
from tests.test_job import REQUEST
from tests.test_publish import get
from tests.test_service import settings
from tests.test_views import Elements, card_of, column, view

SIZES = ("1.2GB-IQ3_XXS_FIT", "mem4GB-Q4_K_M_FIT")
ORDER = replace(REQUEST, targets=SIZES, mode=STANDARD)
POINTS = (
    FrontierPoint(size=2_333_504, bpw=2.4686, kld=0.38324),
    FrontierPoint(size=4_161_344, bpw=4.4727, kld=0.016935),
    FrontierPoint(size=7_936_320, bpw=8.6116, kld=0.0000932),
)
DEMO = "RWKV-x070-Demo-7M"
OWNER = Visitor(name="somebody")


# ---- records and plans


def labels(request: Request) -> list[str]:
    return [step.label for step in plan(request)]


def test_types_come_first_then_the_analysis_then_sizes() -> None:
    made = ["convert", "imatrix", "quantize Q4_K_M", "quantize Q6_K"]
    ordered = [f"quantize {size}" for size in SIZES]
    assert labels(ORDER) == [*made, "analyse", *ordered]
    assert labels(replace(ORDER, mode=FAST)) == [*made, *ordered]
    assert labels(replace(ORDER, quant_types=(), targets=())) == ["convert", "imatrix", "analyse"]
    assert labels(replace(REQUEST, mode=THOROUGH)) == [*made, "analyse"]
    measured = labels(replace(ORDER, evaluate=True))
    assert measured[-2:] == [f"evaluate {size}" for size in SIZES]
    published = labels(replace(ORDER, quant_types=(), repo_id="alice/m", evaluate=True))
    assert published[4:9] == [
        "analyse",
        *("quantize 1.2GB-IQ3_XXS_FIT", "upload m-1.2GB-IQ3_XXS_FIT.gguf", "evaluate 1.2GB-IQ3_XXS_FIT"),
        "quantize mem4GB-Q4_K_M_FIT",
    ]


def test_what_was_found_is_not_found_again() -> None:
    steps = plan(replace(ORDER, repo_id="alice/m"))
    there = {step.product for step in steps if step.product.startswith("repo:")}
    assert [step.kind for step in pending(steps, lambda step: step.product in there | {FRONTIER})] == []
    assert [step.label for step in pending(steps, lambda step: step.product in there)] == [
        "fetch m-F16.gguf",
        "fetch m-imatrix.gguf",
        "analyse",
    ]


def test_records() -> None:
    job = Job(request=ORDER, frontier=POINTS)
    assert from_json(to_json(job)) == job
    old = json.loads(to_json(Job(request=REQUEST)))
    for field in ("targets", "mode", "mix"):
        del old["request"][field]
    del old["frontier"]
    assert from_json(json.dumps(old | {"version": 1})) == Job(request=REQUEST)


def test_sizes_share_base_and_imatrix_but_are_jobs_of_their_own() -> None:
    others = [REQUEST, ORDER, replace(ORDER, mode=FAST), replace(ORDER, targets=SIZES[:1])]
    others.append(replace(REQUEST, mode=STANDARD))
    assert len({request.inputs() for request in others}) == 1
    assert len({request.job_id for request in others}) == len(others)


# ---- what users write


@pytest.mark.parametrize(
    ("word", "text", "amount"),
    [
        ("1.2GB", "1.2GB", 1.2e9),
        (" 900 mib ", "900MiB", 900 * 2**20),
        ("3.275bpw", "3.275bpw", 3.275),
        ("3.30 BPW", "3.3bpw", 3.3),
        ("mem4GB", "mem4GB", 4e9),
        ("fit 4 GB", "mem4GB", 4e9),
        ("1.23456789GB", "1.234568GB", 1.234568e9),
    ],
)
def test_words(word: str, text: str, amount: float) -> None:
    found = target.parse_word(word)
    assert (found.text, found.amount) == (text, amount)
    assert target.parse_word(text) == found
    label = target.label(found, weights=1_600_000_000, head=0)
    assert target.of_label(label) == (found, label.removesuffix("_FIT").rpartition("-")[2])


@pytest.mark.parametrize(
    "word", ["", "big", "1.2", "-1GB", "1GBx", "0.0000001GB", "17bpw", "0bpw", "3.2GBpw", "1GB 2GB", "mem", "fit"]
)
def test_what_is_no_word(word: str) -> None:
    with pytest.raises(UsageError, match="is no size to order") as caught:
        target.parse_word(word)
    assert str(caught.value).count(". ") == 0
    assert "不是可定制的大小" in said(caught.value.message, TEXTS["zh"])


@pytest.mark.parametrize("label", ["", "Q4_K_M", "1.2GB", "1.2GB-Q4_K_X_FIT", "x-Q4_K_M_FIT"])
def test_what_is_no_label(label: str) -> None:
    with pytest.raises(UsageError, match="to order"):
        target.of_label(label)


def test_lists_of_words() -> None:
    assert target.parse_words(" 1.2GB, 3.3bpw；mem4GB\n,") == ("1.2GB", "3.3bpw", "mem4GB")


@pytest.mark.parametrize("size", [999, 1000, 5_512_345, 5_500_000, 999_999, 1_234_567_890, 123_456_789_012])
def test_a_size_as_a_word_is_hardly_larger(size: int) -> None:
    assert size <= target.parse_word(target.size_word(size)).amount <= size * 1.001


def options(**changes: Any) -> JobOptions:
    return JobOptions(**{"source": "demo", "quant_types": (), "imatrix": "none", "evaluate": False} | changes)


def test_intake_pins_the_label() -> None:
    pinned = make_job(options(targets=("4.2MB", "4.2 MB", "3.3bpw")), Settings.from_env()).request
    assert pinned.targets == ("4.2MB-Q4_K_S_FIT", "3.3bpw-IQ3_XXS_FIT")
    assert (pinned.mode, pinned.quant_types) == (STANDARD, ())
    assert make_job(options(mode=FAST), Settings.from_env()).request.mode == ""  # nothing to do for it
    assert make_job(options(mode=THOROUGH), Settings.from_env()).request.mode == THOROUGH


@pytest.mark.parametrize(
    ("changes", "told", "chinese"),
    [
        ({"targets": ("4.2 apples",)}, "is no size to order", "不是可定制的大小"),
        ({"targets": ("0.9MB",)}, "0.9MB is too small for this model", "太小"),
        ({"targets": ("mem100MB",)}, "mem100MB is too small for this model, which needs more than 252 MB", "太小"),
        ({"targets": ("1.4bpw",)}, "1.4bpw is too small for this model, which needs more than 1.4 MB", "太小"),
        ({"targets": ("4MB",), "mode": "hasty"}, "unknown mode 'hasty'", "测量方式"),
        ({"targets": ("4MB",), "source": str(ROOT / "README.md")}, "README.md", "README.md"),
    ],
)
def test_what_cannot_be_ordered(changes: dict[str, Any], told: str, chinese: str) -> None:
    with pytest.raises(GgufyError, match=told) as caught:
        make_job(options(**changes), Settings.from_env())
    assert chinese in said(caught.value.message, TEXTS["zh"]) != str(caught.value)


# ---- the real thing


def runner(llama: Llama, out: Path, cache: Path) -> Runner:
    chosen = replace(Settings.from_env(), out=out, cache=cache, hub="local")
    return Runner(settings=chosen, llama=llama, threads=2)


@pytest.mark.tools
def test_the_demo(ggufy: Ggufy, tmp_path: Path) -> None:
    """As a job: named right, never above the size, hardly below it, measured; and better than the analysis fears."""
    words = ["quantize", "demo", "--target", "4.2MB", "--target", "3.3bpw,mem256MB", "--evaluate", "--json"]
    words += ["--round", "plain"]  # which takes a third of the time
    done = ggufy(*words, "--evaluation-chunks", "4", "--out", tmp_path)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [row["kind"] for row in record["files"]] == ["convert", "imatrix", *["quantize"] * 3]
    by_type = {row["type"]: row for row in record["files"] if "type" in row}
    sizes = {name: target.of_label(name)[0] for name in by_type}
    assert [size.text for size in sizes.values()] == ["4.2MB", "3.3bpw", "mem256MB"]
    frontier = record["frontier"]
    assert [p["size"] for p in frontier] == sorted({p["size"] for p in frontier})
    assert [p["kld"] for p in frontier] == sorted({p["kld"] for p in frontier}, reverse=True)
    for name, row in by_type.items():
        assert row["file"] == f"{DEMO}-{name}.gguf"
        head = read_head(Path(record["folder"]) / row["file"])
        limit = sizes[name].file_budget(weights=head.elements, head=head.data_start)
        if head.metadata.get("ggufy.target"):  # otherwise a stock file was better
            assert head.metadata["ggufy.target"] == sizes[name].text
            assert 0.995 * limit <= row["size"]
        assert row["size"] <= limit
        assert row["bpw"] == pytest.approx(head.bpw, abs=0.001)
        kld = row["evaluation"]["quality"]["kld"]
        near = min(frontier, key=lambda p: abs(p["bpw"] - row["bpw"]))
        assert near["kld"] / 2 < kld < near["kld"] * 2
    again = ggufy(*words, "--evaluation-chunks", "4", "--out", tmp_path)
    assert json.loads(again.out) == record
    words = ["quantize", "demo", "--types", "Q2_K", "--target", "4.2MB", "--mode", "fast", "--round", "plain"]
    one = ggufy(*words, "--out", tmp_path)
    assert one.code == 0 and "Made to order: 4.2 MB." in one.out, one.err


def lines(cache: Path) -> list[str]:
    found = list(cache.glob("mixes/*/divergences.jsonl"))
    return [json.loads(line)["key"] for path in found for line in path.read_text().splitlines() if line.endswith("}")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.converted(tmp_path, "7", outtype="f16", width=256, layers=1, ffn=256)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache, but for the texts."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "texts").symlink_to(Settings.from_env().cache / "texts")
    return folder


@pytest.mark.tools
def test_killed_in_the_analysis(
    ggufy: Ggufy, ggufy_environment: dict[str, str], base: Path, cache: Path, tmp_path: Path
) -> None:
    command = ["quantize", base, "--imatrix", small.imatrix(tmp_path / "imatrix.gguf", base), "--target", "5bpw"]
    command += ["--mode", "standard", "--threads", 2, "--json", "--out", tmp_path / "out"]
    environment = ggufy_environment | {"GGUFY_CACHE": str(cache)}
    for wanted in (1, 5):
        words = [sys.executable, "-m", "ggufy", *map(str, command)]
        child = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
        while len(lines(cache)) < wanted and child.poll() is None:
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        (job,) = JobStore(tmp_path / "out").jobs()
        assert (job.status, job.frontier) == (Status.RUNNING, ())
    before = lines(cache)
    done = ggufy(*command, GGUFY_CACHE=str(cache))
    assert done.code == 0, done.err
    after = lines(cache)
    assert after[: len(before)] == before and len(set(after)) == len(after)
    (row,) = [row for row in json.loads(done.out)["files"] if "type" in row]
    assert row["type"].startswith("5bpw-") and len(json.loads(done.out)["frontier"]) > 3
    left = {path.name for path in cache.glob("mixes/*/*") if not path.name.startswith(".")}
    assert left == {"losses.jsonl", "divergences.jsonl"}


@pytest.mark.tools
def test_cancelled_in_the_analysis_and_without_an_imatrix(
    llama: Llama, base: Path, cache: Path, tmp_path: Path
) -> None:
    ours = runner(llama, tmp_path / "out", cache)
    job = make_job(options(source=str(base), targets=("6bpw",)), ours.settings)
    live = RunState()
    ended: list[Job] = []
    thread = threading.Thread(target=lambda: ended.append(ours.run(job, live)))
    thread.start()
    while not any(step.step.kind == "analyse" and step.state == RUNNING for step in live.progress.snapshot().steps):
        assert thread.is_alive()
        time.sleep(0.01)
    live.stop.cancelled.set()
    thread.join(60)
    assert [one.status for one in ended] == [Status.CANCELLED]
    assert not list(cache.glob("mixes/*/*.gguf")) and not list(cache.glob("mixes/*/*.logits"))
    job = ours.run(job)
    assert (job.status, job.error) == (Status.DONE, "") and len(job.frontier) > 3
    (made,) = [artifact for artifact in job.artifacts if "6bpw" in artifact.name]
    path = ours.folder(job) / made.name
    assert sha256(path) == made.sha256 and read_head(path).bpw <= 6


def test_many_reports_are_one_fraction() -> None:
    told: list[float] = []
    stages = Stages(4, told.append)
    for what, fraction in (("a", 0.0), ("a", 0.5), ("b", 0.0), ("b", 0.8), ("b", 0.2)):
        stages(what, fraction)
    stages.last(0.5)
    assert told == pytest.approx([0, 0.125, 0.25, 0.45, 0.45, 0.875])


# ---- from the page


def stored(tmp_path: Path, **changes: Any) -> Job:
    request = replace(REQUEST, imatrix="none", calibration_sha256="", mode=STANDARD)
    job = Job(request=request, status=Status.DONE).evolve(**{"frontier": POINTS} | changes)
    return JobStore(tmp_path / "out").save(job)


def test_a_size_of_the_frontier_can_be_ordered(tmp_path: Path) -> None:
    job = stored(tmp_path)
    services = Services(settings(tmp_path))
    made = services.make_size(job.id, 4_161_344)
    assert made.request == replace(job.request, quant_types=(), targets=("4.162MB-IQ4_XS_FIT",))
    assert (made.status, made.request.inputs()) == (Status.QUEUED, job.request.inputs())
    for size in (4_161_345, 0):
        with pytest.raises(UsageError, match="not on the list any more"):
            services.make_size(job.id, size)
    with pytest.raises(UsageError, match="not there any more"):
        services.make_size("nobody", 4_161_344)
    found = services.find_sizes(job.id)
    assert found.request == replace(job.request, quant_types=(), targets=(), mode=STANDARD)
    assert len(services.views()) == 3


def test_strangers_order_nothing(tmp_path: Path) -> None:
    job = stored(tmp_path)
    space = Services(settings(tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces"))
    for stranger in (STRANGER, Visitor(name="else")):
        with pytest.raises(UsageError, match="only its owner may"):
            space.make_size(job.id, 4_161_344, stranger)
        with pytest.raises(UsageError, match="only its owner may"):
            space.find_sizes(job.id, stranger)
    assert len(space.views(OWNER)) == 1
    assert space.make_size(job.id, 4_161_344, OWNER).request.targets


def test_the_slider() -> None:
    done = view(Status.DONE, frontier=POINTS)
    shown = card_of(done)
    assert [(row.text, row.bpw, row.kld) for row in shown.sizes] == [
        ("2.334 MB", "2.47", "0.3832"),
        ("4.162 MB", "4.47", "0.0169"),
        ("7.937 MB", "8.61", "0.00009"),
    ]
    assert shown.size_at == 1 and not shown.findable
    page = Elements(column([shown]))
    (slider,) = [found for tag, found in page.tags if tag == "input"]
    assert (slider["type"], slider["max"], slider["aria-label"]) == ("range", "2", "Size of the file")
    (panel,) = [found for _, found in page.tags if "data-sizes" in found]
    assert [row["size"] for row in json.loads(panel["data-rows"] or "")] == [point.size for point in POINTS]
    assert "make-size" in [found.get("data-action") for _, found in page.tags]
    looked = Elements(column([shown], may_work=False))
    assert "make-size" not in [found.get("data-action") for _, found in looked.tags]


def test_how_long_finding_sizes_takes() -> None:
    """The analysis, and what has to be made or fetched for it again."""
    base, imatrix = base_name(REQUEST), imatrix_name(REQUEST)
    made = (Artifact(name=base, size=400_000_000, sha256=""), Artifact(name=imatrix, size=1_000_000, sha256=""))
    job = Job(request=replace(REQUEST, rounding=PLAIN), status=Status.DONE, artifacts=made)
    compensated = replace(job, request=replace(job.request, rounding=COMPENSATED))
    smaller = replace(job, artifacts=(replace(made[0], size=100_000_000), made[1]))
    published = replace(job, request=replace(job.request, repo_id="alice/model-GGUF"))

    def seconds(job: Job, here: tuple[str, ...] = (base, imatrix), threads: int = 1) -> float:
        return finding_seconds(job, here, threads=threads)

    assert seconds(smaller) < seconds(job, threads=2) < seconds(job)
    assert seconds(job) < seconds(compensated) < 2 * seconds(job), "covariances are collected anew"
    assert seconds(job) == seconds(published) < seconds(published, here=(imatrix,)) < seconds(published, here=())


def test_sizes_can_be_found_once() -> None:
    shown = card_of(view(Status.DONE), texts=TEXTS["zh"])
    assert shown.findable and "find-sizes" in column([shown])
    assert f"in about {shown.finding_time}. Then" in column([shown])
    assert "find-sizes" not in column([shown], may_work=False)
    done, finding = view(Status.DONE), view(Status.RUNNING)
    finding = replace(finding, job=replace(finding.job, request=replace(finding.job.request, mode="standard")))
    assert "sizes" not in card_of(finding, done).sections
    assert "sizes" not in card_of(view(Status.FAILED)).sections
    assert card_of(view(Status.RUNNING, frontier=POINTS)).sizes == ()


def test_a_file_to_order_is_named_and_explained() -> None:
    row = {"file": "m-mem4GB-Q4_K_M_FIT.gguf", "kind": "quantize", "size": 5, "type": SIZES[1], "bpw": 4.0}
    shown = card_of(view(Status.DONE, files=(row,)), texts=TEXTS["zh"]).files[0]
    assert (shown.type, shown.note, shown.imatrix) == ("mem4GB", "定制：可在 4 GB 内存中运行。", "")
    done = Job(request=replace(ORDER, quant_types=(), repo_id="a/m"), status=Status.DONE)
    text = card(done, CardFacts(uploaded={"m-1.2GB-IQ3_XXS_FIT.gguf": 1_200_000_000}))
    assert "| 1.2GB-IQ3_XXS_FIT | 1.20 GB |" in text and "| Made to order: 1.2 GB. |" in text
    assert "-hf a/m:IQ3_XXS_FIT" in text and "10 measurements of this model" in text
    bare = card(done.evolve(request=replace(done.request, targets=())), CardFacts(uploaded={}))
    assert "-hf a/m:F16" in bare and "made to order" not in bare


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub() as running:
        yield running


@pytest.mark.tools
def test_a_later_size_joins_the_card(
    hub: LocalHub, ggufy: Ggufy, ggufy_environment: dict[str, str], tmp_path: Path
) -> None:
    """A job that adds a file to a repo does not take the others from the card; also on an empty disk."""
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint, vocab = tiny.checkpoint(folder, "7", width=256, layers=1)
    command = ["quantize", checkpoint, "--vocab", vocab, "--imatrix", "none", "--hub", "hf", "--json"]
    environment: dict[str, Any] = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_COMMITS": "100000"}
    first = ggufy(*command, "--types", "Q8_0", "--out", tmp_path / "first", **environment)
    assert first.code == 0, first.err
    shutil.rmtree(tmp_path / "first")
    done = ggufy(*command, "--target", "6bpw", "--mode", "fast", "--out", tmp_path / "second", **environment)
    assert done.code == 0, done.err
    (row,) = [row for row in json.loads(done.out)["files"] if "type" in row]
    text = get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md")
    for name in ("tiny-v7-F16.gguf", "tiny-v7-Q8_0.gguf", row["file"]):
        assert f"[{name}]({name})" in text
    assert f"| {row['type']} |" in text and f"| {row['bpw']:.2f} |" in text
    assert "files.**" not in text  # nothing is missing
