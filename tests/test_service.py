"""What stands behind the page: only jobs wait for llama.cpp, strangers may only look, no other file is handed out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.errors import Cancelled, DiskError, HubAway, ToolError, UsageError
from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.metrics import Evaluation, Quality
from ggufy.core.source import Source
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.jobs.estimate import BaseOptions
from ggufy.jobs.options import JobOptions
from ggufy.llama.install import Llama
from ggufy.records import patience
from ggufy.records.store import JobStore
from ggufy.service import preparation
from ggufy.service.access import STRANGER, Visitor, check_chat, may_work
from ggufy.service.service import JobView, Services
from ggufy.system import resources
from ggufy.system.settings import Settings
from tests.processes import until

SOURCE = Source(kind="checkpoint", path="/nowhere/m.pth", size=1, sha256="ab" * 32, public=True)


def settings(tmp_path: Path, **environment: str) -> Settings:
    folders = {"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    return Settings.from_env(folders | environment)


def record(tmp_path: Path, status: Status, *, name: str = "m", artifacts: tuple[str, ...] = ()) -> Job:
    """A job record in the store, with empty files for its artifacts."""
    request = Request(name=name, source=SOURCE, quant_types=("Q8_0",), outtype="f16", imatrix="none")
    folder = tmp_path / "out" / f"{name}-GGUF"
    folder.mkdir(parents=True, exist_ok=True)
    for product in artifacts:
        (folder / product).touch()
    made = tuple(Artifact(name=product, size=0, sha256="cd" * 32) for product in artifacts)
    return JobStore(tmp_path / "out").save(Job(request=request, status=status, artifacts=made))


class Installer:
    """Stands in for llama.cpp's set-up: reports a step, and waits for the test to say how it ends."""

    def __init__(self) -> None:
        self.answers: list[Llama | Exception] = []
        self.go = threading.Semaphore(0)

    def answer(self, answer: Llama | Exception) -> None:
        self.answers.append(answer)
        self.go.release()

    def begin(self, cache: Path, *, progress: Callable[[int, int, str], None], **_: object) -> Llama:
        while not self.go.acquire(timeout=0.02):
            progress(84, 238, "ggml.c")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> Installer:
    """The set-up under the test's control: a real one takes minutes."""
    installer = Installer()
    monkeypatch.setattr(preparation, "begin", installer.begin)
    return installer


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = Services(settings(tmp_path))
    yield services
    services.shutdown()


def only(services: Services) -> JobView:
    (view,) = services.views()
    return view


def test_jobs_wait_for_llama_cpp_and_can_be_cancelled_meanwhile(
    installer: Installer, services: Services, tmp_path: Path
) -> None:
    job = record(tmp_path, Status.QUEUED)
    services.start()
    until(lambda: services.preparation.total == 238)
    assert (services.preparation.done, services.preparation.ready) == (84, False)
    assert only(services).snapshot is not None
    services.cancel(job.id)
    assert (only(services).job.status, only(services).snapshot) == (Status.CANCELLED, None)
    services.retry(job.id)
    assert only(services).job.status == Status.QUEUED
    services.cancel(job.id)
    installer.answer(Llama(tmp_path, None, "1", "abc"))
    until(lambda: services.preparation.ready)
    assert only(services).job.status == Status.CANCELLED  # nothing of it is still in the queue


def test_a_paused_job_waits_until_it_is_resumed(installer: Installer, tmp_path: Path) -> None:
    """Also over a restart, which takes every other unfinished job up again."""
    job = record(tmp_path, Status.QUEUED)
    first = Services(settings(tmp_path))
    first.start()
    until(lambda: only(first).snapshot is not None)
    first.pause(job.id)
    assert (only(first).job.status, only(first).snapshot) == (Status.PAUSED, None)
    first.shutdown()
    second = Services(settings(tmp_path))
    second.start()
    assert only(second).snapshot is None
    second.retry(job.id)
    assert only(second).job.status == Status.QUEUED
    second.pause(job.id)
    second.cancel(job.id)
    assert only(second).job.status == Status.CANCELLED
    second.shutdown()


