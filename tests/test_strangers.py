"""A stranger's job on an open Space: what is left of the wish, and a token that is never used for it (with the test
Hub, where alice's private model is hers alone)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

from ggufy import demo
from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.jobs import request as intake
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.workspace import Workspace
from ggufy.llama.install import Llama
from ggufy.records.store import JobStore
from ggufy.service.access import STRANGER, Visitor, is_public, may_see
from ggufy.service.service import Services
from ggufy.service.strangers import MOST_ADAPTERS, MOST_SIZES, for_stranger
from ggufy.sources.inspect import inspect
from ggufy.steps.context import Context
from tests.test_job import REQUEST
from tests.test_service import settings

OWNER, GUEST = Visitor(name="alice"), Visitor(name="mallory")
USUAL = {"quant_types": ("Q8_0",), "imatrix": "none", "evaluate": False}


@pytest.fixture(scope="module")
def models(local_hub: LocalHub) -> LocalHub:  # noqa: F811
    weights = demo.CHECKPOINT.read_bytes()
    local_hub.put("alice/secret-model", "secret.pth", weights + b"alone", private=1)
    local_hub.put("alice/gated-model", "gated.pth", weights, gated="auto")
    local_hub.put("bob/open", "open.pth", weights)
    local_hub.put("bob/flagship", "flagship.pth", weights)
    local_hub.put("alice/texts", "text.txt", b"private words " * 400, type="dataset", private=1)
    return local_hub


@pytest.fixture
def hub(models: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", models.endpoint)
    template = models.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    models.clear()
    return models


@pytest.fixture
def space(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """Alice's Space, open to all, whose token reads and writes what is hers; nothing runs."""
    opened = settings(
        tmp_path, SPACE_ID="alice/ggufy", SYSTEM="spaces", GGUFY_OPEN="1", GGUFY_HUB="local", HF_TOKEN=ALICE
    )
    monkeypatch.setattr(Workspace, "owner", "alice")
    services = Services(opened)
    yield services
    services.shutdown()


def options(source: str, **more: Any) -> JobOptions:
    return JobOptions(source=source, **(USUAL | more))


@pytest.mark.parametrize("source", ["alice/secret-model:secret.pth", "alice/secret-model", "alice/gated-model"])
def test_what_only_the_owner_may_read_is_nobody_else_s_source(space: Services, hub: LocalHub, source: str) -> None:
    """Review B-S2: the source was resolved with the owner's token, and then published for all."""
    found = space.inspect(source, GUEST)
    assert found.problem and not found.layers
    with pytest.raises(SourceError, match=r"or it is private|is gated"):
        space.submit(options(source), GUEST)
    with pytest.raises(SourceError, match=r"or it is private|is gated"):
        space.submit(options(source, quant_types=(), targets=("5MB",)), GUEST)
    assert hub.log() and not any(line["token"] for line in hub.log())
    assert space.views(GUEST) == space.views(OWNER) == ()
    mine = space.submit(options(source), OWNER)
    assert not mine.request.source.public
    assert [view.job.id for view in space.views(OWNER)] == [mine.id]
    assert space.views(GUEST) == () and space.file(mine.id, "x", GUEST) is None
    for change in (space.cancel, space.pause):
        change(mine.id, GUEST)
    assert space.views(OWNER)[0].job.status is Status.QUEUED
    for call in (space.retry, space.find_sizes, lambda job_id, who: space.make_size(job_id, 1, who)):
        with pytest.raises(UsageError, match="not there any more") as private:
            call(mine.id, GUEST)
        with pytest.raises(UsageError) as none:
            call("nothing-00000000", GUEST)
        assert str(private.value) == str(none.value)


def test_results_of_strangers_go_to_repos_of_their_own(space: Services) -> None:
    """Review B-S3: a stranger chose any repo that the token can write; by the field, or by a file's name."""
    owned = space.submit(options("bob/flagship"), OWNER)
    assert owned.request.repo_id == "alice/flagship-GGUF"
    for repo in ("alice/flagship", "acme/anything", "alice/flagship-GGUF", "not a repo"):
        job = space.submit(options("bob/flagship", repo_id=repo, private=True, name="flagship"), GUEST)
        assert (job.request.repo_id, job.request.private) == ("alice/bob-flagship-GGUF", False)
        assert job.request.by_stranger and job.request.source.public
    assert {view.job.id for view in space.views(GUEST)} == {owned.id, job.id}


