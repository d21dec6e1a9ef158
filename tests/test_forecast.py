"""The head of a base that does not exist yet is by itself for every output folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufy import demo
from ggufy.core.job import Request
from ggufy.core.plan import Step
from ggufy.core.source import Source
from ggufy.llama.install import Llama
from ggufy.steps import forecast
from ggufy.steps.context import Context
from ggufy.steps.convert import ConvertStep
from ggufy.system.files import sha256
from ggufy.system.settings import Settings

pytestmark = pytest.mark.fast


def test_two_jobs_of_one_model_do_not_remove_each_other_s_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = demo.CHECKPOINT
    source = Source(kind="demo", path=str(path), size=path.stat().st_size, sha256=sha256(path))
    vocab = {"vocab_path": str(demo.VOCAB), "vocab_sha256": sha256(demo.VOCAB)}
    request = Request(name="m", source=source, quant_types=(), outtype="f16", **vocab)
    settings = Settings.from_env({"GGUFY_CACHE": str(tmp_path / "cache")})

    def context(folder: Path) -> Context:
        return Context(
            request=request,
            folder=folder,
            logs=folder,
            work=folder,
            settings=settings,
            llama=Llama(folder, None, "1", "abc"),
            limit=lambda: 1,
            report=lambda step, fraction: None,
            stopped=lambda: False,
        )

    first, second = (context(tmp_path / name) for name in ("first", "second"))
    read: list[bytes] = []

    def forecast_from(ctx: Context, step: Step, base: Path) -> None:
        if ctx is first:
            forecast.forecast_job(second, step)  # from its beginning to its end
        read.append(base.read_bytes()[:4])

    monkeypatch.setattr(forecast, "_forecast", forecast_from)
    forecast.forecast_job(first, ConvertStep(product="m-F16.gguf"))
    assert read == [b"GGUF"] * 2
    assert not list((tmp_path / "cache" / "skeletons").iterdir())
