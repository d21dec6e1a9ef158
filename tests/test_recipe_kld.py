"""Figures of recipes: all over the same chunks of the text, however full the disk is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufy.core.errors import DiskError
from ggufy.formats.gguf import read_head
from ggufy.llama import ggml, perplexity
from ggufy.llama.install import Llama
from ggufy.steps import evaluate as measuring
from ggufy.steps.recipe_kld import Divergences
from ggufy.steps.same_model import vocab_size
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts
from tests import tiny

CHUNKS = 8


@pytest.fixture
def divergences(llama: Llama, tmp_path: Path) -> Divergences:
    settings = Settings.from_env()
    base = tiny.converted(tmp_path, outtype="f16", width=256, layers=1, ffn=256)
    text = tmp_path / "probe.txt"
    text.write_text(ensure_texts(settings.cache).probe.read_text()[:20_000])
    config = measuring.EvaluationConfig(
        text=text,
        folder=tmp_path / "work",
        llama=llama,
        environment=resources.child_environment(threads=1, home=settings.home),
        threads=1,
        chunks=CHUNKS,
        speed=False,
        keep_logits=True,
    )
    kernels = ggml.load(llama.bin)
    digest = sha256(base)
    return Divergences(base=base, base_sha256=digest, imatrix=None, stock_imatrix=None, ggml=kernels, config=config)


@pytest.mark.tools
def test_a_full_disk_makes_no_figure_of_fewer_chunks(
    divergences: Divergences, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = divergences.config.folder
    head = read_head(divergences.base)
    half = perplexity.logits_bytes(vocab_size(head), CHUNKS // 2)
    full, coarse = {"blk.0.channel_mix_key.weight": "Q8_0"}, {"blk.0.channel_mix_key.weight": "Q2_K"}
    with monkeypatch.context() as disk:
        disk.setattr(measuring, "free_bytes", lambda path: measuring.SPARE + half)
        with pytest.raises(DiskError, match=f"over {CHUNKS} chunks .* free some space and run"):
            divergences(full, label="one")
    assert divergences.measured == 0 and not divergences.table.exists()
    assert not list(folder.glob("*.gguf"))
    there = divergences(full, label="one")
    with monkeypatch.context() as disk:  # the base's predictions are here: no room is needed for them
        disk.setattr(measuring, "free_bytes", lambda path: 0)
        assert divergences(coarse, label="other") > there > 0
    assert divergences.measured == 2
