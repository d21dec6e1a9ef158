"""What its owner may delete: a file, a job, a model; and that records, folders and the page agree afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.core.errors import UsageError
from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.source import Source
from ggufy.records.store import JobStore
from ggufy.service.access import STRANGER, Visitor
from ggufy.service.service import Services
from ggufy.system.settings import Settings

OWNER = Visitor(name="friends")
SOURCE = Source(kind="checkpoint", path="m.pth", size=1, sha256="ab" * 32, model_id="x/m", public=True)
REQUEST = Request(name="m", source=SOURCE, quant_types=("Q8_0",), outtype="f16", imatrix="none")
BASE, Q8, Q6 = "m-F16.gguf", "m-Q8_0.gguf", "m-Q6_K.gguf"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two jobs of one model, and a file of somebody's beside theirs."""
    out = tmp_path / "out"
    (out / "m-GGUF").mkdir(parents=True)
    for name in (BASE, Q8, Q6):
        (out / "m-GGUF" / name).write_bytes(b"GGUF")
    for request in (REQUEST, replace(REQUEST, quant_types=("Q6_K",))):
        made = [BASE, request.file_of(request.quant_types[0])]
        artifacts = tuple(Artifact(name=name, size=4, sha256="12" * 32) for name in made)
        JobStore(out).save(Job(request=request, status=Status.DONE, artifacts=artifacts))
    return out


@pytest.fixture
def services(out: Path) -> Iterator[Services]:
    services = Services(settings(out))
    yield services
    services.shutdown()


def settings(out: Path, **more: str) -> Settings:
    home = str(out.parent)
    return Settings.from_env({"GGUFY_OUT": str(out), "GGUFY_CACHE": home, "HOME": home, **more})


def jobs(services: Services) -> dict[str, Job]:
    """By what they make."""
    return {view.job.request.quant_types[0]: view.job for view in services.views(OWNER, whole=True)}


def shown(services: Services) -> set[str]:
    return {row["file"] for view in services.views(OWNER, whole=True) for row in view.files}


def test_a_file_is_deleted_and_every_job_forgets_it(services: Services, out: Path) -> None:
    assert shown(services) == {BASE, Q8, Q6}
    services.library.delete_file(jobs(services)["Q8_0"].id, BASE, OWNER)
    assert {path.name for path in (out / "m-GGUF").iterdir()} == {Q8, Q6}
    assert shown(services) == {Q8, Q6}
    kept = {quant: [artifact.name for artifact in job.artifacts] for quant, job in jobs(services).items()}
    assert kept == {"Q8_0": [Q8], "Q6_K": [Q6]}
    with pytest.raises(UsageError, match="not there any more"):
        services.library.delete_file(jobs(services)["Q8_0"].id, BASE, OWNER)


@pytest.mark.parametrize("name", ["../m-GGUF/m-Q8_0.gguf", "notes.txt", "", "."])
def test_only_what_a_job_has_made_is_deleted(services: Services, out: Path, name: str) -> None:
    (out / "m-GGUF" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="this file is not there any more"):
        services.library.delete_file(jobs(services)["Q8_0"].id, name, OWNER)
    assert len(list((out / "m-GGUF").iterdir())) == 4


def test_what_is_published_stays_known(out: Path) -> None:
    job = next(job for job in JobStore(out).jobs() if job.request.quant_types == ("Q8_0",))
    JobStore(out).remove(job.id)
    published = job.evolve(request=replace(job.request, repo_id="friends/m-GGUF"))
    JobStore(out).save(published)
    services = Services(settings(out))
    services.library.delete_file(published.id, Q8, OWNER)
    assert not (out / "m-GGUF" / Q8).exists()
    assert Q8 in shown(services), "it is in the repo"
    assert published.artifacts == jobs(services)["Q8_0"].artifacts
    services.shutdown()


def test_a_job_leaves_the_list_if_its_files_are_known_to_another(services: Services, out: Path) -> None:
    store, known = JobStore(out), jobs(services)
    log = store.log_folder(known["Q8_0"].id)
    log.mkdir(parents=True)
    with pytest.raises(UsageError, match="the list of its files would be lost"):
        services.library.delete_job(known["Q8_0"].id, OWNER)
    services.library.delete_file(known["Q8_0"].id, Q8, OWNER)
    services.library.delete_job(known["Q8_0"].id, OWNER)
    assert jobs(services).keys() == {"Q6_K"}
    assert shown(services) == {BASE, Q6}
    assert not store.path(known["Q8_0"].id).exists() and not log.exists()


def test_a_model_goes_with_all_that_is_its_and_nothing_else(services: Services, out: Path) -> None:
    other, store = out / "n-GGUF" / "n-Q8_0.gguf", JobStore(out)
    other.parent.mkdir()
    other.write_bytes(b"GGUF")
    store.save(Job(request=replace(REQUEST, name="n"), status=Status.DONE))
    mine, part = out / "m-GGUF" / "notes.txt", out / "m-GGUF" / f"{Q6}.part"
    mine.write_text("mine")
    part.write_bytes(b"half")
    work = store.work_folder(REQUEST.inputs())
    work.mkdir(parents=True)
    services._views.look_again()
    services.library.delete_model(next(j.id for j in store.jobs() if j.request.name == "m"), OWNER)
    assert [path.name for path in (out / "m-GGUF").iterdir()] == ["notes.txt"]
    assert other.exists() and not work.exists()
    assert [view.job.request.name for view in services.views(OWNER)] == ["n"]
    services.library.delete_model(services.views(OWNER)[0].job.id, OWNER)
    assert not other.parent.exists()
    assert services.views(OWNER) == () and store.jobs() == []


def test_nothing_of_a_running_job_is_deleted(services: Services, out: Path) -> None:
    known = jobs(services)
    JobStore(out).save(known["Q6_K"].evolve(status=Status.RUNNING))
    services._views.look_again()
    for delete in (
        lambda: services.library.delete_file(known["Q8_0"].id, BASE, OWNER),
        lambda: services.library.delete_model(known["Q8_0"].id, OWNER),
        lambda: services.library.delete_job(known["Q6_K"].id, OWNER),
    ):
        with pytest.raises(UsageError, match="waits or runs|would be lost"):
            delete()
    assert shown(services) == {BASE, Q8, Q6}


def test_a_job_that_was_queued_just_now_keeps_its_files(services: Services) -> None:
    """Its record may not say so yet when the click comes."""
    known = jobs(services)
    services.worker.submit(known["Q6_K"])
    assert not services.worker.while_resting([known["Q6_K"].id], lambda: pytest.fail("it waits"))
    assert services.worker.while_resting([known["Q8_0"].id], lambda: None)


@pytest.mark.parametrize("opened", [{}, {"GGUFY_OPEN": "1"}])
def test_strangers_delete_nothing(out: Path, opened: dict[str, str]) -> None:
    space = Services(settings(out, SPACE_ID="friends/ggufy", SYSTEM="spaces", **opened))
    job = JobStore(out).jobs()[0]
    for stranger in (STRANGER, Visitor(name="else")):
        for delete in (space.library.delete_job, space.library.delete_model):
            with pytest.raises(UsageError, match="only its owner may delete"):
                delete(job.id, stranger)
        with pytest.raises(UsageError, match="only its owner may delete"):
            space.library.delete_file(job.id, BASE, stranger)
    assert len(list((out / "m-GGUF").iterdir())) == 3
    space.library.delete_model(job.id, OWNER)
    assert not (out / "m-GGUF").exists()
    space.shutdown()
