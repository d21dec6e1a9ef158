"""Adapters that become GGUFs of their own: llama.cpp predicts with one what it predicts with the merged model."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.formats.gguf import read_head
from ggufy.jobs.request import make_job
from ggufy.jobs.values import read_options
from ggufy.llama.install import Llama
from ggufy.system.settings import Settings
from tests import adapters, tiny
from tests.conftest import Ggufy
from tests.hf_fixture import logits, models, packages, read_safetensors  # noqa: F401 - fixtures
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.reference import reference_file
from tests.test_hf_jobs import PLAIN, fetched, ran

pytestmark = pytest.mark.tools
LAYERS = ("q_proj.weight", "v_proj.weight", "down_proj.weight", "qkv_proj.weight")


def save_adapter(folder: Path, model: Path, *, size: float = 1.0, **config: object) -> Path:
    """A LoRA of rank 4 of some of a model's layers, as PEFT saves it."""
    named = {}
    for path in model.glob("*.safetensors"):
        for name, values in read_safetensors(path).items():
            if name.endswith(LAYERS):
                layer, (out, columns) = name.removesuffix(".weight"), values.shape
                named[f"{layer}.lora_A.weight"] = size * adapters.random(4, columns)
                named[f"{layer}.lora_B.weight"] = size * adapters.random(out, 4, seed=1)
    return adapters.save_folder(folder, named, **config)


@pytest.mark.parametrize(("family", "rslora"), [("llama", False), ("qwen3", True), ("gemma3", False), ("phi3", False)])
def test_a_file_does_what_merging_does(
    ggufy: Ggufy, llama: Llama, models: Path, tmp_path: Path, family: str, rslora: bool
) -> None:
    """Also where alpha is divided by the root of the rank, of which llama.cpp knows nothing; and the base is the
    model's own."""
    adapter = save_adapter(tmp_path / "poems", models / family, use_rslora=rslora)
    words = ("quantize", models / family, *PLAIN, "--outtype", "f32", "--lora", adapter)
    ran(ggufy, *words, "--out", tmp_path / "merged")
    ran(ggufy, *words, "--lora-as-file", "--out", tmp_path / "beside")
    (merged,) = (tmp_path / "merged").rglob(f"{family}-poems-F32.gguf")
    (base,) = (tmp_path / "beside").rglob(f"{family}-F32.gguf")
    (file,) = base.parent.glob(f"{family}-lora-poems-*.gguf")
    before, wanted = np.load(models / f"{family}.npy"), logits(llama, merged, tmp_path, "f32")
    assert np.abs(logits(llama, base, tmp_path, "f32") - before).max() < 2e-3
    found = logits(llama, base, tmp_path, f"lora:{file}")
    assert np.abs(found - wanted).max() < 1e-3 < 0.1 < np.abs(found - before).max()
    scale = 12 / 2 if rslora else 12 / 4
    assert read_head(file).metadata["adapter.lora.alpha"] == pytest.approx(scale * 4)
    exported = tmp_path / "exported.gguf"
    command = [llama.tool("llama-export-lora"), "-m", base, "--lora", file, "-o", exported]
    subprocess.run(command, check=True, capture_output=True)
    assert np.abs(logits(llama, exported, tmp_path, "f32") - wanted).max() < 0.1, "it rounds what it changes to F16"


