"""Jobs whose source is streamed: what they leave, what they fall back to, and how much disk they need."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ggufy.core.catalog import BY_NAME, parse_types
from ggufy.core.job import Status
from ggufy.jobs.estimate import Cost, EstimateOptions, Preview, cost, work_seconds
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.models.convert import write_skeleton
from ggufy.models.vocab import world_vocab_path
from ggufy.net import session as hub_session
from ggufy.records.run_state import RunState
from ggufy.sources import hub
from ggufy.sources.format import Report
from ggufy.steps import forecast
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.outputs.gguf import GGUF
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import tiny
from tests.conftest import Finished, Ggufy
from tests.hub_fixture import LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

pytestmark = pytest.mark.tools
NUMBERS = itertools.count()
MORE = ("--types", "Q8_0,Q4_0", "--imatrix", "none")


@dataclass(frozen=True)
class Place:
    """A model on the Hub, the same files here, and folders of the test's own."""

    repo: str
    url: str
    path: Path
    vocab: Path
    folder: Path
    environment: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def command(self) -> list[str]:
        return [
            "quantize",
            self.repo,
            "--name",
            "m",
            "--vocab",
            str(self.vocab),
            *MORE,
            "--out",
            str(self.folder / "o"),
        ]

    def made(self) -> dict[str, str]:
        """Digests of what a job has left."""
        return {path.name: sha256(path) for path in (self.folder / "o").rglob("*.gguf")}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_hub: LocalHub) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    yield
    local_hub.mend()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its vocabulary."""
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), "7", width=256, layers=3)


@pytest.fixture(scope="module")
def expected(model: tuple[Path, Path], ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what the jobs of these tests make of the file here."""
    out = tmp_path_factory.mktemp("here")
    assert ggufy("quantize", model[0], "--name", "m", "--vocab", model[1], *MORE, "--out", out).code == 0
    return {path.name: sha256(path) for path in out.rglob("*.gguf")}


@pytest.fixture
def place(local_hub: LocalHub, tmp_path: Path, model: tuple[Path, Path]) -> Place:
    path, vocab = model
    repo = f"alice/job-{next(NUMBERS)}"
    oid = local_hub.put(repo, "model.pth", path.read_bytes())["oid"]
    local_hub.clear()
    environment = {"HF_ENDPOINT": local_hub.endpoint, "GGUFY_CACHE": str(tmp_path / "cache")}
    return Place(repo, f"{local_hub.endpoint}/__cdn/{oid}/model.pth", path, vocab, tmp_path, environment)


def ran(ggufy: Ggufy, place: Place) -> Finished:
    done = ggufy(*place.command, **place.environment)
    assert done.code == 0, done.err
    return done