def test_a_failed_set_up_waits_for_another_try(installer: Installer, services: Services, tmp_path: Path) -> None:
    record(tmp_path, Status.QUEUED)
    services.start()
    installer.answer(ToolError("no C++ compiler: install one."))
    until(lambda: services.preparation.error)
    assert services.preparation.error == "no C++ compiler: install one."
    assert only(services).job.status == Status.QUEUED
    services.prepare_again()
    until(lambda: services.preparation.total and not services.preparation.error)
    installer.answer(RuntimeError("boom"))
    until(lambda: services.preparation.error)
    assert "RuntimeError: boom" in services.preparation.error
    services.prepare_again()
    installer.answer(Llama(tmp_path, None, "1", "abc"))
    until(lambda: services.preparation.ready)
    until(lambda: only(services).job.status == Status.FAILED)
    assert "/nowhere/m.pth" in only(services).job.error


def test_shutdown_ends_the_set_up_and_keeps_the_job(installer: Installer, services: Services, tmp_path: Path) -> None:
    record(tmp_path, Status.RUNNING)
    services.start()
    until(lambda: services.preparation.total)
    services.shutdown()
    until(lambda: "ggufy-worker" not in {thread.name for thread in threading.enumerate()})
    assert only(services).job.status == Status.RUNNING
    with pytest.raises(Cancelled):
        services._preparer._report(1, 2, "")