def test_a_job_of_the_owner_s_never_becomes_a_stranger_s(space: Services) -> None:
    """The same request for the demo, in private, has the same id; a stranger's has another."""
    private = space.submit(options("demo", private=True), OWNER)
    assert not is_public(private.request)
    guest = space.submit(options("demo"), GUEST)
    assert guest.id != private.id
    kept = JobStore(space.settings.out).load(private.id)
    assert kept is not None and kept.request.private
    again = space.submit(options("demo", quant_types=("Q6_K",)), OWNER)
    assert again.request.private, "the repo was made private, so what is added to it is too"


def test_a_private_text_is_not_used(space: Services, hub: LocalHub) -> None:
    """Nor one that the owner's job has left in the cache, under a name that anybody can guess."""
    text = "alice/texts:text.txt"
    space.submit(options("demo", imatrix="auto", calibration=text), OWNER)
    for field in ("calibration", "evaluation"):
        with pytest.raises(UsageError, match="leave other texts"):
            space.submit(options("demo", **{field: text}), GUEST)


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd",
        "x/../../../../etc/passwd",
        "./x",
        "~/x.pth",
        "ggufy/../x",
        "http://127.0.0.1/m.pth",
        "https://example.org/m.pth",
        "ftp://[x",
        "file:///etc/passwd",
        "\0",
        "a" * 3000,
        "模" * 100,
        str(demo.CHECKPOINT),
    ],
)
def test_no_question_to_the_disk(space: Services, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Review B-S4, B-S6: what strangers type is never looked for here, whatever it is."""

    asked: list[str] = []

    def note(path: Path, *_: object, **__: object) -> bool:
        asked.append(str(path))
        raise FileNotFoundError

    refused = 0
    with monkeypatch.context() as patch:
        for name in ("exists", "is_file", "is_dir", "open", "resolve", "expanduser", "stat"):
            patch.setattr(Path, name, note)
        space.is_query(source, GUEST)
        space.models_in(source, GUEST)
        for field in ("source", "vocab", "imatrix", "calibration", "evaluation"):
            try:
                for_stranger(replace(options("demo"), **{field: source}))
            except UsageError as error:
                refused += "no file of this machine" in str(error)
        try:
            space.inspect(source, GUEST)
        except UsageError:
            refused += 1
    assert (asked, refused) == ([], 6)


def test_a_file_here_with_a_repo_s_name_is_not_taken_for_it(
    space: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bob/open` may be a folder beside the program, and `bob/open:open.pth` a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "open:open.pth").write_text("local")
    assert inspect("bob/open:open.pth", space.settings).problem  # the owner's own file comes first
    assert space.inspect("bob/open:open.pth", GUEST).layers == 6
    assert space.submit(options("bob/open:open.pth"), GUEST).request.source.model_id == "bob/open"


def test_strangers_get_nothing_but_what_is_on_the_list() -> None:
    """A new field of a wish is not theirs until somebody puts it on the list."""
    full: dict[str, Any] = {
        "source": "bob/open",
        "quant_types": ("Q8_0",),
        "outtype": "f32",
        "imatrix": "none",
        "calibration": "calibration_datav3",
        "awq": True,
        "evaluate": True,
        "evaluation": "calibration_datav3",
        "mix": "stock",
        "mmproj": "none",
        "mtp": "file",
        "rounding": "compensated",
        "lora_as_file": True,
        "targets": ("1GB",),
        "mode": "fast",
        "chat_format": "g1c",
        "lora": ("bob/adapter:a.pth",),
        "lora_alpha": 32.0,
        "owner": "alice",
        "copy_owner": "ms:alice",
        "output": "rwkv.cpp",
    }
    cut = {
        "chunks": 100_000,
        "evaluation_chunks": 100_000,
        "name": "x",
        "repo_id": "a/b",
        "private": True,
        "keep_card": True,
    }
    left = for_stranger(JobOptions(**full, **cut))
    refused = {"vocab", "lora_init"}
    assert {item.name for item in fields(JobOptions)} == full.keys() | cut.keys() | refused | {"by_stranger"}
    assert left == JobOptions(**full, by_stranger=True)
    with pytest.raises(UsageError, match=f"at most {MOST_SIZES} sizes"):
        for_stranger(JobOptions(**full | {"targets": ("1GB",) * (MOST_SIZES + 1)}))
    for wrong in (
        {"lora": ("/etc/passwd",)},
        {"lora": ("bob/lora:a.pth:2", "lora.pth:2")},
        {"lora": ("https://example.org/lora.pth",)},
        {"lora": ("bob/lora:a.pth",) * (MOST_ADAPTERS + 1)},
        {"lora_init": "init_pissa.pth"},
    ):
        with pytest.raises(UsageError, match="on a Space an adapter is owner/repo:file"):
            for_stranger(JobOptions(**full | wrong))


def test_strangers_jobs_wait_in_a_short_line(space: Services) -> None:
    types = ["Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q5_K_M", "Q4_K_M", "Q5_K_S", "Q4_K_S"]
    jobs = [space.submit(options("demo", quant_types=(name,)), GUEST) for name in types]
    with pytest.raises(UsageError, match="10 jobs of visitors wait"):
        space.submit(options("demo", quant_types=("Q8_0", "Q6_K")), GUEST)
    with pytest.raises(UsageError, match="10 jobs of visitors wait"):
        space.find_sizes(jobs[0].id, GUEST)
    space.submit(options("demo", quant_types=("Q8_0", "Q6_K")), OWNER)
    space.cancel(jobs[0].id, GUEST)
    assert space.submit(options("demo", quant_types=("Q8_0", "Q5_0")), GUEST).status is Status.QUEUED
    with pytest.raises(UsageError, match="10 jobs of visitors wait"):
        space.retry(jobs[0].id, GUEST)


def context(request: Request, services: Services) -> Context:
    folder = services.settings.out
    return Context(
        request=request,
        folder=folder,
        logs=folder,
        work=folder,
        settings=services.settings,
        llama=Llama(folder, None, "1", "abc"),
        limit=lambda: 1,
        report=lambda step, fraction: None,
        stopped=lambda: False,
    )


def test_the_steps_of_a_stranger_s_job_have_no_token(space: Services) -> None:
    """However the job came to be: from the form, or as one more size of another."""
    owned = space.submit(options("bob/open:open.pth"), OWNER)
    assert context(owned.request, space).settings.hf_token == ALICE
    for job in (space.submit(options("bob/open:open.pth"), GUEST), space.find_sizes(owned.id, GUEST)):
        assert context(job.request, space).settings.hf_token is None
        kept = from_json(to_json(job))
        assert kept.request.by_stranger  # also after a restart
        assert context(kept.request, space).settings.hf_token is None


def test_old_records_are_their_owner_s(space: Services) -> None:
    """It is not known of them whether anybody could read their source."""
    record = json.loads(to_json(Job(request=replace(REQUEST, source=replace(REQUEST.source, public=True)))))
    assert record["request"]["source"].pop("public") is True
    assert record["request"].pop("by_stranger") is False
    old = from_json(json.dumps(record))
    assert old.id == Job(request=REQUEST).id  # their ids stay
    assert may_see(OWNER, old.request, space.settings)
    assert not may_see(GUEST, old.request, space.settings)
    assert may_see(STRANGER, old.request, replace(space.settings, space_id=None))


def test_a_source_s_openness_is_pinned(space: Services, tmp_path: Path) -> None:
    def public(source: str, **changes: Any) -> bool:
        return make_job(options(source, **changes), space.settings).request.source.public

    mine = tmp_path / "mine.pth"
    mine.write_bytes(demo.CHECKPOINT.read_bytes())
    assert public("demo") and public("bob/open:open.pth")
    assert not public("alice/secret-model") and not public("alice/gated-model")
    assert not public(str(mine), vocab=str(demo.VOCAB))


def test_a_hidden_job_s_files_are_not_shown_as_another_s(space: Services) -> None:
    """Two jobs of one name share a folder, and files are known by their names: after a restart, which empties a
    Space's disk, what lies there may be the other one's."""
    owned = space.submit(options("bob/open:open.pth", name="model"), OWNER)
    hidden = space.submit(options("alice/secret-model", name="model", repo_id="alice/other-GGUF", private=True), OWNER)
    folder = space.settings.out / "model-GGUF"
    folder.mkdir()
    (folder / "model-F16.gguf").write_bytes(b"GGUF of the private one")
    store = JobStore(space.settings.out)
    made = Artifact(name="model-F16.gguf", size=23, sha256="ab" * 32)
    store.save(owned.with_artifact(made).evolve(status=Status.DONE))
    store.save(hidden.evolve(status=Status.RUNNING))
    space._views.look_again()
    assert space.file(owned.id, "model-F16.gguf", OWNER) is not None
    assert space.file(owned.id, "model-F16.gguf", GUEST) is None
    assert space.chats.models(GUEST) == []


def test_a_query_is_not_looked_for_on_the_disk() -> None:
    assert not intake.is_query("ggufy") and intake.is_query("ggufy", hub_only=True)
