"""Models that were measured, as their jobs leave them: records, and files of which only the sizes are true."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.metrics import Evaluation, Quality, Speed, TextFigures
from ggufy.core.plan import base_name
from ggufy.core.source import Source
from ggufy.records.store import JobStore
from ggufy.steps import files_made

BASE_SIZE = 400_000_000
SIZES = {"Q8_0": 200_000_000, "Q4_K_M": 110_000_000, "Q2_K": 70_000_000}
KLDS = {"Q8_0": 0.0008, "Q4_K_M": 0.0123, "Q2_K": 0.21}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def request(name: str, *, public: bool = True, repo_id: str = "", private: bool = False) -> Request:
    source = Source(
        kind="checkpoint", path=f"{name}.pth", size=1, sha256=digest(name), model_id=f"x/{name}", public=public
    )
    return Request(
        name=name,
        source=source,
        quant_types=tuple(SIZES),
        outtype="f16",
        imatrix="none",
        evaluate=True,
        evaluation_chunks=16,
        repo_id=repo_id,
        private=private,
    )


def evaluation(
    asked: Request, quant: str, *, text: str = "held-out.txt", chunks: int = 16, threads: int = 2, factor: float = 1.0
) -> Evaluation:
    kld = KLDS[quant] * factor
    ratio = 1 + kld / 3
    quality = Quality(
        **dict.fromkeys(Quality.__dataclass_fields__, 0.0)
        | {"ppl": 12.0 * ratio, "ppl_error": 0.31, "base_ppl": 12.0, "base_ppl_error": 0.3, "ppl_ratio": ratio}
        | {"ppl_ratio_error": 0.0011, "kld": kld, "kld_error": kld / 50, "same_top": 99 - 100 * kld}
        | {"same_top_error": 0.25}
    )
    return Evaluation(
        quant=asked.file_of(quant),
        quant_sha256=digest(asked.file_of(quant)),
        size=SIZES[quant],
        bpw=round(SIZES[quant] / 25_000_000, 2),
        base=base_name(asked),
        base_sha256=digest(base_name(asked)),
        text=text,
        text_sha256=digest(text),
        llama="0c1e57098",
        chunks=chunks,
        tokens=255 * chunks,
        quality=quality,
        speed=Speed(
            threads=threads,
            prompt_tps=210.4,
            prompt_tps_error=3.1,
            generation_tps=57.31,
            generation_tps_error=0.22,
            throttled=False,
            waited=0.0,
        ),
    )


def further(one: Evaluation, text: str) -> Evaluation:
    """With figures over another text, too."""
    worse = replace(one.quality, kld=2 * one.quality.kld)
    figures = TextFigures(
        text=text, text_sha256=digest(text), writing="", chunks=one.chunks, tokens=one.tokens, quality=worse
    )
    return one.evolve(others=(figures,))


def write_model(out: Path, asked: Request, figures: Mapping[str, Evaluation]) -> Job:
    """A job that is done, with its record and its files; `figures` by quant type, of those that were measured."""
    folder = out / asked.folder
    folder.mkdir(parents=True)
    sizes = {base_name(asked): BASE_SIZE} | {asked.file_of(quant): size for quant, size in SIZES.items()}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)  # takes no room
    made = [step.product for step in files_made(asked) if step.product in sizes]
    artifacts = tuple(Artifact(name=name, size=sizes[name], sha256=digest(name)) for name in made)
    job = Job(request=asked, status=Status.DONE, artifacts=artifacts, evaluations=tuple(figures.values()))
    return JobStore(out).save(job)


def measured_model(out: Path, name: str, **how: object) -> Job:
    """All quants of it."""
    asked = request(name)
    return write_model(out, asked, {quant: evaluation(asked, quant, **how) for quant in SIZES})  # type: ignore[arg-type]