@contextmanager
def watched(folder: Path) -> Iterator[set[str]]:
    """Names of all the files that are seen below a folder."""
    seen: set[str] = set()
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            seen.update(name for _, _, names in os.walk(folder) for name in names)
            end.wait(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def test_a_job_streams_and_leaves_what_the_same_file_here_leaves(
    ggufy: Ggufy, place: Place, expected: dict[str, str], local_hub: LocalHub
) -> None:
    with watched(place.folder) as seen:
        done = ran(ggufy, place)
    assert place.made() == expected
    assert "m-F16.gguf.part" in seen
    assert not [name for name in seen if name.endswith((".pth", ".download"))]
    assert "download" not in done.err
    assert all(line["range"] for line in local_hub.log("/__cdn/"))


def test_a_server_that_sends_no_parts_is_downloaded_from(
    ggufy: Ggufy, place: Place, expected: dict[str, str], local_hub: LocalHub
) -> None:
    local_hub.fault("GET /__cdn/", no_range=True, times=9999)
    done = ran(ggufy, place)
    assert place.made() == expected
    assert "download" in done.err
    assert not list(place.cache.rglob("*.pth")), "what was downloaded goes when the base is made"


def test_parts_that_stop_coming_in_the_middle_are_followed_by_a_download(
    ggufy: Ggufy, place: Place, expected: dict[str, str], local_hub: LocalHub
) -> None:
    local_hub.fault("GET /__cdn/", no_range=True, skip=30, times=9999)
    ran(ggufy, place)
    assert place.made() == expected
    assert not list(place.folder.rglob("*.part"))


@pytest.mark.parametrize("whole", [True, False])
def test_a_download_of_an_earlier_version_is_used(
    ggufy: Ggufy, place: Place, expected: dict[str, str], local_hub: LocalHub, whole: bool
) -> None:
    """Jobs that were begun by a program that downloaded go on with what they have."""
    key = hub.resolve(place.repo, endpoint=local_hub.endpoint).key
    data = place.path.read_bytes()
    there = place.cache / "sources" / key[:16] / "model.pth"
    there.parent.mkdir(parents=True)
    if whole:
        there.write_bytes(data)
    else:
        there.with_name("model.pth.download").write_bytes(data[:500_000])
    local_hub.clear()
    ran(ggufy, place)
    assert place.made() == expected
    assert [line["range"] for line in local_hub.log("/__cdn/")] == ([] if whole else ["bytes=500000-"])


def test_a_killed_job_goes_on_in_the_middle_of_its_base(
    ggufy: Ggufy,
    ggufy_environment: dict[str, str],
    place: Place,
    expected: dict[str, str],
    local_hub: LocalHub,
) -> None:
    local_hub.fault("GET /__cdn/", cut=0, delay=120, skip=60, times=9999)  # hangs there
    command = [sys.executable, "-m", "ggufy", *place.command]
    journal = place.folder / "o" / "m-GGUF" / "m-F16.gguf.journal.part"
    with subprocess.Popen(command, env=ggufy_environment | place.environment, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size > 10 * 65) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    local_hub.mend()
    local_hub.clear()
    ran(ggufy, place)
    assert place.made() == expected
    index = 600_000  # read twice: for the forecast, and for the tensors
    assert sum(line["sent"] for line in local_hub.log("/__cdn/")) < place.path.stat().st_size + 2 * index - 1_000_000
    assert not list(place.folder.rglob("*.part"))


# ---- stopped by its user, and refused


@pytest.fixture
def run(place: Place, llama: Llama, tmp_path: Path) -> Callable[..., tuple[Status, str]]:
    """Runs the job from its plain address, in this process."""
    settings = Settings.from_env(
        {"GGUFY_OUT": str(tmp_path / "o"), "GGUFY_CACHE": str(place.cache), "HOME": str(tmp_path)}
    )

    def job(live: RunState) -> tuple[Status, str]:
        options = JobOptions(
            source=place.url, vocab=str(place.vocab), name="m", quant_types=("Q8_0", "Q4_0"), imatrix="none"
        )
        ended = Runner(settings=settings, llama=llama).run(make_job(options, settings), live)
        return ended.status, ended.error

    return job


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_cancelled_job_leaves_no_parts_and_a_paused_one_goes_on_with_them(
    run: Callable[..., tuple[Status, str]],
    place: Place,
    expected: dict[str, str],
    local_hub: LocalHub,
    cancelled: bool,
) -> None:
    local_hub.fault("GET /__cdn/", cut=0, delay=5, skip=60, times=9999)
    live = RunState()
    stop = live.stop.cancelled if cancelled else live.stop.paused
    part = place.folder / "o" / "m-GGUF" / "m-F16.gguf.part"

    def when_begun() -> None:
        while not (part.exists() and part.stat().st_size > 200_000):
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=when_begun, daemon=True).start()
    status, _ = run(live)
    assert status is (Status.CANCELLED if cancelled else Status.PAUSED)
    assert part.exists() != cancelled
    local_hub.mend()
    assert run(RunState()) == (Status.DONE, "")
    assert place.made() == expected


