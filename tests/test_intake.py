"""What a wish becomes, and what is refused when a job is submitted."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.core.errors import Cancelled, UsageError
from ggufy.demo import CHECKPOINT, VOCAB
from ggufy.jobs import request as intake
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import Watch, make_job
from ggufy.models.convert import convert
from ggufy.system.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}), out=tmp_path / "out", cache=tmp_path / "cache")


def order(*targets: str, source: str = str(CHECKPOINT), vocab: str | None = str(VOCAB), **options: str) -> JobOptions:
    return JobOptions(source=source, quant_types=(), targets=targets, vocab=vocab, imatrix="none", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "base", "outtype"),
    [("50MB", "14.9 MB", "f16"), ("99GB", "14.9 MB", "bf16"), ("15MB", "14.9 MB", "f16"), ("30MB", "29.3 MB", "f32")],
)
@pytest.mark.parametrize("kind", ["pth", "gguf"])
def test_no_size_above_the_unquantized_file(
    kind: str, target: str, base: str, outtype: str, settings: Settings, tmp_path: Path
) -> None:
    job_options = order("5MB", target, outtype=outtype)
    if kind == "gguf":
        convert(CHECKPOINT, tmp_path / "m.gguf", outtype=outtype, vocab=VOCAB)
        job_options = order("5MB", target, source=str(tmp_path / "m.gguf"), vocab=None)
    with pytest.raises(UsageError, match=rf"^{target} is no less than the unquantized file, which has {base}: take"):
        make_job(job_options, settings)


@pytest.mark.parametrize(
    ("target", "outtype"), [("14MB", "f16"), ("15.9bpw", "f16"), ("16bpw", "f32"), ("28MB", "f32")]
)
def test_sizes_below_it(target: str, outtype: str, settings: Settings) -> None:
    (label,) = make_job(order(target, outtype=outtype), settings).request.targets
    assert label.startswith(f"{target}-")


def test_a_large_source_is_read_in_sight_and_can_be_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float]] = []
    make_job(order(), settings, Watch(report=lambda what, fraction: seen.append((what, fraction))))
    assert not seen, "a small one takes a moment"
    monkeypatch.setattr(intake, "_WORTH_A_WORD", 1 << 20)
    job = make_job(order(), settings, Watch(report=lambda what, fraction: seen.append((what, fraction))))
    assert seen[-1] == (f"reading {CHECKPOINT.name}", 1.0) and len(seen) > 1
    with pytest.raises(Cancelled):
        make_job(order(), settings, Watch(stopped=lambda: True))
    assert job.request.source.sha256 == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
