"""GGUFs that are no whole model, as people have them: one sentence, the same at every way in, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter

from ggufy.core.errors import SourceError
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.llama import tools
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from tests import small, tiny
from tests.conftest import Ggufy

Extra = dict[str, tuple[object, GGUFValueType]]
_OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")
STRING, U16 = GGUFValueType.STRING, GGUFValueType.UINT16


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.converted(tmp_path_factory.mktemp("sound"), "7", outtype="f16", layers=3)


def rewritten(
    sound: Path,
    target: Path,
    *,
    arch: str = "rwkv7",
    extra: Extra | None = None,
    keep: Callable[[str], bool] = lambda name: True,
    bare: bool = False,
    endian: GGUFEndian = GGUFEndian.LITTLE,
) -> Path:
    """The same model with other metadata, and those of its tensors that are kept."""
    reader, extra = GGUFReader(sound), extra or {}
    writer = GGUFWriter(target, arch, endianess=endian)
    if bare:
        del writer.kv_data[0]["general.architecture"]
    for key, field in reader.fields.items():
        if key not in _OWN and key not in extra and not bare:
            sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for key, (value, kind) in extra.items():
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if keep(tensor.name):
            data = tensor.data.byteswap() if endian == GGUFEndian.BIG else tensor.data
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def split(number: int) -> Extra:
    return {"split.no": (number, U16), "split.count": (2, U16)}


def typed(kind: str) -> Extra:
    return {"general.type": (kind, STRING)}


def without(*names: str) -> Callable[[str], bool]:
    return lambda tensor: not tensor.startswith(names)


CASES: dict[str, tuple[dict[str, object], str]] = {
    "first part": ({"extra": split(0)}, "is one part of several: join them with llama-gguf-split --merge"),
    "other part": (
        {"extra": split(1), "bare": True, "keep": without("token_embd", "blk.0")},
        "is one part of several",
    ),
    "adapter": ({"extra": typed("adapter")}, r"is an adapter \(LoRA\), not a model"),
    "mmproj": ({"extra": typed("mmproj"), "arch": "clip"}, r"\(mmproj\), not a model"),
    "clip": ({"arch": "clip", "extra": typed("model")}, r"\(mmproj\), not a model"),
    "imatrix": ({"extra": typed("imatrix")}, "is an imatrix, not a model"),
    "controlvector": ({"arch": "controlvector"}, "is a control vector, not a model"),
    "another type": ({"extra": typed("something")}, "is a GGUF without a model in it"),
    "no tensors": ({"keep": lambda name: False}, "is a GGUF without a model in it"),
    "no metadata": ({"bare": True}, "is a GGUF without a model in it"),
    "no embedding": ({"keep": without("token_embd.weight")}, r"lacks tensors, such as token_embd\.weight"),
    "no head": ({"keep": without("output.weight")}, r"lacks tensors, such as output\.weight"),
    "no last block": ({"keep": without("blk.2.")}, r"lacks tensors, such as blk\.2"),
    "no inner block": ({"keep": without("blk.1.")}, r"lacks tensors, such as blk\.1\."),
    "no inner tensor": ({"keep": without("blk.1.channel_mix_key")}, r"such as blk\.1\.channel_mix_key\.weight"),
    "big endian": ({"endian": GGUFEndian.BIG}, "is for big-endian machines: fetch or convert one for little"),
}


@pytest.mark.parametrize(("case", "sentence"), CASES.values(), ids=CASES)
def test_what_is_no_whole_model(
    case: dict[str, object], sentence: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewritten(sound, tmp_path / "m.gguf", **case)  # type: ignore[arg-type]
    settings = replace(Settings.from_env({}), out=tmp_path / "out", cache=tmp_path / "cache")
    monkeypatch.setattr(
        "ggufy.jobs.request.sha256", lambda *_, **__: pytest.fail("read as a whole before it was looked at")
    )
    with pytest.raises(SourceError, match=sentence) as refused:
        make_job(JobOptions(source=str(path), quant_types=("Q8_0",), imatrix="none"), settings)
    assert str(refused.value).endswith(inspect(str(path), settings).problem or "nothing")  # one names the path


@pytest.mark.parametrize("names", [["blk.0.x.weight.lora_a", "blk.0.x.weight.lora_b"], ["a.in_sum2", "a.counts"]])
def test_files_that_do_not_say_what_they_are(names: list[str], tmp_path: Path) -> None:
    path = small.matrices(tmp_path / "m.gguf", dict.fromkeys(names, (4, 32)))
    assert ", not a model: give an unquantized .gguf of a model" in inspect(str(path), Settings.from_env({})).problem


def test_other_architectures_and_what_was_joined_are_taken(sound: Path, tmp_path: Path) -> None:
    joined = rewritten(sound, tmp_path / "j.gguf", extra={"split.count": (0, U16), "split.no": (0, U16)})
    for path in (sound, joined, small.mixture(tmp_path / "m.gguf")):
        assert inspect(str(path), Settings.from_env({})).problem == ""


@pytest.mark.tools
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"arch": "frobnicator"}, "unknown model architecture: 'frobnicator'"),
        ({"keep": without("blk.0.channel_mix_key")}, "tensor 'blk.0.channel_mix_key.weight' not found"),
    ],
)
def test_llama_cpp_says_what_only_it_knows(
    case: dict[str, object], reason: str, sound: Path, tmp_path: Path, ggufy: Ggufy
) -> None:
    """Without an imatrix llama-quantize would take such a file, and nothing could load what it makes."""
    path = rewritten(sound, tmp_path / "m.gguf", **case)  # type: ignore[arg-type]
    done = ggufy("quantize", path, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "out")
    assert done.code == 1
    assert "ggufy: llama.cpp cannot load m.gguf (" in done.err and reason in done.err
    assert not list(tmp_path.glob("out/m-GGUF/*.gguf"))


@pytest.mark.tools
def test_a_sound_file_is_loaded_and_quantized(sound: Path, tmp_path: Path, ggufy: Ggufy) -> None:
    done = ggufy("quantize", sound, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert not list(tmp_path.rglob("word.txt"))


LOADING = """0.00.013.1 W load: cannot use this, an error is not likely
llama_model_loader: - kv  20:  tokenizer.chat_template str = {{ raise_exception('error: invalid role') }}
0.00.013.586 E llama_model_load: error loading model: check_tensor_dims: tensor 'output_norm.weight' not found
0.00.013.616 E llama_model_load_from_file_impl: failed to load model
0.00.022.911 E llama_perplexity: unable to load model
"""


def lines(*texts: str) -> str:
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOADING, "llama_model_load: error loading model: check_tensor_dims: tensor 'output_norm.weight' not found"),
        (
            lines(
                "llama_model_quantize: failed to quantize: no such type", "llama_quantize: failed to quantize model"
            ),
            "llama_model_quantize: failed to quantize: no such type",
        ),
        (lines("x.c:3: GGML_ASSERT(a != b) failed", "Aborted"), "x.c:3: GGML_ASSERT(a != b) failed"),
        (
            lines("-- Performing Test A - Failed", "a.c:1: error: b", "build stopped: subcommand failed"),
            "a.c:1: error: b",
        ),
        (lines("[1/2] Building error.o", "cannot go on"), "cannot go on"),
        (lines("WARNING: Retrying, error: x", "ERROR: no version", "bye"), "ERROR: no version"),
        (lines("one", "two"), "two"),
        ("", "it printed nothing"),
    ],
)
def test_the_first_error_is_the_reason(text: str, reason: str) -> None:
    assert tools.failure_reason(text) == reason


def test_why_a_model_cannot_be_loaded() -> None:
    assert tools.parse_load_error(LOADING) == "check_tensor_dims: tensor 'output_norm.weight' not found"
    assert tools.parse_load_error("all is well") == ""
