"""A .pth in every shape that people have makes the GGUF of the plain one, or is refused by what it is."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import TokenType

from ggufy.core.errors import CheckpointError, VocabError
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.models.convert import convert
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.models.vocab import gguf_tokens, vocab_for
from ggufy.sources import hub
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - a fixture
from tests.reference import reference_file

pytestmark = pytest.mark.fast

State = dict[str, torch.Tensor]
OLD = {"_use_new_zipfile_serialization": False}


def under(*prefixes: str) -> Callable[[State], State]:
    """All names with these before them, the first outermost."""
    return lambda state: {"".join(prefixes) + name: one for name, one in state.items()}


def shared(state: State) -> State:
    """Views of one storage, with something before them."""
    whole, parts, at = torch.cat([torch.zeros(5), *(one.flatten() for one in state.values())]), {}, 5
    for name, one in state.items():
        parts[name], at = whole[at : at + one.numel()].view(one.shape), at + one.numel()
    return parts


def turned(state: State) -> State:
    return {name: one.t().contiguous().t() if one.ndim == 2 else one for name, one in state.items()}


def with_ones(state: State) -> State:
    """Dimensions of 1 where some trainers have them, none where others have not."""
    return {name: one[None, None] if name.endswith("r_k") else one.squeeze() for name, one in state.items()}


def first_values(state: State) -> State:
    """Block 0's v0, v1, v2, which BlinkDL's files have and nothing reads."""
    return state | {f"blocks.0.att.{name}": torch.full((1, 1, 128), torch.nan) for name in ("v0", "v1", "v2")}


def buffers(state: State) -> State:
    return state | {"blocks.0.att.time_shift.weight": torch.zeros(0)}


def with_state(state: State) -> State:
    return state | {f"blocks.{block}.att.time_state": torch.ones(2, 64, 64) for block in range(2)}


# Name: what is saved instead of the state dict, and how.
SHAPES: dict[str, tuple[Callable[[State], Any], dict[str, Any]]] = {
    "torch.compile": (under("_orig_mod."), {}),
    "DDP": (under("module."), {}),
    "DeepSpeed, Lightning": (under("_forward_module.", "model."), {}),
    "all": (under("_forward_module.", "module.", "_orig_mod.", "model."), {}),
    "twice": (lambda state: state | under("_forward_module.")({n: one + 1 for n, one in state.items()}), {}),
    "wrapped": (lambda state: {"state_dict": under("model.")(state), "epoch": 3, "callbacks": {"x": [1, None]}}, {}),
    "with an optimizer": (lambda state: {"optimizer": {"state": {0: {"step": torch.ones(())}}}, "model": state}, {}),
    "deepspeed's own": (lambda state: {"module": state, "ds_version": "0.15.0", "dp_world_size": 1}, {}),
    "beside a count": (lambda state: state | {"step": torch.tensor(1200), "_version": 0.7}, {}),
    "sorted, ordered": (lambda state: OrderedDict(sorted(state.items())), {}),
    "parameters": (lambda state: {name: torch.nn.Parameter(one) for name, one in state.items()}, {}),
    "views": (shared, {}),
    "not contiguous": (turned, {}),
    "ones": (with_ones, {}),
    "first values": (first_values, {}),
    "empty buffers": (buffers, {}),
    "a tuned state": (with_state, {}),
    "before PyTorch 1.6": (lambda state: shared(turned(state)), OLD),
    "wrapped, before PyTorch 1.6": (lambda state: {"model": under("_orig_mod.")(state), "epoch": 1}, OLD),
    "pickle protocol 4": (lambda state: state, {"pickle_protocol": 4}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A vocabulary, and the GGUF of the plain checkpoint."""
    folder = tmp_path_factory.mktemp("plain")
    source, vocab = tiny.checkpoint(folder, "7")
    convert(source, folder / "x.gguf", vocab=vocab, name="x")
    return vocab, (folder / "x.gguf").read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", ["here", "there"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_the_gguf_is_the_plain_ones(
    shape: str, place: str, plain: tuple[Path, bytes], tmp_path: Path, local_hub: LocalHub
) -> None:
    (change, options), (vocab, expected) = SHAPES[shape], plain
    torch.save(change(tiny.weights("7")), path := tmp_path / "x.pth", **options)
    assert inspect(str(path), Settings.from_env({}), vocab=str(vocab)).problem == ""
    if place == "here":
        convert(path, tmp_path / "x.gguf", vocab=vocab, name="x")
    else:
        repo = f"alice/shapes-{list(SHAPES).index(shape)}"
        local_hub.put(repo, "x.pth", path.read_bytes())
        file = open_streamed(hub.resolve(repo, endpoint=local_hub.endpoint), endpoint=local_hub.endpoint)
        convert_streamed(file, origins_of(file.shapes), tmp_path / "x.gguf", vocab=vocab, name="x")
    assert (tmp_path / "x.gguf").read_bytes() == expected


