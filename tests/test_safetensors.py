"""Safetensors by our own reader: what it says, what it refuses, and the GGUF that comes of it, in every layout."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch

from ggufy.core.errors import CheckpointError, SourceError
from ggufy.core.job import Job, Request
from ggufy.core.source import Source, SourceFile
from ggufy.formats.mapped_safetensors import open_safetensors
from ggufy.formats.safetensors import read_header, read_index, read_tensors
from ggufy.models.convert import convert
from ggufy.models.vocab import WORLD_FILE
from ggufy.publish.card import CardFacts, card
from ggufy.sources.format import ConvertTask
from ggufy.sources.inspect import inspect
from ggufy.sources.locate import local_file
from ggufy.sources.registry import format_of_file
from ggufy.system.settings import Settings
from ggufy.ui import source_parts
from ggufy.ui.i18n import TEXTS
from tests import layouts, tiny
from tests.conftest import Ggufy
from tests.official import run_converter, tensors_of
from tests.reference import reference_file

pytestmark = pytest.mark.fast
WEIGHTS = {"a.b": torch.arange(6, dtype=torch.float32).view(2, 3), "c": torch.ones(5, dtype=torch.bfloat16)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"HOME": str(tmp_path)})


def made(source: Path, target: Path, *, vocab: Path | None, outtype: str = "f16", name: str = "x") -> bytes:
    """The base GGUF that a job would make of a file or folder here, and its skeleton beside it."""
    path = local_file(str(source))
    assert path is not None
    form = format_of_file(path)
    files = [SourceFile(path=str(one), size=one.stat().st_size, sha256="") for one in form.files_here(path)]
    pinned = Source.of_files(files, kind=form.kind)
    task = ConvertTask(source=pinned, path=path, outtype=outtype, vocab=vocab, name=name)
    form.convert(task, target)
    skeleton = target.with_suffix(".skeleton")
    form.write_skeleton(task, skeleton)
    assert skeleton.stat().st_size == target.stat().st_size
    assert target.read_bytes().startswith(skeleton.read_bytes().rstrip(b"\0"))
    return target.read_bytes()


def expected(folder: Path, state: layouts.State, vocab: Path, outtype: str = "f16") -> bytes:
    """What comes of the .pth."""
    convert(tiny.save(folder / "x.pth", state), folder / "x.gguf", vocab=vocab, outtype=outtype)
    return (folder / "x.gguf").read_bytes()


# ---- the reader


def test_a_list_is_read_without_its_values() -> None:
    data = layouts.packed(WEIGHTS)
    head = 8 + int.from_bytes(data[:8], "little")

    class Watched(io.BytesIO):
        furthest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.furthest = max(self.furthest, self.tell())
            return found

    file = Watched(data)
    tensors = read_header(file, "x.safetensors")
    assert file.furthest == head
    assert {name: (one.shape, one.dtype) for name, one in tensors.items()} == {
        "a.b": ((2, 3), "f32"),
        "c": ((5,), "bf16"),
    }
    assert (tensors["a.b"].start, tensors["a.b"].stop, tensors["c"].stop) == (head, head + 24, len(data))


def test_values_are_mapped_and_given_back(tmp_path: Path) -> None:
    """Also where the list has an odd length, so that no value lies where processors like it."""
    data = layouts.packed(WEIGHTS)
    size = int.from_bytes(data[:8], "little")
    for extra in range(4):
        path = tmp_path / f"{extra}.safetensors"
        path.write_bytes((size + extra).to_bytes(8, "little") + data[8 : 8 + size] + b" " * extra + data[8 + size :])
        with open_safetensors([path]) as opened:
            for name, tensor in WEIGHTS.items():
                assert torch.equal(opened.tensor(name), tensor)
                opened.release(name)
                assert torch.equal(opened.tensor(name), tensor)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "x is empty"),
        (lambda data: data[:5], "x is not a safetensors file"),
        (lambda data: b"<html>" + data, "x is not a safetensors file"),
        (lambda data: b"PK\3\4" + data[4:], "x is cut short"),
        (lambda data: data[:-1], "x is cut short"),
        (lambda data: data + b"x", "bytes that belong to no tensor"),
        (lambda data: data.replace(b'"F32"', b'"I64"'), "a.b in x is I64, not a tensor of floating-point weights"),
        (lambda data: data.replace(b'"F32"', b'"F16"'), "what it says of a.b makes no sense"),
        (lambda data: data.replace(b"[2, 3]", b"[2,-3]"), "what it says of a.b makes no sense"),
        (lambda data: data.replace(b"[2, 3]", b"[true]"), "what it says of a.b makes no sense"),
        (lambda data: data.replace(b'"a.b"', b'"c"  '), "two of its entries have one name"),
        (lambda data: data.replace(b'"a.b"', b'"\xff"  '), "x has a damaged list"),
        (lambda data: data.replace(b"[24, 34]", b"[14, 24]"), "its tensors overlap"),
        (lambda data: layouts.packed({}), "x holds no tensors"),
    ],
)
def test_a_damaged_file_is_refused(damage: object, says: str) -> None:
    damaged = damage(layouts.packed(WEIGHTS))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says):
        read_header(io.BytesIO(damaged), "x")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ([], "it lists no tensors"),
        ({}, "it has no weight_map"),
        ({"weight_map": []}, "it has no weight_map"),
        ({"weight_map": {"a": 7}}, "7 is no name of a part"),
        ({"weight_map": {"a": "../m-00001-of-00001.safetensors"}}, "is no name of a part"),
        ({"weight_map": {"a": "m-00001-of-00001.bin"}}, "is no name of a part"),
    ],
)
def test_a_damaged_index_is_refused(index: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_index(io.BytesIO(json.dumps(index).encode()), "m.safetensors.index.json")


def test_an_index_and_its_parts_say_the_same(tmp_path: Path) -> None:
    index = layouts.save_shards(tmp_path, WEIGHTS, 2)
    parts = sorted(path.name for path in tmp_path.glob("*.safetensors"))

    def read() -> set[str]:
        with index.open("rb") as file:
            return set(read_tensors(file, index.name, lambda part: (tmp_path / part).open("rb"), parts))

    assert read() == WEIGHTS.keys()
    other = parts.pop()
    with pytest.raises(CheckpointError, match=f"names {other}, which is not beside it"):
        read()
    parts.append(other)
    layouts.save(tmp_path / other, {"another": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"and {other} list different tensors"):
        read()


# ---- the same bytes as from the .pth


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_layout_gives_the_same_bytes(name: str, tmp_path: Path, settings: Settings) -> None:
    version, export, title = layouts.LAYOUTS[name]
    state = tiny.weights(version, layers=2, dtype=torch.float16)
    vocab = tiny.write_vocab(tmp_path / "vocab.txt")
    path = layouts.save(tmp_path / "m.safetensors", export(state))
    for outtype in ("f16", "f32"):
        assert made(path, tmp_path / "m.gguf", vocab=vocab, outtype=outtype) == expected(
            tmp_path, state, vocab, outtype
        )
    report = inspect(str(path), settings, vocab=str(vocab))
    assert (report.problem, report.layout, report.title) == ("", title, f"RWKV-{version} safetensors")
    assert (report.layers, report.width, report.heads, report.vocab_size) == (2, 128, 2, tiny.VOCAB_ROWS)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_is_a_model(parts: int, tmp_path: Path, settings: Settings) -> None:
    """With its own vocabulary and config.json, named after the folder; in parts, from its index."""
    state, folder = tiny.weights("7", layers=2), tmp_path / "My RWKV"
    folder.mkdir()
    tiny.write_vocab(folder / WORLD_FILE)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 1}))
    if parts > 1:
        layouts.save_shards(folder, layouts.fla_7(state), parts)
    else:
        layouts.save(folder / "model.safetensors", layouts.fla_7(state))
    (folder / "README.md").write_text("a card")
    assert made(folder, tmp_path / "m.gguf", vocab=None) == expected(tmp_path, state, folder / WORLD_FILE)
    report = inspect(str(folder), settings)
    assert (report.problem, report.layout, report.stem) == ("", "fla RWKV-7", "My RWKV")
    assert len(report.files) == (parts > 1) + parts + 2
    weights = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    assert report.size == weights


def test_a_users_vocabulary_goes_before_the_folders(tmp_path: Path) -> None:
    state, folder = tiny.weights("7"), tmp_path / "f"
    folder.mkdir()
    layouts.save(folder / "model.safetensors", state)
    tiny.write_vocab(folder / WORLD_FILE, tiny.vocab_tokens()[:300][::-1])
    own = tiny.write_vocab(tmp_path / "own.txt")
    assert made(folder, tmp_path / "m.gguf", vocab=own) == expected(tmp_path, state, own)


def test_a_tied_head_is_written(tmp_path: Path) -> None:
    state, vocab = tiny.weights("7"), tiny.write_vocab(tmp_path / "vocab.txt")
    tied = layouts.fla_7(state)
    del tied["lm_head.weight"]
    path = layouts.save(tmp_path / "m.safetensors", tied)
    both = state | {"head.weight": state["emb.weight"]}
    assert made(path, tmp_path / "m.gguf", vocab=vocab) == expected(tmp_path, both, vocab)


def test_nothing_is_left_out_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = layouts.save(tmp_path / "m.safetensors", layouts.fla_7_fused(tiny.weights("7")))
    with caplog.at_level(logging.WARNING, "ggufy"):
        made(path, tmp_path / "m.gguf", vocab=tiny.write_vocab(tmp_path / "vocab.txt"))
    assert not caplog.records


def test_the_reference_folder_gives_the_bytes_of_its_checkpoint(tmp_path: Path, settings: Settings) -> None:
    """Written by the PyPI package rwkv7-hf with the PyPI package safetensors."""
    folder = reference_file("rwkvcpp/derived/hf-tiny-7v0")
    vocab = reference_file("rwkvcpp/derived/byte.vocab.txt")
    checkpoint = reference_file("rwkvcpp/derived/tiny-rwkv-7v0-834K.pth")
    for outtype in ("f16", "bf16", "f32"):
        convert(checkpoint, tmp_path / "x.gguf", vocab=vocab, outtype=outtype, name="x")
        found = made(folder, tmp_path / "m.gguf", vocab=vocab, outtype=outtype)
        assert found == (tmp_path / "x.gguf").read_bytes()
    report = inspect(str(folder), settings, vocab=str(vocab))
    assert (report.problem, report.layout, report.stem) == ("", "fla RWKV-7", "hf-tiny-7v0")


# ---- what is refused


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"embedding_layer_norm_fused": True}, "says embedding_layer_norm_fused true"),
        ({"attn": {"layers": [1]}}, "says attn "),
        ({"norm_first": False}, "says norm_first false"),
        ({"norm_bias": False}, "says norm_bias false"),
        ({"value_dim": [128, 256]}, "says value_dim"),
        ({"hidden_size": 2048}, r"another model \(hidden_size is 2048, the tensors have 128\)"),
        ({"num_hidden_layers": 24}, "num_hidden_layers is 24"),
        ([], "config.json is damaged"),
        ({"attn": None, "norm_bias": True, "value_dim": [128, 128], "bos_token_id": 7}, ""),
    ],
)
def test_a_config_is_held_against_the_tensors(config: object, says: str, tmp_path: Path, settings: Settings) -> None:
    layouts.save(tmp_path / "model.safetensors", layouts.fla_7(tiny.weights("7")))
    tiny.write_vocab(tmp_path / WORLD_FILE)
    (tmp_path / "config.json").write_text(json.dumps(config))
    problem = inspect(str(tmp_path), settings).problem
    if not says:
        assert problem == ""
        return
    with pytest.raises(SourceError, match=says) as refused:
        made(tmp_path, tmp_path / "out.gguf", vocab=None)
    assert problem == str(refused.value)


def test_a_part_is_no_model(tmp_path: Path, settings: Settings) -> None:
    layouts.save_shards(tmp_path, tiny.weights("7"), 2)
    part = tmp_path / "model-00001-of-00002.safetensors"
    assert inspect(str(part), settings).problem.startswith(f"{part.name} is one part of several: give the folder")


def test_a_folder_of_several_asks_which(tmp_path: Path, settings: Settings) -> None:
    def problem() -> str:
        return inspect(str(tmp_path), settings).problem

    assert "is a folder: give a .pth file" in problem()
    layouts.save(tmp_path / "b.safetensors", tiny.weights("7"))
    layouts.save(tmp_path / "a.st", tiny.weights("7"))
    assert problem().endswith("holds 2 models: name one, for example a.st.")
    tiny.save(tmp_path / "c.pth", tiny.weights("7"))
    found = inspect(str(tmp_path), settings, vocab=str(tiny.write_vocab(tmp_path / "vocab.txt")))
    assert (found.path, found.problem) == ("c.pth", ""), "a .pth goes before what was made of it"


@pytest.mark.tools
def test_the_command_line_takes_a_folder(tmp_path: Path, ggufy: Ggufy) -> None:
    state, folder = tiny.weights("7", width=256), tmp_path / "my-rwkv"
    folder.mkdir()
    layouts.save_shards(folder, layouts.rwkv_rs(state), 2)
    tiny.write_vocab(folder / WORLD_FILE)
    done = ggufy("inspect", folder)
    assert done.code == 0 and "layout     rwkv-rs (linear_attn)" in done.out, done.err
    done = ggufy("quantize", folder, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "o")
    assert done.code == 0, done.err
    base = tmp_path / "o" / "my-rwkv-GGUF" / "my-rwkv-F16.gguf"
    convert(tiny.save(tmp_path / "x.pth", state), tmp_path / "x.gguf", vocab=folder / WORLD_FILE, name="my-rwkv")
    assert base.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    assert ggufy("convert", folder, tmp_path / "y.gguf").code == 0
    assert (tmp_path / "y.gguf").read_bytes() == base.read_bytes()


# ---- llama.cpp's own converter, of the layouts that it can read

_SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 384, "vocab_size": tiny.VOCAB_ROWS}
_CONFIGS = {
    "fla 7": {"architectures": ["RWKV7ForCausalLM"], "head_dim": 64, "norm_eps": 1e-5}
    | {
        f"{name}_low_rank_dim": rank
        for name, rank in zip(("decay", "a", "v", "gate"), tiny.RANKS_7.values(), strict=True)
    },
    "smerkyg": {"architectures": ["Rwkv7ForCausalLM"], "head_size": 64, "layer_norm_epsilon": 1e-5}
    | {
        f"lora_rank_{name}": rank
        for name, rank in zip(("decay", "iclr", "value_residual_mix", "gate"), tiny.RANKS_7.values(), strict=True)
    },
    "finch": {"architectures": ["Rwkv6ForCausalLM"], "head_size": 64, "layer_norm_epsilon": 1e-5, "rescale_every": 6},
}


@pytest.mark.tools
@pytest.mark.parametrize("layout", _CONFIGS)
def test_tensors_equal_the_official_converters(layout: str, tmp_path: Path, llama_source: Path) -> None:
    version, export, _ = layouts.LAYOUTS[layout]
    folder = tmp_path / "model"
    folder.mkdir()
    layouts.save(folder / "model.safetensors", export(tiny.weights(version, layers=2)))
    (folder / "config.json").write_text(json.dumps(_SIZES | _CONFIGS[layout]))
    tiny.write_vocab(folder / WORLD_FILE)
    official = run_converter(folder, llama_source, outtype="f16")
    made(folder, tmp_path / "x.gguf", vocab=None)
    found, expected = tensors_of(tmp_path / "x.gguf"), tensors_of(official)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_the_page_and_the_card_name_what_there_is(tmp_path: Path, settings: Settings) -> None:
    """The layout, if it is not BlinkDL's; and the digest of the file that is named, not of all together."""
    vocab = str(tiny.write_vocab(tmp_path / "vocab.txt"))
    shown = {}
    for name in ("plain", "fla 7"):
        path = layouts.save(tmp_path / f"{name}.safetensors", layouts.LAYOUTS[name][1](tiny.weights("7")))
        shown[name] = str(source_parts.report(inspect(str(path), settings, vocab=vocab), TEXTS["en"]))
    assert "layout: fla RWKV-7" in shown["fla 7"] and "RWKV-7 safetensors" in shown["fla 7"]
    assert "layout" not in shown["plain"]
    files = [
        SourceFile(path=name, size=1, sha256=digest * 32)
        for name, digest in (("a/model.safetensors", "ab"), ("a/config.json", "cd"))
    ]
    source = Source.of_files(files, kind="safetensors", model_id="o/a", revision="e" * 40)
    text = card(
        Job(request=Request(name="a", source=source, quant_types=("Q8_0",), outtype="f16")), CardFacts(uploaded={})
    )
    assert f"(`model.safetensors`, sha256 `{'ab' * 32}`, revision" in text