def test_a_published_file_is_named_on_the_card(
    ggufy: Ggufy, llama: Llama, models: Path, local_hub: LocalHub, tmp_path: Path
) -> None:
    """Model and adapter of the Hub, each fetched once; llama-completion takes what comes back."""
    for path in (models / "qwen2").iterdir():
        local_hub.put("alice/Talker", path.name, path.read_bytes())
    for path in save_adapter(tmp_path / "verses", models / "qwen2").iterdir():
        local_hub.put("alice/verses", path.name, path.read_bytes())
    there = {"HF_ENDPOINT": local_hub.endpoint, "HF_TOKEN": ALICE}
    words = ("--lora", "alice/verses", "--lora-as-file", "--types", "Q8_0", "--imatrix", "none", "--hub", "hf")
    ran(ggufy, "quantize", "alice/Talker", *words, "--out", tmp_path / "o", **there)
    card = fetched(local_hub, "alice/Talker-GGUF", "README.md").decode()
    (line,) = [line for line in card.splitlines() if line.startswith("| [Talker-lora-verses-")]
    name = line.split("]")[0].removeprefix("| [")
    assert "| LoRA |" in line and f"--lora {name}" in card and "hf download alice/Talker-GGUF" in card
    assert "Not merged, but files of their own here:" in card and "Merged into the model" not in card
    for file in (name, "Talker-Q8_0.gguf"):
        (tmp_path / file).write_bytes(fetched(local_hub, "alice/Talker-GGUF", file))
    said = [complete(llama, tmp_path / "Talker-Q8_0.gguf", *more) for more in ((), ("--lora", tmp_path / name))]
    assert said[0] != said[1]


def test_the_trained_llama_with_an_adapter(ggufy: Ggufy, llama: Llama, tmp_path: Path) -> None:
    """Its story, letter for letter that of the merged model and not its author's any more."""
    source = reference_file("models/stories260K-hf")
    adapter = save_adapter(tmp_path / "tales", source, size=0.5)
    words = ("quantize", source, *PLAIN, "--outtype", "f32", "--lora", adapter, "--name", "Stories")
    ran(ggufy, *words, "--out", tmp_path / "merged")
    ran(ggufy, *words, "--lora-as-file", "--out", tmp_path / "beside")
    (merged,) = (tmp_path / "merged").rglob("Stories-F32.gguf")
    (base,) = (tmp_path / "beside").rglob("Stories-F32.gguf")
    (file,) = base.parent.glob("Stories-lora-*.gguf")
    told = complete(llama, base, "--lora", file)
    assert told == complete(llama, merged) != complete(llama, base)


def complete(llama: Llama, model: Path, *more: object) -> str:
    """What llama-completion writes, greedily."""
    command = [llama.tool("llama-completion"), "-m", model, "-p", "Once upon a time", "--temp", "0", "-n", "40"]
    command += ["-no-cnv", "-t", "1", "--no-warmup", *more]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return done.stdout.decode(errors="replace")


def test_which_adapters_cannot_be_files(models: Path, tmp_path: Path) -> None:
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path)})

    def job(source: Path, **values: Any) -> Job:
        plain = {"quant_types": "none", "imatrix": "none", "lora_as_file": True}
        return make_job(read_options(str(source), plain | values), settings)

    model = models / "qwen2"
    poems = save_adapter(tmp_path / "poems", model)
    with pytest.raises(UsageError, match="--lora-as-file says what becomes of adapters"):
        job(model)
    whole = {"model.norm.weight": torch.ones(64)} | {
        f"model.layers.0.self_attn.q_proj.lora_{which}.weight": adapters.random(*shape)
        for which, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    with pytest.raises(SourceError, match=r"whole \(LoRA\) is not just a LoRA"):
        job(model, lora=[str(adapters.save_folder(tmp_path / "whole", whole))])
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7")
    tiny.save(tmp_path / "r.pth", adapters.lora(tiny.weights("7")))
    with pytest.raises(UsageError, match="go through llama.cpp's converter"):
        job(checkpoint, vocab=str(vocab), lora=[f"{tmp_path / 'r.pth'}:2"])
    one, other = job(model, lora=[str(poems)]), job(model, lora=[f"{poems}:1"])
    plain = job(model, lora_as_file=False)
    assert len({one.id, other.id, plain.id}) == 3, "other files are another job"
    assert one.request.inputs() == other.request.inputs() == plain.request.inputs(), "of the same base"
    assert from_json(to_json(one)) == one
    assert "lora_files" not in json.loads(to_json(plain))["request"], "as records that are older than it"