def test_a_job_whose_end_cannot_be_written_is_still_told(
    installer: Installer, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the record says running, and people must learn why nothing goes on."""
    record(tmp_path, Status.QUEUED)
    save = JobStore.save

    def full(store: JobStore, job: Job, term: int = 0) -> Job:
        if job.status == Status.FAILED:
            raise DiskError("the disk is full.")
        return save(store, job, term)

    monkeypatch.setattr(JobStore, "save", full)
    services.start()
    installer.answer(Llama(tmp_path, None, "1", "abc"))
    until(lambda: only(services).job.status == Status.FAILED)
    assert "/nowhere/m.pth" in only(services).job.error


def test_the_page_is_there_before_the_hub_has_answered(
    installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked before the start, and then in the background; whose results these are is known when it says."""
    asked, answers = threading.Event(), threading.Event()

    def user(hub: HuggingFaceHub) -> str:
        asked.set()
        if not answers.is_set():
            raise HubAway("the Hub is away.")
        return "alice"

    monkeypatch.setattr(HuggingFaceHub, "user", user)
    monkeypatch.setattr(patience, "PAUSES_S", (0.01,))
    page = Services(settings(tmp_path, GGUFY_HUB="hf", HF_TOKEN="hf_secret"))
    assert not asked.is_set() and page.workspace.owner == "" and page.views() == ()
    with pytest.raises(HubAway, match="whose token this is"):
        page.submit(JobOptions(source="demo", quant_types=("Q8_0",)))
    page.start()
    assert asked.wait(60)
    answers.set()
    until(lambda: page.workspace.owner == "alice")
    page.shutdown()


OWNER, MEMBER = Visitor(name="somebody"), Visitor(name="x", organisations=frozenset({"friends"}))


def test_strangers_may_only_look(tmp_path: Path) -> None:
    job = record(tmp_path, Status.FAILED)
    space = Services(settings(tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces"))
    options = JobOptions(source="demo", quant_types=("Q8_0",))
    for stranger in (STRANGER, Visitor(name="else"), Visitor(name="", organisations=frozenset({""})), MEMBER):
        for forbidden in (
            lambda who: space.submit(options, who),
            lambda who: space.retry(job.id, who),
            lambda who: space.cancel(job.id, who),
            lambda who: space.pause(job.id, who),
            lambda who: space.set_threads(1, who),
            lambda who: space.set_cpu_percent(25, who),
            lambda who: space.prepare_again(who),
            lambda who: check_chat(who, space.settings),
        ):
            with pytest.raises(UsageError, match="only its owner may"):
                forbidden(stranger)
    assert len(space.views()) == 1
    assert JobStore(tmp_path / "out").jobs() == [job]
    space.retry(job.id, OWNER)
    assert only(space).job.status == Status.QUEUED


def test_owners_are_the_space_s_account_or_a_list(tmp_path: Path) -> None:
    job = record(tmp_path, Status.FAILED)
    space = {"SPACE_ID": "friends/ggufy", "SYSTEM": "spaces"}
    Services(settings(tmp_path, **space)).retry(job.id, MEMBER)
    listed = Services(settings(tmp_path, **space, GGUFY_OWNERS="ann, bob"))
    listed.retry(job.id, Visitor(name="bob"))
    with pytest.raises(UsageError, match="only its owner may"):
        listed.retry(job.id, MEMBER)
    chatty = settings(tmp_path, **space, GGUFY_CHAT="1")
    check_chat(STRANGER, chatty)
    assert not may_work(STRANGER, chatty)


def test_visitors_of_an_open_space_reach_no_file_and_no_network_of_it(tmp_path: Path) -> None:
    job = record(tmp_path, Status.FAILED)
    opened = Services(settings(tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces", GGUFY_OPEN="1"))
    opened.retry(job.id)
    assert only(opened).job.status == Status.QUEUED
    secret = tmp_path / "secret"
    secret.write_text("x" * 3000)
    options = JobOptions(source="demo", quant_types=("Q8_0",))
    for reaching in (
        replace(options, source=str(secret)),
        replace(options, vocab=str(secret)),
        replace(options, source="/"),
        replace(options, source="http://127.0.0.1/m.pth"),
        replace(options, calibration=str(secret)),
        replace(options, calibration="http://169.254.169.254/latest"),
        replace(options, imatrix=str(secret)),
        replace(options, evaluation=str(secret)),
    ):
        with pytest.raises(UsageError, match="no file of this machine"):
            opened.submit(reaching)
        with pytest.raises(UsageError, match="no file of this machine"):
            opened.look(reaching.source, wish=BaseOptions(vocab=reaching.vocab or str(secret)))


def test_a_folder_offers_its_models_to_the_owner_only(tmp_path: Path) -> None:
    for name in ("b.pth", "a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    here = Services(settings(tmp_path))
    assert [path.name for path in here.models_in(str(tmp_path))] == ["a.gguf", "b.pth"]
    assert here.models_in(str(tmp_path / "b.pth")) == here.models_in("nowhere") == []
    space = Services(settings(tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces", GGUFY_OPEN="1"))
    assert space.models_in(str(tmp_path)) == []


def test_a_space_without_its_marker_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SYSTEM"):
        settings(tmp_path, SPACE_ID="somebody/ggufy")


def test_only_finished_files_of_known_jobs_are_handed_out(services: Services, tmp_path: Path) -> None:
    mine = record(tmp_path, Status.DONE, artifacts=("m-F16.gguf", "m-Q8_0.gguf"))
    folder = tmp_path / "out" / "m-GGUF"
    (folder / "m-Q6_K.gguf").touch()  # no product of this job
    (folder / ".lock").touch()
    assert services.file(mine.id, "m-Q8_0.gguf") == folder / "m-Q8_0.gguf"
    for job_id, name in (
        (mine.id, "m-Q6_K.gguf"),
        (mine.id, ".lock"),
        (mine.id, "../ggufy-state/jobs/" + mine.id + ".json"),
        (mine.id, ""),
        ("", "m-Q8_0.gguf"),
        ("../m", "m-Q8_0.gguf"),
    ):
        assert services.file(job_id, name) is None


def test_a_job_that_never_worked_shows_no_files_of_another(services: Services, tmp_path: Path) -> None:
    """Same name, other source: the folder is the other job's."""
    record(tmp_path, Status.FAILED)
    folder = tmp_path / "out" / "m-GGUF"
    (folder / "m-F16.gguf").touch()
    assert only(services).files == ()


def other(job: Job, **changes: Any) -> Job:
    """The same model with other quant types."""
    return replace(job, request=replace(job.request, quant_types=("Q8_0", "Q6_K")), artifacts=(), **changes)


@pytest.mark.parametrize("status", [Status.PAUSED, Status.CANCELLED, Status.FAILED, Status.QUEUED, Status.RUNNING])
def test_files_of_the_same_inputs_stay_on_the_card(status: Status, services: Services, tmp_path: Path) -> None:
    """Whatever becomes of a job, what another job made of the same inputs is its file too."""
    first = record(tmp_path, Status.DONE, artifacts=("m-F16.gguf", "m-Q8_0.gguf"))
    JobStore(tmp_path / "out").save(other(first, status=status))
    views = {view.job.id: view for view in services.views()}
    assert len(views) == 2
    for view in views.values():
        assert [row["file"] for row in view.files] == ["m-F16.gguf", "m-Q8_0.gguf"]


def test_files_of_other_inputs_do_not(services: Services, tmp_path: Path) -> None:
    first = record(tmp_path, Status.DONE, artifacts=("m-F16.gguf", "m-Q8_0.gguf"))
    elsewhere = replace(first.request, source=replace(first.request.source, sha256="ef" * 32))
    JobStore(tmp_path / "out").save(replace(first, request=elsewhere, status=Status.PAUSED, artifacts=()))
    assert sorted(len(view.files) for view in services.views()) == [0, 2]


def test_what_is_made_is_seen_at_once(services: Services, tmp_path: Path) -> None:
    job = record(tmp_path, Status.DONE, artifacts=("m-F16.gguf",))
    assert len(only(services).files) == 1
    (tmp_path / "out" / "m-GGUF" / "m-Q8_0.gguf").touch()
    assert services.file(job.id, "m-Q8_0.gguf")
    services._views.look_again()
    assert len(only(services).files) == 2


def test_clicks_do_not_wait_for_a_slow_disk(
    installer: Installer, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the jobs hangs: /files, the machine's line and Start go on."""
    job = record(tmp_path, Status.DONE, artifacts=("m-F16.gguf",))
    hangs, go = threading.Event(), threading.Event()
    jobs = services.worker.jobs

    def slow() -> list[Job]:
        if threading.current_thread().name == "looker":
            hangs.set()
            go.wait(60)
        return jobs()

    monkeypatch.setattr(services.worker, "jobs", slow)
    looker = threading.Thread(target=services.views, name="looker")
    looker.start()
    hangs.wait(60)
    assert services.file(job.id, "m-F16.gguf")
    assert services.machine().memory > 0
    services.retry(job.id)
    go.set()
    looker.join()
    assert only(services).job.status == Status.QUEUED  # the look that was under way does not hide the click


def evaluated(name: str, kld: float) -> Evaluation:
    quality = Quality(**dict.fromkeys(Quality.__dataclass_fields__, 1.0) | {"kld": kld})
    texts = dict.fromkeys(("quant_sha256", "base", "base_sha256", "text", "text_sha256", "llama"), "x")
    return Evaluation(quant=name, size=1, bpw=1.0, chunks=1, tokens=1, quality=quality, **texts)


def test_a_chat_begins_with_the_best_that_fits_and_never_with_a_base(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "memory_available", lambda: 300_000_000)
    types = ("Q8_0", "Q6_K", "IQ2_XS")
    names = ["m-F16.gguf", *(f"m-{kind}.gguf" for kind in types)]
    job = record(tmp_path, Status.DONE, artifacts=tuple(names))
    request = replace(job.request, quant_types=types)
    measured = tuple(evaluated(f"m-{kind}.gguf", kld) for kind, kld in zip(types, (0.001, 0.01, 0.5), strict=True))
    folder = tmp_path / "out" / "m-GGUF"
    for name, size in zip(names, (10**9, 10**9, 10**7, 10**6), strict=True):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    JobStore(tmp_path / "out").save(replace(job, request=request, evaluations=measured))
    services._views.look_again()
    assert services.chats.models()[0] == "m-Q6_K.gguf"  # Q8_0 does not fit
    assert services.chats.models()[-1] == "m-F16.gguf"
    record(tmp_path, Status.DONE, name="old", artifacts=("old-F16.gguf",))
    services._views.look_again()
    assert services.chats.models()[0] == "m-Q6_K.gguf"
    four = record(tmp_path, Status.DONE, name="four", artifacts=("four-F16.gguf", "four-Q4_K_M.gguf"))
    JobStore(tmp_path / "out").save(replace(four, request=replace(four.request, quant_types=("Q4_K_M",))))
    record(tmp_path, Status.DONE, name="newest", artifacts=("newest-F16.gguf",))
    services._views.look_again()
    assert services.chats.models()[0] == "four-Q4_K_M.gguf"
    assert all("F16" in name for name in services.chats.models()[-4:])
    with (tmp_path / "out" / "four-GGUF" / "four-Q4_K_M.gguf").open("wb") as file:
        file.truncate(10**9)
    services._views.look_again()
    assert services.chats.models()[0] == "m-Q6_K.gguf"  # nor is one begun with that does not fit


def test_unknown_jobs_are_refused(services: Services) -> None:
    with pytest.raises(UsageError, match="not there any more"):
        services.retry("../../etc/passwd")
    services.cancel("nobody")  # has ended long ago, for all that is known
