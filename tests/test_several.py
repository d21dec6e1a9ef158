"""Several models of a repo: `--all`, patterns and ticks make a job each; and `watch`, as somebody types it."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from ggufy.cli import main as command_line
from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Status
from ggufy.jobs import runner as runner_of
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.several import make_each
from ggufy.records.store import JobStore
from ggufy.service.access import Visitor
from ggufy.service.service import Services
from ggufy.sources.inspect import inspect
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.processes import until
from tests.test_service import settings

NUMBERS = itertools.count()
USUAL = {"quant_types": ("Q8_0",), "imatrix": "none", "evaluate": False}
FAST = ("--types", "Q8_0", "--imatrix", "none")
GUEST = Visitor(name="mallory")


@pytest.fixture(autouse=True)
def hub(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", local_hub.endpoint)
    template = local_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    local_hub.mend()
    return local_hub


@pytest.fixture
def repo(hub: LocalHub) -> str:
    name = f"bob/variants-{next(NUMBERS)}"
    for path in ("a-pro.pth", "b-pro.pth", "c.pth", "old/c.pth"):
        hub.put(name, path, path.encode() * 9)
    return name


def wish(**more: object) -> JobOptions:
    return JobOptions(**({"source": ""} | USUAL | more))  # type: ignore[arg-type]


# ---- what a pattern means where one model is asked for


@pytest.mark.fast
def test_inspect_lists_what_matches_and_one_is_taken(repo: str, tmp_path: Path) -> None:
    found = inspect(f"{repo}:*-pro.pth", settings(tmp_path))
    assert [variant.name for variant in found.variants] == ["a-pro.pth", "b-pro.pth"] and not found.path
    assert f"2 models that match *-pro.pth, choose one, for example {repo}:a-pro.pth" in found.problem
    assert inspect(f"{repo}:a-*", settings(tmp_path)).path == "a-pro.pth"
    assert "no model that matches x*: it holds a-pro.pth" in inspect(f"{repo}:x*", settings(tmp_path)).problem


@pytest.mark.fast
def test_one_job_is_made_of_one_model(repo: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a-pro.pth, b-pro.pth"):
        make_job(wish(source=f"{repo}:*-pro.pth"), settings(tmp_path))
    assert make_job(wish(source=f"{repo}:a*"), settings(tmp_path)).request.source.path == "a-pro.pth"


# ---- the services


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(settings(tmp_path))
    yield made
    made.shutdown()


@pytest.mark.fast
def test_each_that_can_be_made_is_queued(repo: str, services: Services) -> None:
    sources = [f"{repo}:{name}" for name in ("a-pro.pth", "nothing.pth", "c.pth", "old/c.pth")]
    jobs, refused = services.submit_each(wish(), sources)
    assert [job.request.source.path for job in jobs] == ["a-pro.pth", "c.pth"]
    assert {job.status for job in services.worker.jobs()} == {Status.QUEUED}
    assert [*refused] == [sources[1], sources[3]]
    assert "has no file nothing.pth" in str(refused[sources[1]])
    assert f"called as those of {repo}:c.pth" in str(refused[sources[3]])
    for option in ({"name": "x"}, {"repo_id": "a/b"}):
        with pytest.raises(UsageError, match="for one model"):
            services.submit_each(wish(**option), sources)


@pytest.mark.fast
def test_visitors_start_a_few_and_follow_none(repo: str, tmp_path: Path) -> None:
    space = Services(settings(tmp_path, SPACE_ID="alice/ggufy", SYSTEM="spaces", GGUFY_OPEN="1", GGUFY_HUB="local"))
    sources = [f"{repo}:{name}" for name in ("a-pro.pth", "b-pro.pth", "c.pth")]
    with pytest.raises(UsageError, match="at most 3 models"):
        space.submit_each(wish(), [*sources, "demo"], GUEST)
    jobs, refused = space.submit_each(wish(), sources, GUEST)
    assert len(jobs) == 3 and not refused
    assert all(job.request.by_stranger and job.request.name.startswith("bob-") for job in jobs)
    for forbidden in (
        lambda: space.following.follow(repo, wish(), "6h", GUEST),
        lambda: space.following.remove(repo, GUEST),
    ):
        with pytest.raises(UsageError, match="only its owner may follow"):
            forbidden()
    space.following.follow(repo, wish(), "6h", Visitor(name="alice"))
    assert space.following.repos(GUEST) == [] and len(space.following.repos(Visitor(name="alice"))) == 1
    space.shutdown()


@pytest.mark.fast
def test_the_page_looks_by_itself(repo: str, hub: LocalHub, services: Services, tmp_path: Path) -> None:
    services.following.follow(repo, wish(), "30m", GUEST)  # on a machine of one's own, whoever reaches the page
    hub.put(repo, "d.pth", b"d" * 99)
    services.following.tick()
    assert services.worker.jobs() == []  # not due
    record = tmp_path / "out" / "ggufy-state" / "followed.json"
    record.write_text(record.read_text().replace('"looked": "20', '"looked": "19'))
    services.following.start()  # as a start of the program does
    until(services.worker.jobs)
    (job,) = services.worker.jobs()
    assert (job.request.source.path, job.request.quant_types) == ("d.pth", ("Q8_0",))


# ---- the command line, with llama.cpp


@pytest.fixture
def models(hub: LocalHub, tmp_path: Path) -> tuple[str, str]:
    """A repo with two models and a file that is none; and their vocabulary."""
    name = f"bob/real-{next(NUMBERS)}"
    for version in ("6", "7"):
        checkpoint, vocab = tiny.checkpoint(tmp_path, version, width=256)
        hub.put(name, f"real-{version}.pth", checkpoint.read_bytes())
    hub.put(name, "broken.pth", b"this is no model" * 99)
    return name, str(vocab)


@pytest.fixture
def run(
    llama_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> object:
    for name, value in {
        "GGUFY_LLAMA_DIR": str(llama_bin),
        "GGUFY_CACHE": str(tmp_path / "cache"),
        "GGUFY_OUT": str(tmp_path / "out"),
    }.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, dict[str, object], str]:
        code = command_line.main([*arguments, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return call


@pytest.mark.tools
def test_all_models_of_a_repo_one_after_another(models: tuple[str, str], run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    repo, vocab = models
    code, said, _ = run("quantize", repo, "--all", *FAST, "--vocab", vocab)
    assert code == 1 and "refused" not in said
    assert [job["status"] for job in said["jobs"]] == ["failed", "done", "done"]  # the one that failed came first
    assert {path.name for path in (tmp_path / "out").glob("real-?-GGUF/*Q8_0.gguf")} == {
        "real-6-Q8_0.gguf",
        "real-7-Q8_0.gguf",
    }
    revisions = {job.request.source.revision for job in JobStore(tmp_path / "out").jobs()}
    assert len(revisions) == 1


@pytest.mark.tools
def test_an_interruption_leaves_the_rest_to_resume(  # type: ignore[no-untyped-def]
    models: tuple[str, str], run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, vocab = models

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner_of.Runner, "run", interrupted)
        arguments = ["quantize", f"{repo}:real-*", *FAST, "--vocab", vocab, "--json"]
        assert command_line.main(arguments) == 1
    jobs = JobStore(tmp_path / "out").jobs()
    assert [job.status for job in jobs] == [Status.QUEUED, Status.QUEUED]
    code, said, _ = run("resume")
    assert code == 0 and [job["status"] for job in said["jobs"]] == ["done", "done"]


@pytest.mark.tools
def test_watch_once_as_a_scheduler_calls_it(models: tuple[str, str], run, hub: LocalHub, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    repo, vocab = models
    watch = ("watch", f"{repo}:*.pth", "--once", *FAST, "--vocab", vocab)
    assert run(*watch)[:2] == (0, {"jobs": []})
    checkpoint, _ = tiny.checkpoint(tmp_path, "7", width=256, seed=5)
    hub.put(repo, "fresh.pth", checkpoint.read_bytes())
    code, said, _ = run(*watch)
    assert code == 0 and [(job["job"].rpartition("-")[0], job["status"]) for job in said["jobs"]] == [
        ("fresh", "done")
    ]
    assert run(*watch)[:2] == (0, {"jobs": []})
    hub.fault(f"GET /api/models/{repo}.*", status=403, times=100)
    code, said, err = run(*watch)
    assert (code, said) == (1, {"jobs": []}) and "is looked at again later" in err


def test_what_watch_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GGUFY_OUT", str(tmp_path))
    for arguments, words in (
        (["watch", "a/b", "--json"], "--once"),
        (["watch", "--remove"], "name the repo"),
        (["watch"], "no repo is followed"),
        (["watch", "demo", "--once"], "is no repo on the Hub"),
        (["watch", "a/b", "--every", "never", "--once"], "30m, 6h or 1d"),
    ):
        assert command_line.main(arguments) in (1, 2)
        assert words in capsys.readouterr().err


def test_models_that_are_called_as_all_are_have_the_names_of_their_folders() -> None:
    made: list[str] = []

    def make(options: JobOptions) -> Any:
        made.append(options.source)

    sources = [f"bob/m@main:{folder}/model.safetensors" for folder in ("small", "large")]
    sources += ["demo", "./large.pth", "https://example.org/medium.pth", "bob/whole"]
    assert make_each(wish(), sources, make)[1].keys() == {"./large.pth"}  # files called as those of bob's folder
    assert made == [source for source in sources if source != "./large.pth"]
    _, refused = make_each(wish(), ["bob/m:a/model.safetensors", "eve/n:b/a.pth"], make)
    assert list(refused) == ["eve/n:b/a.pth"]