def test_what_cannot_fit_is_refused_before_a_weight_is_fetched(
    run: Callable[..., tuple[Status, str]],
    place: Place,
    expected: dict[str, str],
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(RunState()) == (Status.DONE, "")
    needed = sum(path.stat().st_size for path in (place.folder / "o").rglob("*.gguf"))
    shutil.rmtree(place.folder / "o")
    local_hub.clear()
    source = place.path.stat().st_size
    monkeypatch.setattr(forecast, "free_bytes", lambda path: needed - 1)
    status, error = run(RunState())
    assert status is Status.FAILED
    assert "too little" in error
    assert sum(line["sent"] for line in local_hub.log("/__cdn/")) < 0.2 * source
    assert not list((place.folder / "o").rglob("*.gguf*"))
    monkeypatch.setattr(forecast, "free_bytes", lambda path: needed)  # and nothing for the source
    assert run(RunState()) == (Status.DONE, "")
    assert place.made() == expected


# ---- the arithmetic

GB, SPACE = 10**9, 50 * 10**9  # the disk of a free Space
SHAPES = {
    "1.6B": {"layers": 24, "C": 2048, "F": 7168},
    "7B": {"layers": 32, "C": 4096, "F": 14336, "mix": 64, "decay": 128},
    "14B": {"layers": 61, "C": 4096, "F": 14336, "mix": 64, "decay": 128},
}


TABLE = {  # GB: source, base GGUF, largest quant, peak with the source on the disk, peak without
    "1.6B": [3.2, 3.2, 1.8, 6.5, 5.1],
    "7B": [15.3, 15.5, 8.5, 30.9, 24.0],
    "14B": [28.1, 28.6, 15.6, 56.8, 44.3],
}


@pytest.fixture(scope="module")
def sizes(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, JobForecast]]:
    """Bytes of the .pth in BF16, and exact sizes of all 29 types, for each shape."""
    folder = tmp_path_factory.mktemp("skeletons")
    run = ToolRun(environment=resources.child_environment(threads=1, home=folder), cwd=folder)
    found = {}
    for name, sizes in SHAPES.items():
        plans = tiny.hyperparameters("6", **sizes).tensors()
        shapes = {source: plan.source_shape for plan in plans for source in plan.sources}
        skeleton = folder / f"{name}.gguf"
        write_skeleton(shapes, skeleton, outtype="f16", vocab=world_vocab_path(), name=name)
        made = GGUF.forecast(skeleton, BY_NAME, llama=llama, run=run, facts=None)
        found[name] = 2 * made.weights, made
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_the_disk_that_models_take(
    sizes: dict[str, tuple[int, JobForecast]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 29 types, published: base, imatrix and the largest quant, and no source."""
    source, made = sizes[name]
    base, largest = made.base.file_size, max(quant.size for quant in made.quants.values())
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path)})

    def peak(*, streams: bool, account: str) -> int:
        report = Report(source="x", kind="checkpoint", path="x.pth", size=source, received=1, streams=streams)
        order = EstimateOptions(quant_types=parse_types("all"))
        found = cost(Preview(report=report, sizes=made), order, settings, where="x", account=account, threads=2)
        assert found is not None
        return found.peak

    streamed, downloaded = peak(streams=True, account="me"), peak(streams=False, account="me")
    assert [round(size / GB, 1) for size in (source, base, largest, downloaded, streamed)] == TABLE[name]
    folder = peak(streams=True, account="")
    assert base + largest < streamed < base + largest + 0.2 * GB
    assert downloaded >= source + base
    assert folder > streamed
    assert streamed < SPACE
    assert (downloaded < SPACE) == (name != "14B"), "it is streaming that makes room for a 14B model"


def test_what_is_read_costs_time_and_what_is_measured_on_disk_too(
    sizes: dict[str, tuple[int, JobForecast]], tmp_path: Path
) -> None:
    source, made = next(iter(sizes.values()))
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path)})
    report = Report(source="x", kind="checkpoint", path="x.pth", size=source)

    def price(texts: int, **chunks: int) -> Cost:
        order = EstimateOptions(quant_types=("Q4_K_M", "Q8_0"), evaluate=texts > 0, texts=texts, **chunks)
        found = cost(Preview(report=report, sizes=made), order, settings, where="x", account="", threads=2)
        assert found is not None
        return found

    none, one, three = price(0), price(1), price(3)
    assert three.peak - one.peak == pytest.approx(2 * 16 * 33.4e6, rel=0.01)  # predictions over World's vocabulary
    assert one.seconds - none.seconds < three.seconds - one.seconds < 2 * (one.seconds - none.seconds)  # one speed
    longer, shorter = price(1, evaluation_chunks=48), price(1, chunks=10)
    assert longer.peak == three.peak and one.seconds < longer.seconds < three.seconds + 1
    assert shorter.peak == one.peak and shorter.seconds < one.seconds < price(1, chunks=0).seconds
    assert {three.made, longer.made, shorter.made} == {none.made}


def test_a_job_is_done_sooner_by_several_machines_and_never_cheaper(
    sizes: dict[str, tuple[int, JobForecast]], tmp_path: Path
) -> None:
    """What quants copy from each other on one machine, several make anew; what comes before them is not divided."""
    source, made = next(iter(sizes.values()))
    report = Report(source="x", kind="checkpoint", path="x.pth", size=source)
    order = EstimateOptions(quant_types=parse_types("all"), evaluate=True)
    found = {count: work_seconds(report, made, order, threads=2, machines=count) for count in (1, 2, 4, 16, 64)}
    times = list(found.values())
    assert times == sorted(times, reverse=True) and times[0] > 2 * times[2]
    assert all(count * seconds >= times[0] for count, seconds in found.items())
    none = work_seconds(report, made, replace(order, quant_types=()), threads=2)
    assert none == work_seconds(report, made, replace(order, quant_types=()), threads=2, machines=16) < times[-1]
