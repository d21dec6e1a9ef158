"""Models of several families, made by the package transformers itself: converted, they predict in llama.cpp what they
predict there, and their sizes are known from heads alone."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from ggufy.core.errors import UsageError
from ggufy.formats.gguf import read_head
from ggufy.jobs.estimate import BaseOptions, preview
from ggufy.jobs.request import make_job
from ggufy.jobs.values import read_options
from ggufy.llama.install import Llama
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from tests.adapters import safetensors
from tests.conftest import Ggufy
from tests.hf_fixture import by_hand, logits, models, packages, read_safetensors  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.official import tensors_of
from tests.transformers_models import FAMILIES, VISION

FARTHEST = 0.05  # of logits whose standard deviation is 1.6: llama.cpp keeps keys and values in F16


@pytest.mark.tools
@pytest.mark.parametrize("family", [*FAMILIES, VISION])
def test_a_converted_model_predicts_what_it_did(
    ggufy: Ggufy, llama: Llama, models: Path, tmp_path: Path, family: str
) -> None:
    done = ggufy("convert", models / family, tmp_path / "m.gguf", "--outtype", "f32")
    assert done.code == 0, done.err
    expected = np.load(models / f"{family}.npy")
    assert np.std(expected) > 1
    assert np.abs(logits(llama, tmp_path / "m.gguf", tmp_path) - expected).max() < FARTHEST


@pytest.mark.tools
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_sizes_are_known_from_heads(llama: Llama, packages: Path, models: Path, tmp_path: Path, family: str) -> None:
    """Also of a model in parts: every tensor lies where it will, and so every quant is foreseen to the byte."""
    settings = replace(Settings.from_env(), out=tmp_path)
    found = preview(
        inspect(str(models / family), settings, forecast=True), settings, BaseOptions(compensated=False), llama=llama
    )
    assert found.sizes is not None and found.sizes.gguf is not None
    made = by_hand(llama, packages, models / family, tmp_path / f"{family}.gguf", "--outtype", "f16")
    assert found.sizes.base_size == made.stat().st_size
    assert found.sizes.gguf.tensors == read_head(made).tensors
    quant = tmp_path / "q.gguf"
    subprocess.run([llama.tool("llama-quantize"), made, quant, "Q4_0"], check=True, capture_output=True)
    assert found.sizes.quants["Q4_0"].size == pytest.approx(quant.stat().st_size, abs=256)  # what names an imatrix


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, local_hub: LocalHub) -> Iterator[LocalHub]:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", local_hub.endpoint)
    template = local_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield local_hub
    local_hub.mend()


@pytest.mark.tools
def test_sizes_of_a_repo_are_known_before_it_is_fetched(
    hub: LocalHub, llama: Llama, models: Path, tmp_path: Path
) -> None:
    for path in (models / "qwen2").iterdir():
        hub.put("alice/Small", path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")
    hub.fault("evil.py", status=500)
    hub.put("alice/Small", "evil.py", b"raise SystemExit")
    settings = replace(Settings.from_env({"HOME": str(tmp_path)}), cache=Settings.from_env().cache, out=tmp_path)
    here = inspect(str(models / "qwen2"), settings, forecast=True)
    there = inspect("alice/Small", settings, forecast=True)
    assert not there.problem and "evil.py" not in there.files
    assert there.stored == here.stored and there.companions == here.companions
    assert there.received < (models / "qwen2/model.safetensors").stat().st_size
    found = preview(there, settings, BaseOptions(outtype="f32"), llama=llama)
    assert found.sizes is not None and found.sizes.gguf is not None
    assert found.sizes.gguf.file_size > 4 * there.parameters


@pytest.mark.tools
def test_a_size_to_order_may_be_all_but_the_base(llama: Llama, packages: Path, models: Path, tmp_path: Path) -> None:
    """To the byte, which two bytes a weight are not."""
    settings = replace(Settings.from_env(), out=tmp_path)
    base = by_hand(llama, packages, models / "qwen2", tmp_path / "qwen2.gguf", "--outtype", "f16").stat().st_size

    def order(size: int) -> tuple[str, ...]:
        wish = {"targets": f"{size / 1e6:.6f}MB", "mode": "fast", "imatrix": "none"}
        return make_job(read_options(str(models / "qwen2"), wish), settings).request.targets

    assert order(base - 1)
    with pytest.raises(UsageError, match="no less than the unquantized file"):
        order(base)
    assert 2 * inspect(str(models / "qwen2"), settings).parameters < base - 1


@pytest.mark.tools
def test_what_cannot_be_converted_is_said_before(llama: Llama, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "llama", tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    data = weights.read_bytes().replace(b"model.norm.weight", b"model.worm.weight")
    weights.write_bytes(data)
    settings = Settings.from_env()
    found = preview(inspect(str(tmp_path / "m"), settings, forecast=True), settings, BaseOptions(), llama=llama)
    assert found.sizes is None
    assert found.report.problem.startswith("m cannot be converted (it does not know what model.worm.weight is): ")


@pytest.mark.tools
def test_parts_and_pickled_weights_give_the_same(ggufy: Ggufy, models: Path, tmp_path: Path) -> None:
    """A model in parts as the whole one; its weights as `pytorch_model.bin`, read without running what is in it."""
    made = []
    for kind in ("parts", "whole", "bin"):
        model = tmp_path / kind / "m"
        model.mkdir(parents=True)
        tensors = {}
        for path in (models / "qwen3").iterdir():
            if "safetensors" not in path.name or kind == "parts":
                shutil.copy(path, model)
            elif path.suffix == ".safetensors":
                tensors |= {name: torch.from_numpy(values) for name, values in read_safetensors(path).items()}
        if kind == "whole":
            (model / "model.safetensors").write_bytes(safetensors(tensors))
        if kind == "bin":
            torch.save(tensors, model / "pytorch_model.bin")
        done = ggufy("convert", model, tmp_path / f"{kind}.gguf")
        assert done.code == 0, done.err
        path = tmp_path / f"{kind}.gguf"
        made.append((read_head(path).metadata, tensors_of(path)))  # the converter writes tensors as it meets them
    assert made[0] == made[1] == made[2]


@pytest.mark.tools
def test_pickled_weights_that_call_something_do_not(ggufy: Ggufy, models: Path, tmp_path: Path) -> None:
    model, mark = tmp_path / "m", tmp_path / "ran"
    shutil.copytree(models / "llama", model)
    (model / "model.safetensors").unlink()

    class Bad:
        def __reduce__(self) -> Any:
            return open, (str(mark), "w")

    torch.save({"model.norm.weight": Bad()}, model / "pytorch_model.bin")
    done = ggufy("convert", model, tmp_path / "m.gguf")
    assert done.code == 1 and done.err.count("\n") == 1 and "Traceback" not in done.err
    assert not mark.exists() and not (tmp_path / "m.gguf").exists()


@pytest.mark.tools
@pytest.mark.parametrize("what", ["cut", "no tokenizer", "unknown"])
def test_a_damaged_folder_is_refused_in_one_sentence(ggufy: Ggufy, models: Path, tmp_path: Path, what: str) -> None:
    model = tmp_path / "m"
    shutil.copytree(models / "qwen3", model)
    if what == "cut":
        part = model / "model-00002-of-00004.safetensors"
        part.write_bytes(part.read_bytes()[:-100])
    elif what == "no tokenizer":
        (model / "tokenizer.model").unlink()
    else:
        (model / "tokenizer.model").unlink()
        _write_own_tokenizer(model / "tokenizer.json")
    done = ggufy("quantize", model, "--types", "none", "--imatrix", "none", "--out", tmp_path / "out")
    assert done.code == 1 and "Traceback" not in done.err
    said = {"cut": "cut short or damaged", "no tokenizer": "has no tokenizer", "unknown": "its pre-tokenizer is not"}
    assert said[what] in done.err.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.gguf"))


def _write_own_tokenizer(path: Path) -> None:
    """A byte-level BPE that nobody else has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(["one two three"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    own.save(str(path))
