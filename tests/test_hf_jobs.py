"""Whole jobs of Hugging Face models: quants, figures, a repo, a text; killed and resumed; what sees; adapters."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggufy.formats.gguf import read_head
from ggufy.llama.install import Llama
from tests import adapters
from tests.conftest import Finished, Ggufy
from tests.hf_fixture import by_hand, logits, models, packages, read_safetensors  # noqa: F401 - fixtures
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.reference import reference_file
from tests.test_serve import STORY
from tests.transformers_models import TEMPLATE, VISION

pytestmark = pytest.mark.tools
PLAIN = ("--types", "none", "--imatrix", "none")


def ran(ggufy: Ggufy, *words: object, **environment: str) -> Finished:
    done = ggufy(*words, **environment)
    assert done.code == 0, done.err
    return done


def fetched(hub: LocalHub, repo: str, name: str) -> bytes:
    """A file of a public repo."""
    with urllib.request.urlopen(f"{hub.endpoint}/{repo}/resolve/main/{name}", timeout=30) as answer:
        data: bytes = answer.read()
    return data


def test_the_trained_llama_from_its_repo_to_a_text(ggufy: Ggufy, local_hub: LocalHub, tmp_path: Path) -> None:
    """Fetched, converted, quantized with an imatrix, measured, published; the text is its author's."""
    for path in reference_file("models/stories260K-hf").iterdir():
        local_hub.put("alice/Stories", path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")
    local_hub.put("alice/Stories", "modeling.py", b"raise SystemExit")
    there = {"HF_ENDPOINT": local_hub.endpoint, "HF_TOKEN": ALICE}
    types = ("--types", "Q8_0,Q4_K_M", "--outtype", "f32", "--evaluate", "--chunks", "8", "--evaluation-chunks", "4")
    done = ran(ggufy, "quantize", "alice/Stories", *types, "--hub", "hf", "--out", tmp_path, "--json", **there)
    job = json.loads(done.out)
    assert job["status"] == "done"
    assert not [line for line in local_hub.log("modeling.py") if line["path"].endswith(".py")]
    names = ["Stories-F32.gguf", "Stories-Q8_0.gguf", "Stories-Q4_K_M.gguf", "Stories-imatrix.gguf", "README.md"]
    held = {name: fetched(local_hub, "alice/Stories-GGUF", name) for name in names}
    card = held["README.md"].decode()
    assert "llama.cpp's converter" in card and "RWKV" not in card
    assert "base_model: alice/Stories" in card and "PPL" in card
    model = tmp_path / "m.gguf"
    model.write_bytes(held["Stories-F32.gguf"])
    said = ran(ggufy, "complete", model, "-p", "Once upon a time", "--temp", "0", "-n", "200", "--json")
    assert json.loads(said.out)["text"].startswith(STORY)


def test_a_job_of_a_generated_model(ggufy: Ggufy, models: Path, tmp_path: Path) -> None:
    """The same without reference data, of a folder here: its chat template stays, and figures are there."""
    types = (
        "--types",
        "Q8_0,Q4_0",
        "--evaluate",
        "--chunks",
        "4",
        "--evaluation-chunks",
        "4",
        "--evaluation",
        "bundled",
    )
    done = ran(ggufy, "quantize", models / "qwen2", *types, "--out", tmp_path, "--json")
    job = json.loads(done.out)
    folder = Path(job["folder"])
    head = read_head(folder / "qwen2-Q4_0.gguf")
    assert head.metadata["tokenizer.chat_template"] == TEMPLATE
    assert {path.name for path in folder.glob("*.gguf")} == {
        "qwen2-F16.gguf",
        "qwen2-Q8_0.gguf",
        "qwen2-Q4_0.gguf",
        "qwen2-imatrix.gguf",
    }
    assert 0 < _kld(job, "Q8_0") < _kld(job, "Q4_0")


def _kld(job: dict[str, Any], quant: str) -> float:
    (row,) = [row for row in job["files"] if row.get("type") == quant]
    return float(row["evaluation"]["quality"]["kld"])


def test_killed_while_it_converts(
    ggufy: Ggufy,
    ggufy_environment: dict[str, str],
    models: Path,
    tmp_path: Path,
) -> None:
    command = ["quantize", str(models / "mixtral"), *PLAIN, "--out", str(tmp_path / "out")]
    words = [sys.executable, "-m", "ggufy", *command]
    with subprocess.Popen(words, env=ggufy_environment, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").rglob("converter*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not list((tmp_path / "out").rglob("mixtral-F16.gguf"))
    ran(ggufy, *command)
    ran(ggufy, "convert", models / "mixtral", tmp_path / "whole.gguf")
    (base,) = (tmp_path / "out").rglob("mixtral-F16.gguf")
    assert base.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not [path for path in (tmp_path / "out").rglob("*") if "converter" in path.name or path.suffix == ".part"]


def test_what_sees_is_a_file_of_its_own(
    ggufy: Ggufy,
    llama: Llama,
    packages: Path,
    models: Path,
    local_hub: LocalHub,
    tmp_path: Path,
) -> None:
    """Of a repo, which is fetched once: the base lets go of it, so these come first."""
    for path in (models / VISION).iterdir():
        local_hub.put("alice/Seer", path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")
    there = {"HF_ENDPOINT": local_hub.endpoint, "HF_TOKEN": ALICE}
    local_hub.clear()
    ran(ggufy, "quantize", "alice/Seer", *PLAIN, "--hub", "hf", "--out", tmp_path / "o", **there)
    card = fetched(local_hub, "alice/Seer-GGUF", "README.md").decode()
    shutil.copytree(models / VISION, tmp_path / "Seer")
    for name in ("F16", "Q8_0"):
        file = f"mmproj-Seer-{name}.gguf"
        made = fetched(local_hub, "alice/Seer-GGUF", file)
        own = by_hand(
            llama, packages, tmp_path / "Seer", tmp_path / f"mmproj-{name}.gguf", "--mmproj", "--outtype", name.lower()
        )
        assert made == own.read_bytes()
        assert read_head(own).metadata["general.architecture"] == "clip"
        assert f"[{file}]({file}) | mmproj |" in card and "`--mmproj`" in card
    ran(ggufy, "quantize", models / VISION, *PLAIN, "--mmproj", "none", "--out", tmp_path / "p")
    assert not list((tmp_path / "p").rglob("mmproj*"))


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_an_adapter_is_merged_while_it_is_converted(
    ggufy: Ggufy,
    llama: Llama,
    packages: Path,
    models: Path,
    tmp_path: Path,
    family: str,
) -> None:
    """In parts and whole: the bytes that the converter makes of what torch has merged."""
    state = {
        name: torch.from_numpy(values)
        for path in (models / family).glob("*.safetensors")
        for name, values in read_safetensors(path).items()
    }
    trained = {name: tensor for name, tensor in state.items() if name.endswith(("q_proj.weight", "down_proj.weight"))}
    lora = {}
    for name, tensor in trained.items():
        layer, (out, columns) = name.removesuffix(".weight"), tensor.shape
        lora |= {f"{layer}.lora_A": adapters.random(4, columns), f"{layer}.lora_B": adapters.random(out, 4, seed=1)}
    named = {f"{name}.weight": tensor for name, tensor in lora.items()}
    adapter = adapters.save_folder(tmp_path / "poems", named)
    ran(ggufy, "quantize", models / family, *PLAIN, "--outtype", "f32", "--lora", adapter, "--out", tmp_path / "o")
    (made,) = (tmp_path / "o").rglob(f"{family}-poems-F32.gguf")
    by_torch = tmp_path / f"{family}-poems"
    shutil.copytree(models / family, by_torch, ignore=shutil.ignore_patterns("*.safetensors*"))
    whole = adapters.safetensors(adapters.merged(state, lora, 3.0))  # alpha 12, rank 4
    (by_torch / "model.safetensors").write_bytes(whole)
    expected = by_hand(llama, packages, by_torch, tmp_path / "hand.gguf", "--outtype", "f32")
    assert made.stat().st_size == expected.stat().st_size
    before = np.load(models / f"{family}.npy")
    found, wanted = logits(llama, made, tmp_path), logits(llama, expected, tmp_path)
    assert np.abs(found - wanted).max() < 1e-3 < 0.1 < np.abs(found - before).max()


def test_adapters_that_do_not_fit(ggufy: Ggufy, models: Path, tmp_path: Path) -> None:
    strange = {"model.layers.9.mlp.up_proj.lora_A.weight": adapters.random(4, 64)}
    strange |= {"model.layers.9.mlp.up_proj.lora_B.weight": adapters.random(128, 4)}
    adapter = adapters.save_folder(tmp_path / "strange", strange)
    done = ggufy("quantize", models / "qwen2", *PLAIN, "--lora", adapter, "--out", tmp_path / "o")
    assert done.code == 1 and "belongs to no tensor of this model" in done.err
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").rglob("*.gguf"))
