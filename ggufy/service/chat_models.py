"""The finished models that can be talked to, and which of them to begin with."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ggufy.core.catalog import FIRST
from ggufy.core.metrics import memory_needed
from ggufy.jobs.results import models
from ggufy.service.job_views import JobView
from ggufy.service.model_cache import ModelCache
from ggufy.steps.outputs import output_of_row


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """One of them."""

    name: str  # of the file
    path: Path  # where it is, or will be once it was fetched
    repo_id: str  # the repo to fetch it from; empty: it is here
    size: int  # bytes
    type: str  # quant type or size to order; empty: the base GGUF
    kld: float | None  # from the base, if it was measured
    base: bool

    @classmethod
    def of(cls, row: Mapping[str, Any], path: Path, repo_id: str) -> Self:
        """From one of `ggufy.jobs.results.results`'s records."""
        measured = row.get("evaluation")
        return cls(
            name=row["file"],
            path=path,
            repo_id=repo_id,
            size=row["size"],
            type=row.get("type", ""),
            kld=float(measured["quality"]["kld"]) if measured else None,
            base="type" not in row,
        )


def first_choice(models: Collection[ChatModel], memory: int) -> str | None:
    """The model that a chat begins with: of the quants that fit in `memory` bytes the newest Q4_K_M, else the best
    measured, else the largest; else the smallest; a base only where there is nothing else."""
    quants = [model for model in models if not model.base] or list(models)
    fitting = [model for model in quants if memory_needed(model.size) <= memory]
    if newest := next((model.name for model in fitting if model.type == FIRST), None):
        return newest
    if fitting:
        return min(fitting, key=lambda model: (math.inf if model.kld is None else model.kld, -model.size)).name
    return min(quants, key=lambda model: model.size).name if quants else None


def models_of(
    views: Iterable[JobView], fetched: ModelCache | None, ours: Callable[[JobView], bool]
) -> dict[str, ChatModel]:
    """The models of jobs by name, of the newest job first: finished files here, or
    `fetched` from an output repo if that is `ours`."""
    found: dict[str, ChatModel] = {}
    for view in views:
        repo_id = view.job.request.repo_id if ours(view) else ""
        rows = [row for row in models(view.files) if output_of_row(row).chats]
        for row in sorted(rows, key=lambda row: row.get("type") != FIRST):
            if row["file"] in view.here:
                path, repo = view.folder / row["file"], ""
            elif fetched and repo_id:
                path, repo = fetched.path(repo_id, row["file"]), repo_id
            else:
                continue
            found.setdefault(row["file"], ChatModel.of(row, path, repo))
    return found
