"""Jobs with AWQ: each quant is made and measured twice, and the better one is the product, also after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.errors import Cancelled, UsageError
from ggufy.core.job import Artifact, Job, Making, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.metrics import Evaluation
from ggufy.formats.gguf import read_head
from ggufy.jobs.output_fit import fit_output
from ggufy.jobs.values import read_options
from ggufy.llama.install import Llama
from ggufy.publish.card_awq import awq_lines
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.recipe import stock_recipe
from ggufy.quantize.task import QuantizeTask
from ggufy.steps import awq, plan
from ggufy.steps.context import Context
from ggufy.system.settings import Settings
from tests import families, small
from tests.conftest import Ggufy
from tests.jobs import figures
from tests.test_views import REQUEST

WITH_AWQ = replace(REQUEST, awq=True, evaluate=True, evaluation_sha256="12" * 32, evaluation_chunks=4)


@pytest.mark.fast
def test_awq_decides_bytes_and_older_jobs_keep_their_ids() -> None:
    assert replace(WITH_AWQ, awq=False).inputs() == REQUEST.inputs() != WITH_AWQ.inputs()
    plain, asked = (to_json(Job(request=request)) for request in (REQUEST, WITH_AWQ))
    assert '"awq"' not in plain and from_json(plain).request == REQUEST
    assert from_json(asked).request == WITH_AWQ


@pytest.mark.fast
def test_it_is_measured_and_has_an_imatrix() -> None:
    def fitted(**changes: Any) -> Any:
        return fit_output(read_options("demo", {"awq": True} | changes))

    assert fitted().evaluate is True
    assert fitted(evaluate=True).evaluate is True
    with pytest.raises(UsageError, match="measure the quants, or leave out --awq"):
        fitted(evaluate=False)
    with pytest.raises(UsageError, match="leave out --imatrix none, or --awq"):
        fitted(imatrix="none")
    with pytest.raises(UsageError, match=r"rwkv.cpp are made without AWQ: leave --awq out"):
        fitted(output="rwkv.cpp", quant_types="Q5_1")


@pytest.mark.fast
def test_the_card_says_what_was_kept() -> None:
    makings = {
        "小模型-Q4_K_M.gguf": Making(awq=True, plain_kld=0.05, awq_kld=0.04),
        "小模型-IQ2_XS.gguf": Making(awq=False, plain_kld=0.5, awq_kld=0.6),
    }
    job = Job(request=WITH_AWQ)
    assert awq_lines(job, makings)[3:] == [
        "- `Q4_K_M`: kept (KLD 0.0400 with them, 0.0500 without)",
        "- `IQ2_XS`: not kept (KLD 0.6000 with them, 0.5000 without)",
    ]
    assert awq_lines(job, {"小模型-Q4_K_M.gguf": Making(awq=False)})[3:] == ["- `Q4_K_M`: not kept (no matrix gained)"]
    assert awq_lines(job, {name: Making() for name in makings}) == []
    made = tuple(Artifact(name=name, size=1, sha256="ab" * 32, making=one) for name, one in makings.items())
    assert from_json(to_json(job.evolve(artifacts=made))).artifacts == made


class Surroundings:
    """A step's surroundings, and measurements that are made up; the first `calls` of either end the run."""

    def __init__(self, folder: Path, llama: Llama, klds: dict[str, float]):
        self.folder, self.klds = folder, klds
        self.measured: list[str] = []
        self.stop_after = 99
        self.ctx = Context(
            request=WITH_AWQ,
            folder=folder / "out",
            logs=folder / "logs",
            work=folder / "work",
            settings=replace(Settings.from_env(), cache=folder / "cache"),
            llama=llama,
            limit=lambda: 2,
            report=lambda step, fraction: None,
            stopped=lambda: False,
        )
        self.step = next(step for step in plan(WITH_AWQ) if step.quant_type == "Q4_K_M")
        base = families.make(folder / "base.gguf", "llama")
        imatrix = read_imatrix(small.imatrix(folder / "imatrix.gguf", base))
        recipe = stock_recipe(llama.tool("llama-quantize"), self.ctx.tool_run(self.step, cwd=folder), base, "Q4_0")
        self.order = QuantizeTask(base=base, target=folder / "out" / "q.gguf", recipe=recipe, ftype=2, imatrix=imatrix)

    def measure(self, quant: Path, told: Any) -> Evaluation:
        self.measured.append(quant.parent.name)
        if len(self.measured) > self.stop_after:
            raise Cancelled("the job was stopped.")
        return figures(quant.name, self.klds[quant.parent.name])

    def make(self) -> awq.AwqChoice:
        return awq.make_better(self.ctx, self.step, self.order, self.measure, lambda what, fraction: None)


@pytest.mark.tools
@pytest.mark.parametrize("better", ["plain", "scaled"])
def test_the_better_file_is_kept(better: str, llama: Llama, tmp_path: Path) -> None:
    klds = {"plain": 0.05, "scaled": 0.06} | {better: 0.04}
    run = Surroundings(tmp_path, llama, klds)
    run.stop_after = 1
    with pytest.raises(Cancelled):
        run.make()
    assert not run.order.target.exists()
    made = {path.parent.name: path.read_bytes() for path in (run.ctx.work / awq.FOLDER).glob("*/q.gguf")}
    assert made["plain"] != made["scaled"] and len(made["plain"]) == len(made["scaled"])
    run.stop_after = 99
    assert run.make() == awq.AwqChoice(kept=better == "scaled", plain_kld=klds["plain"], awq_kld=klds["scaled"])
    assert run.order.target.read_bytes() == made[better]
    assert not (run.ctx.work / awq.FOLDER).exists()


@pytest.mark.tools
def test_where_no_matrix_gains_there_is_one_file(llama: Llama, tmp_path: Path) -> None:
    run = Surroundings(tmp_path, llama, {})
    kept = {name: "F16" for name in run.order.recipe}
    run.order = replace(run.order, recipe=kept)
    assert run.make() == awq.AwqChoice(kept=False)
    assert run.order.target.exists() and not run.measured


@pytest.mark.tools
def test_a_whole_job(ggufy: Ggufy, tmp_path: Path) -> None:
    done = ggufy("quantize", "demo", "--types", "Q4_0", "--awq", "--evaluation-chunks", 2, "--out", tmp_path)
    assert done.code == 0, done.err
    [record] = list((tmp_path / "ggufy-state" / "jobs").glob("*.json"))
    job = from_json(record.read_text(encoding="utf-8"))
    assert job.status is Status.DONE
    made = {one.name: one.making for one in job.artifacts if one.making and one.making.awq is not None}
    measured = {one.quant: one.quality.kld for one in job.evaluations}
    assert len(made) == 1 and made.keys() == measured.keys()
    folder = next(tmp_path.glob("*-GGUF"))
    for name, making in made.items():
        assert making is not None and making.plain_kld is not None and making.awq_kld is not None
        assert measured[name] == min(making.plain_kld, making.awq_kld) and making.plain_kld != making.awq_kld
        assert making.awq == (making.awq_kld < making.plain_kld)
        assert read_head(folder / name).elements == read_head(next(folder.glob("*-F16.gguf"))).elements
    assert not list((tmp_path / "ggufy-state" / "work").glob("*"))