def test_types_beside_each_other(plain: tuple[Path, bytes], tmp_path: Path) -> None:
    """Matrices in F16 and bf16, vectors in F32 and F64: each value as if all were F64."""
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    state = {name: one.to(kinds[number % 4]) for number, (name, one) in enumerate(tiny.weights("7").items())}
    made = []
    for name, content in (("mixed", state), ("plain", {name: one.double() for name, one in state.items()})):
        convert(tiny.save(tmp_path / f"{name}.pth", content), tmp_path / f"{name}.gguf", vocab=plain[0], name="x")
        made.append((tmp_path / f"{name}.gguf").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("tied", ["same storage", "no head"])
def test_a_tied_head_is_the_embedding(
    tied: str, plain: tuple[Path, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tiny.weights("7")
    state["head.weight"] = state["emb.weight"].clone()
    convert(tiny.save(tmp_path / "x.pth", state), tmp_path / "plain.gguf", vocab=plain[0], name="x")
    del state["head.weight"]
    if tied == "same storage":
        state["head.weight"] = state["emb.weight"]
    with caplog.at_level(logging.WARNING, "ggufy"):
        convert(tiny.save(tmp_path / "y.pth", state), tmp_path / "tied.gguf", vocab=plain[0], name="x")
    assert ("it has no head of its own: the embedding's values are taken" in caplog.text) == (tied == "no head")
    assert (tmp_path / "tied.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize("rows", [65536, 65664, 66048, 66554])
def test_padded_rows_have_unused_tokens(rows: int) -> None:
    texts, types = gguf_tokens(vocab_for(rows, None), rows)
    assert len(texts) == len(types) == rows
    assert set(types[65530:]) == {TokenType.UNUSED} and TokenType.UNUSED not in types[:65530]
    assert texts[65530:] == [f"[PAD{number}]".encode() for number in range(65530, rows)]


def test_a_model_that_speaks_has_tokens_of_its_own(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "x.pth", tiny.weights("7", width=64, layers=1, vocab=78000, dtype=torch.bfloat16))
    with pytest.raises(VocabError, match="78000 rows, 12470 more than the World .*for speech perhaps; .*--vocab"):
        convert(source, tmp_path / "x.gguf")
    assert "for speech perhaps" in inspect(str(source), Settings.from_env({})).problem


def adapter(state: State) -> State:
    """LoRA of the keys."""
    pairs = {name.removesuffix("weight"): one.shape for name, one in state.items() if name.endswith("att.key.weight")}
    ends = (("lora_A", 1), ("lora_B", 0))
    return {f"{name}{end}": torch.ones(8, shape[axis]) for name, shape in pairs.items() for end, axis in ends}


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "LoRA": (adapter, r"this is an adapter, not a model: give its base model, and the adapter with --lora"),
    "LoRA of Lightning": (lambda w: under("model.")(adapter(w)), "this is an adapter"),
    "Bone": (lambda w: {"blocks.0.att.key.bone": torch.ones(8, 128)}, "this is an adapter"),
    "DiSHA": (lambda w: {"blocks.0.att.key.disha": torch.ones(8, 128)}, "this is an adapter"),
    "MiSS": (lambda w: {"base_model.model.blocks.0.att.key.miss_block": torch.ones(8, 128)}, "this is an adapter"),
    "not merged": (lambda w: w | adapter(w), r"an adapter \(blocks\.0\.att\.key\.lora_A\) that is not merged into it"),
    "state": (
        lambda w: {f"blocks.{i}.att.time_state": torch.ones(2, 64, 64) for i in range(2)},
        "this is a tuned state, not a model: .* with `ggufy state`",
    ),
    "wrapped state": (
        lambda w: {"state_dict": {f"model.blocks.{i}.att.time_state": torch.ones(2, 64, 64) for i in range(2)}},
        "this is a tuned state",
    ),
    "DeepEmbed": (lambda w: w | {"blocks.0.ffn.s_emb.weight": torch.ones(320, 8)}, "RWKV-7a, .* no graph"),
    "unknown": (
        lambda w: under("_orig_mod.")(w | {"blocks.1.att.new": torch.ones(3)}),
        r"blocks\.1\.att\.new belongs to no RWKV-7: .* or a variety of RWKV that ggufy does not know",
    ),
    "stray block": (
        lambda w: w | {"blocks.2.att.key.weight": torch.ones(128, 128)},
        r"the checkpoint has no tensor blocks\.2\.ln1\.weight",
    ),
    "for a strategy": (
        lambda w: w | {"_strategy": "cuda fp16i8", "_version": "0.7"},
        "take the .pth that it was made",
    ),
    "of two wrappers": (
        lambda w: under("module.")(w) | under("_orig_mod.")(w),
        r"module\.emb\.weight and _orig_mod\.emb\.weight are both emb\.weight",
    ),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_is_no_model_is_called_what_it_is(shape: str, plain: tuple[Path, bytes], tmp_path: Path) -> None:
    change, message = REFUSED[shape]
    source = tiny.save(tmp_path / "x.pth", change(tiny.weights("7")))
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "x.gguf", vocab=plain[0])
    assert inspect(str(source), Settings.from_env({}), vocab=str(plain[0])).problem
    assert not (tmp_path / "x.gguf").exists()


def test_research_of_the_author_is_no_model() -> None:
    source = reference_file("models/not-rwkv/260123_reverse_L2_only_rwkv7.pth")
    problem = inspect(str(source), Settings.from_env({})).problem
    assert problem.startswith("this is not an RWKV checkpoint (its first tensors are e.weight, ")


@pytest.mark.parametrize("name", ["6v0-1m", "7v0-834K"])
def test_trained_models_of_others_in_every_wrapper(name: str, tmp_path: Path) -> None:
    """Their head sizes and ranks are not ours: 8 and 64, 32 and 64."""
    source = reference_file(f"rwkvcpp/derived/tiny-rwkv-{name}.pth")
    vocab = reference_file("rwkvcpp/derived/byte.vocab.txt")
    convert(source, tmp_path / "x.gguf", vocab=vocab, name="x")
    state = torch.load(source, weights_only=True)
    tiny.save(tmp_path / "y.pth", {"model": under("_orig_mod.")(turned(state)), "epoch": 1})  # type: ignore[dict-item]
    convert(tmp_path / "y.pth", tmp_path / "y.gguf", vocab=vocab, name="x")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
