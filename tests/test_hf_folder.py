"""Hugging Face models: told by their config.json, converted by llama.cpp's own converter, and none of their programs
run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.errors import SourceError, ToolError
from ggufy.llama.converter import Converter, ensure_packages, environment, read_error
from ggufy.llama.install import Llama
from ggufy.llama.pin import CONVERTER
from ggufy.llama.tools import ToolRun
from ggufy.sources.hf_config import describe_config, known, without_programs
from ggufy.sources.hf_folder import HuggingFaceModel
from ggufy.sources.inspect import inspect
from ggufy.sources.registry import format_of_file, models_by_config
from ggufy.system import resources
from ggufy.system.settings import Settings
from tests.conftest import Finished, Ggufy
from tests.reference import reference_file
from tools.converter_names import read_names

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 259,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def write_model(folder: Path, tensor: str = "w", **config: Any) -> Path:
    """A folder with one tensor of four values, a tokenizer of two bytes, and what a config.json says."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    listed = json.dumps({tensor: {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(listed).to_bytes(8, "little") + listed + bytes(8))
    (folder / "tokenizer.model").write_bytes(b"{}")
    return folder


@pytest.fixture
def converter(llama: Llama, tmp_path: Path) -> Converter:
    settings = Settings.from_env()
    run = ToolRun(
        environment=resources.child_environment(threads=1, home=tmp_path), cwd=tmp_path, log=tmp_path / "convert.log"
    )
    return Converter(llama=llama, cache=settings.cache, pip_environment=settings.pip_environment, run=run)


@pytest.mark.fast
def test_a_config_tells_transformers_from_rwkvs(tmp_path: Path) -> None:
    assert isinstance(format_of_file(write_model(tmp_path / "a") / "model.safetensors"), HuggingFaceModel)
    other = write_model(tmp_path / "b", architectures=["RWKV7ForCausalLM"])
    assert format_of_file(other / "model.safetensors").kind == "safetensors"
    hybrid = write_model(tmp_path / "c", architectures=["RWKV6Qwen2ForCausalLM"])
    assert format_of_file(hybrid / "model.safetensors").kind == "hf"


@pytest.mark.fast
def test_a_repo_of_a_transformer_has_one_model_that_need_not_be_named() -> None:
    names = ["config.json", "model.safetensors", "original/consolidated.00.pth", "a.gguf", "evil.py"]
    config = json.dumps(LLAMA).encode()
    found = models_by_config(names, "", lambda name: {"config.json": config}[name])
    assert {name: form.kind for name, form in found.items()} == {"a.gguf": "gguf", "model.safetensors": "hf"}
    assert models_by_config(names, "", lambda name: b"{}")["model.safetensors"].kind == "safetensors"


@pytest.mark.fast
def test_only_known_files_belong_to_a_model() -> None:
    there = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    there += ["config.json", "modeling_x.py", "tokenizer.json", "optimizer.pt"]
    assert HuggingFaceModel().files(there[0], lambda: there) == (*there[:3], "config.json", "tokenizer.json")


@pytest.mark.fast
def test_what_a_config_says_is_told(tmp_path: Path) -> None:
    report = inspect(
        str(write_model(tmp_path / "m", vision_config={}, auto_map={"AutoModel": "m.M"})), Settings.from_env()
    )
    assert not report.problem
    assert (report.architecture, report.layers, report.width, report.context) == ("LlamaForCausalLM", 1, 32, 128)
    assert report.parameters == 4 and report.dtype == "f16"
    assert [note.split(" ")[0] for note in report.notes] == ["the", "what", "its"]


@pytest.mark.fast
def test_what_the_converter_refuses_is_refused_before() -> None:
    with pytest.raises(SourceError, match=r"m is FooForCausalLM, which llama\.cpp's converter does not know"):
        describe_config({"architectures": ["FooForCausalLM"]}, "m")
    with pytest.raises(SourceError, match="m was quantized by awq, which"):
        describe_config(LLAMA | {"quantization_config": {"quant_method": "awq"}}, "m")
    assert describe_config(LLAMA | {"quantization_config": {"quant_method": "fp8"}}, "m")["notes"][0].startswith(
        "its w"
    )


@pytest.mark.fast
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": "../model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is no name of a part" in inspect(str(folder), Settings.from_env()).problem


@pytest.mark.fast
def test_programs_are_left_out_of_configurations() -> None:
    text = json.dumps(LLAMA | {"auto_map": {"AutoConfig": "x.X"}, "text_config": {"auto_map": {}}}).encode()
    assert b"auto_map" not in without_programs(text, "config.json")
    plain = b'{"a":  1}'
    assert without_programs(plain, "config.json") is plain


@pytest.mark.fast
@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "ERROR:hf-to-gguf:Model FooForCausalLM is not supported",
            "its architecture FooForCausalLM is not known to it",
        ),
        ("NotImplementedError: BPE pre-tokenizer was not recognized - update", "its pre-tokenizer is not known to it"),
        ("ValueError: Can not map tensor 'model.x'", "it does not know what model.x is"),
        ("FileNotFoundError: File not found: /a/b/tokenizer.model", "tokenizer.model is missing"),
        ("NotImplementedError: Quant method is not yet supported: 'awq'", "quantized by awq"),
        ("RuntimeError: can't allocate memory", "memory ran out"),
    ],
)
def test_why_a_model_cannot_be_converted_is_one_sentence(printed: str, said: str) -> None:
    error = read_error(ToolError("python failed", f"Traceback\n{printed}"), "m", Path("/l/convert.log"))
    assert str(error).startswith("m cannot be converted (") and said in str(error) and "/l/convert.log" in str(error)


@pytest.mark.tools
def test_the_table_is_the_pinned_converters(llama_source: Path) -> None:
    assert read_names(llama_source) == known()


@pytest.mark.tools
def test_a_job_makes_what_the_converter_makes(ggufy: Ggufy, converter: Converter, tmp_path: Path) -> None:
    """The trained model of the reference data, byte for byte as by hand."""
    model = tmp_path / "stories"
    shutil.copytree(reference_file("models/stories260K-hf"), model)
    done: Finished = ggufy("quantize", model, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    packages = ensure_packages(converter.cache, converter.run, converter.pip_environment)
    assert converter.llama.source
    by_hand = tmp_path / "hand.gguf"
    subprocess.run(
        [sys.executable, converter.llama.source / CONVERTER, model, "--outfile", by_hand, "--outtype", "f16"],
        env=environment(os.environ, packages, tmp_path),
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "out/stories-GGUF/stories-F16.gguf").read_bytes() == by_hand.read_bytes()


@pytest.mark.tools
def test_programs_in_a_folder_do_not_run(converter: Converter, tmp_path: Path) -> None:
    """Also where they lie in the folder that the converter sees, and a configuration names them."""
    (tmp_path / "work").mkdir()
    told = {"architectures": ["QWenLMHeadModel"], "layer_norm_epsilon": 1e-5}
    folder = write_model(tmp_path / "work" / "m", "transformer.wte.weight", **told)
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass T: pass\n")
    named = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    with pytest.raises(SourceError, match="it needs programs of its own"):
        converter.convert(folder, tmp_path / "x.gguf", outtype="f16", report=lambda fraction: None)
    assert not mark.exists()


@pytest.mark.tools
def test_a_build_without_its_source_says_so(converter: Converter, tmp_path: Path) -> None:
    bare = replace(converter, llama=replace(converter.llama, source=None))
    with pytest.raises(ToolError, match=r"which has no convert_hf_to_gguf\.py"):
        bare.convert(tmp_path, tmp_path / "x.gguf", outtype="f16", report=lambda fraction: None)
