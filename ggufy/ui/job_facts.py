"""The quiet lines on a card, as plain text: what is made from what, by which job, and what its texts are. Pure."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePath

from ggufy.core.job import RESTING, Job, Request
from ggufy.core.outputs import GGUF
from ggufy.core.words import human_time
from ggufy.core.writing import warn_of_texts
from ggufy.quantize.search import target
from ggufy.ui.i18n import Texts
from ggufy.ui.messages import told

_NAMED = 4  # quants that a job's line names; more are counted


def model_facts(request: Request, texts: Texts) -> tuple[str, ...]:
    """Source, base, and the format of the files if it is another than GGUF."""
    source = PurePath(request.source.path).name
    return (
        f"{request.source.model_id}:{source}" if request.source.model_id else source,
        texts["base"].format(outtype=request.outtype),
        *((request.output,) if request.output != GGUF else ()),
    )


def job_facts(job: Job, texts: Texts, now: datetime) -> tuple[str, ...]:
    """Quants, imatrix, age, and how long it took."""
    request = job.request
    quants = texts["quants"].format(count=len(request.quants))
    if len(request.quants) <= _NAMED:
        quants = texts["comma"].join(target.short(quant) for quant in request.quants)
    return (
        texts["sizes_only"] if request.analysed and not quants else quants or texts["quants"].format(count=0),
        texts[f"imatrix_{request.imatrix}"],
        age(job.updated if job.status in RESTING else job.created, texts, now),
        *((texts["took"].format(time=human_time(job.took_s)),) if job.status in RESTING and job.took_s else ()),
    )


def writing_facts(job: Job, texts: Texts) -> tuple[str, ...]:
    """What is read of the texts, by kinds of writing; then what is missing in them."""
    request = job.request
    found = []
    read = [("calibration_writing", request.calibration_writing)]
    read += [("evaluation_writing", text.writing) for text in request.evaluation_texts]
    for name, writing in read:
        kinds = ((texts[f"writing_{one.kind}"], one.percent) for one in writing)
        shares = [texts["writing_share"].format(kind=kind, percent=percent) for kind, percent in kinds]
        found += [texts[name].format(shares=texts["comma"].join(shares))] if shares else []
    warnings = warn_of_texts(request.speaks, request.calibration_writing, request.evaluation_shares)
    return (*found, *(told(warning, texts) for warning in warnings))


def age(then: str, texts: Texts, now: datetime) -> str:
    """How long ago an ISO 8601 time was."""
    minutes = int((now - datetime.fromisoformat(then)).total_seconds() // 60) if then else 0
    if minutes < 1:
        return texts["just_now"]
    if minutes < 60:
        return texts["minutes_ago"].format(count=minutes)
    if minutes < 48 * 60:
        return texts["hours_ago"].format(count=minutes // 60)
    return texts["days_ago"].format(count=minutes // 1440)
