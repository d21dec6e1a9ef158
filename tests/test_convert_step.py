"""The step that makes the base GGUF: its digest comes of the bytes as they pass, in sight, and can be stopped."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggufy.core.errors import Cancelled, SourceError
from ggufy.core.job import Request
from ggufy.core.source import Source
from ggufy.llama.tools import ToolRun
from ggufy.models.convert import convert
from ggufy.steps.convert import ConvertStep
from tests import tiny

STEP = ConvertStep(product="m-F32.gguf")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def context(source: Path, out: Path, *, sha256: str = "", stopped: bool = False) -> Any:
    pinned = Source(kind="gguf", path=str(source), size=source.stat().st_size, sha256=sha256 or digest(source))
    request = Request(name="m", source=pinned, quant_types=(), outtype="f32")
    seen: list[float] = []
    return SimpleNamespace(
        request=request,
        source=source,
        work=out / "work",
        llama=SimpleNamespace(commit="abc"),
        settings=SimpleNamespace(cache=Path(), token_for=lambda host: None, pip_environment={}),
        tool_run=lambda step: ToolRun(environment={}, cwd=out),
        streams=False,
        path=lambda product: out / product,
        report=lambda step, fraction: seen.append(fraction),
        stopped=lambda: stopped,
        seen=seen,
    )


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return tiny.converted(tmp_path, "7")


def test_a_conversion_gives_the_digest_of_its_file(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "6")
    assert convert(source, tmp_path / "x.gguf", vocab=vocab) == digest(tmp_path / "x.gguf")


@pytest.mark.parametrize("links", [True, False])
def test_a_gguf_is_taken_over(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    ctx = context(gguf, tmp_path)
    artifact = STEP.run(ctx)
    made = tmp_path / STEP.product
    assert (artifact.name, artifact.size, artifact.sha256) == (made.name, made.stat().st_size, digest(gguf))
    assert artifact.making is not None and artifact.making.llama == "abc"
    assert made.samefile(gguf) is links
    assert ctx.seen[-1] == 1.0
    made.unlink()
    with pytest.raises(Cancelled):
        STEP.run(context(gguf, tmp_path, stopped=True))
    with pytest.raises(SourceError, match="changed since the job was made: put the file back"):
        STEP.run(context(gguf, tmp_path, sha256="00" * 32))
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob(STEP.product)]
