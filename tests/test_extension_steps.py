"""A step and an output format are one file each, and one line where they are registered: here for each test.

The real runner makes a job of them; only llama.cpp's look at the source is left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggufy.cli.terminal import results_table
from ggufy.core.job import Job, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.outputs import OUTPUT_NAMES
from ggufy.core.plan import pending
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.results import results
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.publish.card import CardFacts, card
from ggufy.records.run_state import RunState
from ggufy.service.job_views import JobView
from ggufy.steps import STEPS, Makers, plan
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.outputs import OUTPUTS
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.ui.i18n import TEXTS
from ggufy.ui.models import by_model, model_card
from ggufy.ui.views import job_line
from tests import tiny
from tests.extension.toy_output import NAMES, TOY
from tests.extension.toy_step import ChecksumStep

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, ChecksumStep.kind, ChecksumStep)
    monkeypatch.setitem(OUTPUTS, TOY.name, TOY)
    monkeypatch.setitem(OUTPUT_NAMES, TOY.name, NAMES)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    return Settings.from_env(environment)


@pytest.fixture
def job(settings: Settings, tmp_path: Path) -> Job:
    options = JobOptions(
        source=str(tiny.converted(tmp_path, "7")), name="m", quant_types=("SIGNS",), output="toy", imatrix="none"
    )
    return make_job(options, settings)


def forecast(ctx: Context, step: object) -> JobForecast:
    return OUTPUTS[ctx.request.output].forecast(
        ctx.source, ctx.request.quant_types, llama=ctx.llama, run=ctx.tool_run(plan(ctx.request)[0]), facts=None
    )


def run(job: Job, settings: Settings, ran: list[str]) -> tuple[Job, RunState]:
    def seen(step: LocalStep, ctx: Context) -> object:
        ran.append(step.label)
        return step.run(ctx)

    live = RunState()
    llama = Llama(bin=settings.cache / "none", source=None, version="", commit="abc")
    runner = Runner(settings=settings, llama=llama, threads=1, makers=Makers(run=seen, forecast=forecast))
    return runner.run(job, live), live


def test_a_job_with_both(job: Job, settings: Settings, tmp_path: Path) -> None:
    ran: list[str] = []
    done, live = run(job, settings, ran)
    assert (done.status, done.error) == (Status.DONE, "")
    assert ran == ["convert", "quantize SIGNS", "checksum"]
    folder = settings.out / "m-toy"
    base, signs, sums = (folder / name for name in ("m-F32.gguf", "m-SIGNS.toy", "m-SHA256SUMS"))
    assert [artifact.name for artifact in done.artifacts] == [base.name, signs.name, sums.name]
    assert sums.read_text(encoding="utf-8") == f"{sha256(signs)}  {signs.name}\n"
    assert live.forecast is not None and live.forecast.sizes == {"SIGNS": signs.stat().st_size}
    assert np.unpackbits(np.fromfile(signs, dtype=np.uint8)).mean() == pytest.approx(0.5, abs=0.1)
    snapshot = live.progress.snapshot()
    assert (snapshot.done, snapshot.eta_s) == (3, 0)
    assert from_json(to_json(done)) == done

    again, _ = run(job, settings, ran := [])
    assert (again.status, ran) == (Status.DONE, [])
    signs.unlink()
    run(job, settings, ran)
    assert ran == ["quantize SIGNS"], "what follows from it is there"
    sums.unlink()
    run(job, settings, ran := [])
    assert ran == ["checksum"]


def test_what_people_see_of_it(job: Job, settings: Settings) -> None:
    done, live = run(job, settings, [])
    folder = settings.out / "m-toy"
    rows = results(done, live.forecast, folder)
    assert [(row["kind"], row.get("type"), row.get("format")) for row in rows] == [
        ("convert", None, None),
        ("quantize", "SIGNS", "toy"),
        ("checksum", None, None),
    ]
    table = results_table(rows)
    assert "checksums" in table and TOY.types["SIGNS"].advice in table
    for language in ("en", "zh"):
        view = JobView(job=done, files=tuple(rows), here=frozenset(), folder=folder)
        line = job_line(view, TEXTS[language])
        shown = model_card(by_model([view])[0], [line], TEXTS[language])
        assert [row.type for row in shown.files][1:] == ["SIGNS", "checksums"]
        assert [point.name for point in shown.points] == ["SIGNS", "F32"], "what is no model is not in the plot"
        assert [step.state for step in line.steps] == ["done"] * 3
        assert line.steps[-1].label == "checksum"
    text = card(done, CardFacts(uploaded={artifact.name: artifact.size for artifact in done.artifacts}))
    assert "not made" not in text and "quantized with numpy" in text
    assert "| checksums |" in text and "| SIGNS |" in text
    assert "library_name: toy" in text and "- signs" in text
    assert "which-way  SIGNS" in text and "llama-cli" not in text


def test_both_reach_the_output_repo(job: Job) -> None:
    steps = plan(replace(job.request, repo_id="alice/m-toy"))
    assert [step.label for step in steps][-4:] == [
        "quantize SIGNS",
        "upload m-SIGNS.toy",
        "checksum",
        "upload m-SHA256SUMS",
    ]
    missing = pending(steps, lambda step: step.product.startswith("repo:") and "SHA256" not in step.product)
    assert [step.label for step in missing] == ["fetch m-SIGNS.toy", "checksum", "upload m-SHA256SUMS"]
