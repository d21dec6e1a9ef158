"""Heads for several tokens at once (MTP): in the base, as files of their own, or left out."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.core.errors import UsageError
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.formats.gguf import read_head
from ggufy.jobs.request import make_job
from ggufy.jobs.values import read_options
from ggufy.llama.converter import environment
from ggufy.llama.install import Llama
from ggufy.sources.hf_config import has_heads
from ggufy.sources.inspect import inspect
from ggufy.steps import plan
from ggufy.system.settings import Settings
from tests.conftest import ROOT, Ggufy
from tests.hf_fixture import by_hand, logits, models, packages  # noqa: F401 - fixtures
from tests.reference import reference_file
from tests.test_hf_jobs import PLAIN, ran

NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"]
FILES = ("mtp-qwen3next-F16.gguf", "mtp-qwen3next-Q8_0.gguf")


@pytest.fixture(scope="module")
def heads(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with qwen3next, without a tokenizer."""
    folder = tmp_path_factory.mktemp("heads")
    variables = environment(os.environ, packages, folder) | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.transformers_models", str(folder), "heads"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.fast
@pytest.mark.parametrize(
    ("architecture", "more", "layers", "found"),
    [
        ("Qwen3NextForCausalLM", "mtp.fc.weight", 4, True),
        ("Qwen3_5ForConditionalGeneration", "model.mtp.fc.weight", 4, True),
        ("Glm4MoeForCausalLM", "model.layers.4.eh_proj.weight", 4, True),
        ("Glm4MoeForCausalLM", "vision.layers.9.attn.weight", 4, False),
        ("Qwen3NextForCausalLM", "model.layers.3.other.weight", 4, False),
        ("LlamaForCausalLM", "mtp.fc.weight", 4, False),
    ],
)
def test_which_models_have_heads(architecture: str, more: str, layers: int, found: bool) -> None:
    assert has_heads(architecture, [*NAMES, more], layers) is found


@pytest.mark.tools
def test_what_a_request_says(heads: Path, models: Path, tmp_path: Path) -> None:
    model = tmp_path / "qwen3next"
    shutil.copytree(heads / "qwen3next", model)
    shutil.copy(models / "llama/tokenizer.model", model)
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path)})
    report = inspect(str(model), settings)
    assert report.mtp and any("heads for several tokens at once" in note for note in report.notes)

    def job(source: Path, **values: Any) -> Job:
        return make_job(read_options(str(source), {"quant_types": "none", "imatrix": "none"} | values), settings)

    stays, parted, without = (job(model, mtp=mtp) for mtp in ("base", "file", "none"))
    assert [step.product for step in plan(parted.request)] == [*FILES, "qwen3next-F16.gguf"]
    assert [step.product for step in plan(stays.request)] == [step.product for step in plan(without.request)]
    assert len({one.request.inputs() for one in (stays, parted, without)}) == 3, "their bases are not the same"
    assert from_json(to_json(parted)) == parted
    assert "mtp" not in json.loads(to_json(stays))["request"], "as records that are older than it"
    assert replace(parted.request, mtp="base").inputs() == stays.request.inputs()
    with pytest.raises(UsageError, match="parts no heads from this model: leave --mtp out"):
        job(models / "qwen2", mtp="file")


@pytest.mark.tools
def test_the_files_are_the_converters(ggufy: Ggufy, llama: Llama, packages: Path, heads: Path, tmp_path: Path) -> None:
    """Bytes as by hand, and the base without its head predicts what transformers does, which never had it."""
    model = tmp_path / "qwen3next"
    shutil.copytree(heads / "qwen3next", model)
    shutil.copy(reference_file("rwkvcpp/upstream/20B_tokenizer.json"), model / "tokenizer.json")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    made = {}
    for mtp in ("base", "file", "none"):
        ran(ggufy, "quantize", model, *PLAIN, "--outtype", "f32", "--mtp", mtp, "--out", tmp_path / mtp)
        made[mtp] = {path.name: path for path in (tmp_path / mtp).rglob("*.gguf")}
    base = "qwen3next-F32.gguf"
    assert made["base"].keys() == made["none"].keys() == {base} and made["file"].keys() == {base, *FILES}
    for path, words in (
        (made["base"][base], ("--outtype", "f32")),
        (made["file"][base], ("--outtype", "f32", "--no-nextn")),
        (made["file"][FILES[0]], ("--outtype", "f16", "--mtp")),
        (made["file"][FILES[1]], ("--outtype", "q8_0", "--mtp")),
    ):
        assert path.read_bytes() == by_hand(llama, packages, model, tmp_path / "hand.gguf", *words).read_bytes()
    assert made["none"][base].read_bytes() == made["file"][base].read_bytes()
    assert read_head(made["base"][base]).metadata["qwen3next.nextn_predict_layers"] == 1
    assert "qwen3next.nextn_predict_layers" not in read_head(made["file"][base]).metadata
    found = logits(llama, made["file"][base], tmp_path, "f32")
    assert np.abs(found - np.load(heads / "qwen3next.npy")).max() < 5e-3
