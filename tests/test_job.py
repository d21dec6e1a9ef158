"""Records and plans: pure functions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection

import pytest

from ggufy.core import job_record
from ggufy.core import plan as plans
from ggufy.core.catalog import parse_types
from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.plan import base_name
from ggufy.core.source import Source
from ggufy.steps import plan

pytestmark = pytest.mark.fast

SOURCE = Source(kind="checkpoint", path="/models/m.pth", size=10, sha256="ab" * 32)
REQUEST = Request(name="m", source=SOURCE, quant_types=("Q4_K_M", "Q6_K"), outtype="f16", calibration_sha256="cd" * 32)


def test_a_job_survives_json() -> None:
    job = Job(
        request=REQUEST, status=Status.FAILED, error="文件坏了", artifacts=(Artifact(name="a", size=1, sha256="x"),)
    )
    assert job_record.from_json(job_record.to_json(job)) == job


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"version": 0}', '{"version": 99}', '{"version": 1, "request": {}}', '{"version": 1}', "not json"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        job_record.from_json(text)


BAD_NAMES = [
    "../x",
    "..",
    ".",
    "a/b",
    "/etc/x",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\udce9",
    "",
    "模" * 90,
    "x" * 241,
]


@pytest.mark.parametrize("bad", BAD_NAMES)
@pytest.mark.parametrize("where", ["name", "outtype", "quant_types", "targets", "artifacts"])
def test_no_text_of_a_record_leads_out_of_its_folder(where: str, bad: str) -> None:
    """Records may be on the Hub, or in a folder that others can write to."""
    record = json.loads(job_record.to_json(Job(request=REQUEST)))
    if where == "artifacts":
        record["artifacts"] = [{"name": bad, "size": 1, "sha256": "x"}]
    else:
        record["request"][where] = [bad] if isinstance(record["request"][where], list) else bad
    with pytest.raises(ValueError, match="is no part of a file's name"):
        job_record.from_json(json.dumps(record))


@pytest.mark.parametrize("path", ["..", "a/..", "a/", "a/\0", "."])
def test_no_path_of_a_remote_source_leads_elsewhere(path: str) -> None:
    source = dataclasses.replace(SOURCE, path=path, model_id="a/b")
    with pytest.raises(ValueError, match="is no part of a file's name"):
        job_record.from_json(job_record.to_json(Job(request=dataclasses.replace(REQUEST, source=source))))


@pytest.mark.parametrize("repo_id", ["../x", "a/../b", "a", "a/b/c", "a/.b", "a/模型", "a/b\n"])
def test_no_repo_of_a_record_is_a_path(repo_id: str) -> None:
    with pytest.raises(ValueError, match="is no repo"):
        job_record.from_json(job_record.to_json(Job(request=dataclasses.replace(REQUEST, repo_id=repo_id))))


@pytest.mark.parametrize("field", ["calibration_sha256", "evaluation_sha256", "imatrix_sha256", "sha256", "mark"])
def test_no_digest_of_a_record_is_a_path(field: str) -> None:
    bad = "../../../../etc"
    source = dataclasses.replace(SOURCE, sha256="", mark=bad) if field == "mark" else SOURCE
    source = dataclasses.replace(source, sha256=bad) if field == "sha256" else source
    changes = {} if field in ("sha256", "mark") else {field: bad}
    request = dataclasses.replace(REQUEST, source=source, **changes)
    with pytest.raises(ValueError, match="is no digest"):
        job_record.from_json(job_record.to_json(Job(request=request)))


@pytest.mark.parametrize("name", ["模型", "RWKV x", "a.b", "模" * 40, "_x", "é%+"])
def test_names_that_people_give_are_kept(name: str) -> None:
    job = Job(request=dataclasses.replace(REQUEST, name=name, targets=("1.2GB-IQ3_XXS_FIT",)))
    assert job_record.from_json(job_record.to_json(job)) == job


def test_an_unknown_field_is_refused_not_dropped() -> None:
    record = json.loads(job_record.to_json(Job(request=REQUEST)))
    record["surprise"] = 1
    with pytest.raises(ValueError, match="surprise"):
        job_record.from_json(json.dumps(record))


def test_a_record_of_the_first_version_is_one_of_stock_recipes_and_keeps_its_id() -> None:
    record = json.loads(job_record.to_json(Job(request=REQUEST)))
    assert record["request"].pop("mix") == "stock"
    old = job_record.from_json(json.dumps(record | {"version": 1}))
    assert old == Job(request=REQUEST)
    assert old.id == "m-b2e1fc09"


@pytest.mark.parametrize(
    "change",
    [
        {"outtype": "bf16"},
        {"source": dataclasses.replace(SOURCE, sha256="00" * 32)},
        {"calibration_sha256": "00" * 32},
        {"chunks": 7},
        {"imatrix": "none"},
        {"vocab_sha256": "00" * 32},
        {"mix": "rwkv"},
    ],
)
def test_what_decides_the_bytes_decides_the_inputs(change: dict[str, object]) -> None:
    assert dataclasses.replace(REQUEST, **change).inputs() != REQUEST.inputs()


@pytest.mark.parametrize(
    "change",
    [
        {"quant_types": ("Q8_0",)},
        {"source": dataclasses.replace(SOURCE, path="/elsewhere/m.pth", mtime_ns=5)},
        {"calibration": "another way to name the same text"},
        {"keep_card": True},
    ],
)
def test_what_does_not_decide_them_does_not(change: dict[str, object]) -> None:
    assert dataclasses.replace(REQUEST, **change).inputs() == REQUEST.inputs()


def test_the_same_request_is_the_same_job() -> None:
    assert REQUEST.job_id == dataclasses.replace(REQUEST).job_id
    assert REQUEST.job_id != dataclasses.replace(REQUEST, quant_types=("Q8_0",)).job_id


def test_jobs_keep_the_ids_that_older_versions_gave_them() -> None:
    """Another format is another job with another base."""
    assert REQUEST.job_id == "m-b2e1fc09"
    assert REQUEST.inputs().startswith("9d4c7ad05f217876")
    other = dataclasses.replace(REQUEST, output="rwkv.cpp", outtype="f32")
    assert other.inputs() != REQUEST.inputs() and other.job_id != REQUEST.job_id
    assert (other.file_of("Q5_1"), base_name(other), other.folder) == ("m-Q5_1.bin", "m-FP32.bin", "m-rwkv.cpp")
    assert (REQUEST.file_of("Q5_1"), base_name(REQUEST), REQUEST.folder) == ("m-Q5_1.gguf", "m-F16.gguf", "m-GGUF")


def test_an_artifact_replaces_its_older_self() -> None:
    job = Job(request=REQUEST).with_artifact(Artifact(name="a", size=1, sha256="x"))
    job = job.with_artifact(Artifact(name="a", size=2, sha256="y"))
    assert job.artifacts == (Artifact(name="a", size=2, sha256="y"),)


# ---- plan


def products(steps: tuple[plans.Step, ...]) -> list[str]:
    return [step.product for step in steps]


def due(steps: tuple[plans.Step, ...], have: Collection[str]) -> tuple[plans.Step, ...]:
    return plans.pending(steps, lambda step: step.product in have)


def test_the_whole_plan() -> None:
    steps = plan(dataclasses.replace(REQUEST, quant_types=parse_types("all")))
    names = products(steps)
    assert names[:3] == ["m-F16.gguf", "m-imatrix.gguf", "m-Q4_K_M.gguf"]
    assert len(names) == len(set(names)) == 31


@pytest.mark.parametrize(
    ("change", "streamed"),
    [
        ({"model_id": "o/r", "revision": "c" * 40}, True),
        ({"model_id": "o/r", "revision": "c" * 40, "kind": "gguf"}, False),
        ({"url": "https://o/m.pth", "etag": '"1"', "sha256": ""}, True),
        ({"url": "https://o/m.pth", "etag": '"1"', "sha256": "ab" * 32}, False),  # known only when all of it is here
        ({"url": "https://o/m.pth", "sha256": ""}, False),  # nobody would notice that it is another file now
    ],
)
def test_without_imatrix_and_from_elsewhere(change: dict[str, str], streamed: bool) -> None:
    request = dataclasses.replace(REQUEST, source=dataclasses.replace(SOURCE, **change), imatrix="none")
    kinds = ["convert", "quantize", "quantize"]
    assert [step.kind for step in plan(request)] == (kinds if streamed else ["download", *kinds])
    assert [step.kind for step in plan(request, streamed=False)] == ["download", *kinds]


def test_nothing_is_due_when_all_products_exist_even_without_the_source() -> None:
    remote = dataclasses.replace(SOURCE, model_id="o/r", revision="c" * 40)
    steps = plan(dataclasses.replace(REQUEST, source=remote), streamed=False)
    assert plans.pending(steps, lambda step: step.product != plans.SOURCE_PRODUCT) == ()


def test_a_missing_quant_does_not_bring_the_source_back() -> None:
    remote = dataclasses.replace(SOURCE, model_id="o/r", revision="c" * 40)
    steps = plan(dataclasses.replace(REQUEST, source=remote), streamed=False)
    have = {"m-F16.gguf", "m-imatrix.gguf", "m-Q4_K_M.gguf"}
    assert products(due(steps, have)) == ["m-Q6_K.gguf"]


def test_a_missing_base_brings_it_back() -> None:
    remote = dataclasses.replace(SOURCE, model_id="o/r", revision="c" * 40)
    have = {"m-imatrix.gguf", "m-Q4_K_M.gguf", "m-Q6_K.gguf"}
    for streamed, wanted in ((False, ["source", "m-F16.gguf"]), (True, ["m-F16.gguf"])):
        steps = plan(dataclasses.replace(REQUEST, source=remote), streamed=streamed)
        assert products(due(steps, have)) == wanted


def test_killed_after_every_product_every_product_is_made_once() -> None:
    """The rule itself, at every point, with the disk kept and with the disk lost but what is final kept."""
    steps = plan(dataclasses.replace(REQUEST, quant_types=parse_types("all")))
    for point in range(len(steps)):
        have: set[str] = set()
        made: list[str] = []
        for step in due(steps, have)[:point]:
            made.append(step.product)
            have.add(step.product)
        for step in due(steps, have):
            assert set(step.reads) <= have
            made.append(step.product)
            have.add(step.product)
        assert sorted(made) == sorted(products(steps))
