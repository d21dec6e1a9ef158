"""Adapters: told by their tensors, and merged as their trainers' own programs merge them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggufy.core.errors import SourceError, UsageError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.models.adapter import Formula, check_fits, describe_adapter
from ggufy.models.adapter_config import parse_config
from ggufy.models.convert import convert
from ggufy.models.merge import OpenAdapter, merge, merge_adapters
from ggufy.models.origin import identity
from ggufy.sources.adapter import AdapterSearch, AdapterWish, pin_adapters, split_scale
from ggufy.sources.adapter_files import opened_adapters
from ggufy.sources.rwkv_pth import RwkvPth
from ggufy.system.settings import Settings
from tests import adapters, tiny
from tests.reference import reference_file

DATA = "rwkvcpp"
SEARCH = AdapterSearch(Settings.from_env({}))
SHAPES = {"blocks.0.att.key.weight": (8, 8), "blocks.0.ffn.key.weight": (24, 8), "blocks.0.ffn.value.weight": (8, 24)}
SHAPES |= {"blocks.0.ln1.weight": (8,), "blocks.0.att.w1": (8, 4), "emb.weight": (16, 8), "head.weight": (16, 8)}


# ---- the formulas, one value at a time


def by_hand(formula: Formula, w: np.ndarray, parts: list[np.ndarray], scale: float) -> np.ndarray:
    """Each formula as it is written, in F64, without a single product of matrices but numpy's."""
    out, columns = w.shape
    match formula:
        case Formula.LORA:
            return w + scale * parts[1] @ parts[0]
        case Formula.DORA:
            v = w + scale * parts[1] @ parts[0]
            return parts[2] * v / (np.sqrt((v**2).sum(0, keepdims=True)) + 1e-6)
        case Formula.PISSA:
            return w - parts[3] @ parts[2] + parts[1] @ parts[0]
        case Formula.ROWS:
            d = parts[0]
            return np.array([[w[o, i] + d[i % len(d), o % d.shape[1]] for i in range(columns)] for o in range(out)])
        case _:
            d, found = parts[0], w.copy()
            r = d.shape[-1]
            for a in range(out // r):
                for b in range(columns // r):
                    block = np.s_[a * r : (a + 1) * r, b * r : (b + 1) * r]
                    one = d[b if formula is Formula.COLUMN_BLOCKS else a]
                    found[block] = w[block] + w[block] @ one + one
            return found


@pytest.mark.fast
@pytest.mark.parametrize(
    ("formula", "shapes"),
    [
        (Formula.LORA, [(3, 8), (12, 3)]),
        (Formula.DORA, [(3, 8), (12, 3), (1, 8)]),
        (Formula.PISSA, [(3, 8), (12, 3), (2, 8), (12, 2)]),
        (Formula.ROWS, [(4, 12)]),
        (Formula.ROWS, [(5, 12)]),  # 5 does not divide 8
        (Formula.ROWS, [(4, 3)]),  # 3 columns stand for 12
        (Formula.COLUMN_BLOCKS, [(2, 4, 4)]),
        (Formula.ROW_BLOCKS, [(3, 4, 4)]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_formula(formula: Formula, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    base = adapters.random(12, 8, seed=9).to(dtype)
    before, parts = base.clone(), [adapters.random(*shape, seed=n) * 5 for n, shape in enumerate(shapes)]
    found = merge(formula, base, parts, 0.75)
    assert found.dtype == torch.float32 and torch.equal(base, before)
    wide = [part.double().numpy() for part in parts]
    np.testing.assert_allclose(found.numpy(), by_hand(formula, base.double().numpy(), wide, 0.75), atol=2e-6)


# ---- what an adapter is


def lora_of(layer: str, out: int = 8, columns: int = 8, r: int = 2) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lora_A": (r, columns), f"{layer}.lora_B": (out, r)}


KINDS: dict[str, tuple[dict[str, tuple[int, ...]], str, int]] = {
    "LoRA": (lora_of("blocks.0.att.key"), "LoRA", 2),
    "LoRA of rwkv.cpp": ({f"{k}.weight": v for k, v in lora_of("blocks.0.att.key").items()}, "LoRA", 2),
    "LoRA of Lightning": ({f"model.{k}": v for k, v in lora_of("blocks.0.att.key").items()}, "LoRA", 2),
    "LoRA of PEFT": (
        {f"base_model.model.{k}.default.weight": v for k, v in lora_of("blocks.0.att.key").items()},
        "LoRA",
        2,
    ),
    "LoRA and vectors": (lora_of("blocks.0.ffn.key", out=24) | {"blocks.0.ln1.weight": (8,)}, "LoRA", 2),
    "LoRA of transformers": (lora_of("rwkv.blocks.0.attention.key"), "LoRA", 2),
    "LoRA of fla": (lora_of("base_model.model.model.layers.0.attn.k_proj"), "LoRA", 2),
    "LoRA of fla, rows and columns exchanged": (lora_of("model.layers.0.attn.w_lora.lora.0", out=4), "LoRA", 2),
    "LoRA of rwkv-rs": (lora_of("layers.0.linear_attn.k_proj"), "LoRA", 2),
    "DoRA": (lora_of("blocks.0.att.key") | {"blocks.0.att.key.lora_M": (1, 8)}, "DoRA", 2),
    "PiSSA": (
        lora_of("blocks.0.att.key")
        | {"model.blocks.0.att.key.init_lora_A": (2, 8), "model.blocks.0.att.key.init_lora_B": (8, 2)},
        "PiSSA",
        2,
    ),
    "Bone": ({"blocks.0.ffn.key.bone": (3, 24)}, "Bone", 3),
    "Bone bat": ({"blocks.0.ffn.key.bone": (2, 4, 4)}, "Bone bat", 4),
    "DiSHA": ({"blocks.0.ffn.value.disha": (24, 8)}, "DiSHA", 24),
    "DiSHA bat": ({"blocks.0.att.key.disha": (2, 4, 4)}, "DiSHA bat", 4),
    "MiSS": ({"base_model.model.blocks.0.ffn.value.miss_block": (5, 8)}, "MiSS", 5),
    "MiSS bat": ({"blocks.0.ffn.key.miss_block": (6, 4, 4)}, "MiSS bat", 4),
    "only vectors": ({"blocks.0.ln1.weight": (1, 1, 8)}, "whole tensors", 0),
}


@pytest.mark.fast
@pytest.mark.parametrize("case", KINDS)
def test_a_kind(case: str) -> None:
    shapes, kind, rank = KINDS[case]
    adapter = describe_adapter(shapes, "a")
    assert (adapter.kind, adapter.rank) == (kind, rank)
    check_fits(adapter, SHAPES)
    assert adapter.parts.keys() <= SHAPES.keys()
    turned = [target for target, part in adapter.parts.items() if part.transposed]
    assert turned == (["blocks.0.att.w1"] if "exchanged" in case else [])


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "nothing": ({}, "holds no tensors"),
    "a state": ({"blocks.0.att.time_state": (1, 8, 8)}, "is a tuned state and no adapter"),
    "a state with an adapter": (lora_of("blocks.0.att.key") | {"blocks.0.att.time_state": (1, 8, 8)}, "time_state"),
    "a model": (SHAPES, "is a whole model and no adapter: give it as the source"),
    "half a LoRA": ({"blocks.0.att.key.lora_A": (2, 8)}, "only blocks.0.att.key.lora_A, which makes no adapter"),
    "two kinds in one layer": (
        lora_of("blocks.0.att.key") | {"blocks.0.att.key.bone": (2, 8)},
        "makes no adapter that ggufy knows",
    ),
    "PEFT's DoRA": (
        lora_of("blocks.0.att.key") | {"blocks.0.att.key.lora_magnitude_vector": (8,)},
        "lora_magnitude_vector, which belongs to no tensor",
    ),
    "the same twice": (lora_of("blocks.0.att.key") | lora_of("model.blocks.0.att.key"), "twice"),
    "ranks that differ": (
        {"blocks.0.att.key.lora_A": (2, 8), "blocks.0.att.key.lora_B": (8, 3)},
        r"does not fit .*lora_B is 8 x 3",
    ),
    "no rank": (lora_of("blocks.0.att.key", r=0), "the shape 0 x 8, which no adapter has"),
    "another width": (lora_of("blocks.0.att.key", columns=16), "does not fit this model"),
    "more blocks": (lora_of("blocks.7.att.key"), "a model of 8 blocks or more, and this one has 1"),
    "another architecture": (lora_of("blocks.0.att.gate"), "blocks.0.att.gate.lora_A, which belongs to no tensor"),
    "a vector": (lora_of("blocks.0.ln1"), "does not fit this model"),
    "a whole tensor of another size": (
        lora_of("blocks.0.att.key") | {"blocks.0.ln1.weight": (9,)},
        "blocks.0.ln1.weight is 9, and the model's blocks.0.ln1.weight is 8",
    ),
    "Bone of September 2024, 2-D": ({"blocks.0.ffn.key.bone": (2, 4)}, "does not fit this model"),
    "Bone that may be of September 2024": ({"blocks.0.att.key.bone": (2, 4, 4)}, "may be the Bone of September 2024"),
    "Bone of rows": ({"blocks.0.ffn.key.bone": (6, 4, 4)}, "does not fit this model"),
    "MiSS of columns": ({"blocks.0.ffn.key.miss_block": (2, 4, 4)}, "does not fit this model"),
    "blocks that do not fit": ({"blocks.0.att.key.disha": (2, 3, 3)}, "does not fit this model"),
    "fla's tensors that hold six": (lora_of("layers.0.attn.x_proj.0.linear"), "belongs to no tensor"),
    "a name that steers terminals": (lora_of("\x1b[2J"), r"\\x1b\[2J.lora_A, which belongs to no tensor"),
}


@pytest.mark.fast
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_adapter_or_another_models(case: str) -> None:
    shapes, says = REFUSED[case]
    with pytest.raises(SourceError, match=says) as caught:
        check_fits(describe_adapter(shapes, "a"), SHAPES)
    assert str(caught.value).isprintable()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "of the type IA3"),
        ({"use_dora": True}, "was trained with use_dora"),
        ({"rank_pattern": {"key": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"key": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"bias": "all"}, "with bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_weights": ["bat"]}, "init_weights"),
        ({"r": 0}, "makes no sense"),
        ({"r": True}, "makes no sense"),
        ({"lora_alpha": "16"}, "makes no sense"),
        ({"lora_alpha": 1e300}, "makes no sense"),
        ({"lora_alpha": float("nan")}, "makes no sense"),
        ({"init_weights": "mini", "mini_r": -1}, "makes no sense"),
        ({"peft_type": "x" * 5000}, "cannot merge"),
    ],
)
def test_a_configuration_that_would_have_to_be_merged_in_another_way(config: dict[str, Any], says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        parse_config(json.dumps(adapters.CONFIG | config).encode(), "a")
    assert len(str(caught.value)) < 400


@pytest.mark.fast
@pytest.mark.parametrize(
    "text", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}", b" " * (5 << 20)]
)
def test_a_configuration_that_is_none(text: bytes) -> None:
    with pytest.raises(SourceError, match="makes no sense"):
        parse_config(text, "a")


@pytest.mark.fast
def test_alpha_is_asked_for_and_never_guessed() -> None:
    adapter = describe_adapter(lora_of("blocks.0.att.key", r=8), "mine")
    with pytest.raises(
        UsageError, match="mine is a LoRA of rank 8 .* --lora with :SCALE behind its name, .* or --lora-alpha"
    ):
        adapter.scale(None, None)
    assert adapter.scale(None, 32) == 4
    assert adapter.scale(0.5, 32) == 0.5, "what was said of this very adapter counts"
    own = parse_config(json.dumps(adapters.CONFIG).encode(), "a")
    stabilized = parse_config(json.dumps(adapters.CONFIG | {"use_rslora": True}).encode(), "a")
    assert (own.scale, stabilized.scale) == (3, 6)
    assert describe_adapter(lora_of("blocks.0.att.key"), "a", own).scale(None, None) == 3
    mixed = describe_adapter(lora_of("blocks.0.att.key", r=8) | lora_of("blocks.0.ffn.key", out=24, r=4), "a")
    with pytest.raises(UsageError, match="of rank 4 / 8"):
        mixed.scale(None, 32)
    with pytest.raises(UsageError, match="has no scale"):
        describe_adapter({"blocks.0.ffn.key.bone": (3, 24)}, "a").scale(2.0, None)
    assert describe_adapter({"blocks.0.ffn.key.bone": (3, 24)}, "a").scale(None, 32) == 1


@pytest.mark.fast
def test_a_scale_stands_behind_a_colon() -> None:
    assert split_scale("a/b:c.pth:2") == ("a/b:c.pth", 2.0)
    assert split_scale("a/b:c.pth") == ("a/b:c.pth", None)
    assert split_scale("a.pth:-1.5e-1") == ("a.pth", -0.15)
    for wrong in ("a.pth:0", "a.pth:1e7", "a.pth:1e999"):
        with pytest.raises(UsageError, match="is no scale for an adapter"):
            split_scale(wrong)


# ---- converting with them


def pinned(*texts: str, alpha: float | None = None, init: str = "") -> list[Any]:
    return [one for one, _ in pin_adapters(AdapterWish(texts=texts, alpha=alpha, init=init), SEARCH, RwkvPth())]


def converted(source: Path, vocab: Path, target: Path, *texts: str, **options: Any) -> bytes:
    with opened_adapters(pinned(*texts, **options), target.parent, SEARCH) as opened:
        convert(source, target, outtype="f32", vocab=vocab, name="x", adapters=opened)
    return target.read_bytes()


@pytest.mark.parametrize("version", ["6", "7"])
def test_the_same_bytes_as_from_a_model_that_torch_has_merged(tmp_path: Path, version: str) -> None:
    """Two adapters, in their order: a LoRA with retrained vectors, and one of PEFT after it."""
    state, vocab = tiny.weights(version, dtype=torch.bfloat16), tiny.write_vocab(tmp_path / "v.txt")
    source = tiny.save(tmp_path / "m.pth", state)
    first = adapters.lora(state) | {"blocks.1.ln1.weight": torch.full((128,), 2.0)}
    second = adapters.lora(state, seed=5, end=".weight")
    tiny.save(tmp_path / "a.pth", first)
    folder = adapters.save_folder(tmp_path / "b", second)
    state = adapters.merged(state, first, 2.0)
    state = adapters.merged(state, {name.removesuffix(".weight"): one for name, one in second.items()}, 3.0)
    expected = converted(tiny.save(tmp_path / "e.pth", state), vocab, tmp_path / "e.gguf")
    assert converted(source, vocab, tmp_path / "x.gguf", str(tmp_path / "a.pth"), str(folder), alpha=8) == expected
    other = converted(source, vocab, tmp_path / "y.gguf", str(folder), f"{tmp_path / 'a.pth'}:2")
    assert other != expected, "the vectors are the same, but sums of F32 depend on their order"


@pytest.mark.fast
def test_parts_of_other_layouts_are_merged_where_they_belong() -> None:
    state = tiny.weights("7")
    a, b, vector = adapters.random(4, 128), adapters.random(24, 4), adapters.random(128, seed=3)
    held = Held({
        "base_model.model.model.layers.1.attn.w_lora.lora.0.lora_A.weight": a,
        "base_model.model.model.layers.1.attn.w_lora.lora.0.lora_B.weight": b,
        "base_model.model.model.layers.1.attn_norm.weight": vector,
        "base_model.model.model.layers.1.attn.w_lora.lora.2.weight": adapters.random(128, 24),
    })  # fmt: skip
    adapter = describe_adapter(held.shapes, "a")
    found = merge_adapters(identity({n: tuple(t.shape) for n, t in state.items()}), [held.opened(adapter, 0.5)])
    decay = found["blocks.1.att.w1"].make
    assert decay is not None and found["blocks.1.ln1.weight"].make is not None
    torch.testing.assert_close(decay(state["blocks.1.att.w1"]), state["blocks.1.att.w1"] + 0.5 * (b @ a).T)
    assert torch.equal(found["blocks.1.ln1.weight"].make(), vector)
    assert found["blocks.1.ln1.weight"].sources == (), "what is replaced is not fetched"
    assert torch.equal(found["blocks.1.att.w2"].make(), adapters.random(128, 24).T)  # type: ignore[misc]
    assert found["blocks.0.att.key.weight"].make is None


class Held:
    """Tensors in memory, as an open file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.name = "held"
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def release(self, name: str) -> None:
        pass

    def opened(self, adapter: Any, scale: float) -> OpenAdapter:
        return OpenAdapter(adapter=adapter, scale=scale, files=[self])


@pytest.mark.fast
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_none_are_the_adapters_fault(tmp_path: Path, value: float) -> None:
    state = tiny.weights("7")
    adapter = adapters.lora(state)
    adapter["blocks.1.ffn.key.lora_B"][3, 1] = value
    tiny.save(tmp_path / "a.pth", adapter)
    vocab = tiny.write_vocab(tmp_path / "v.txt")
    with pytest.raises(SourceError, match=r"^a holds NaN or infinite values in blocks.1.ffn.key.lora_B: its training"):
        converted(tiny.save(tmp_path / "m.pth", state), vocab, tmp_path / "x.gguf", f"{tmp_path / 'a.pth'}:1")
    assert not list(tmp_path.glob("x.gguf*"))


@pytest.mark.fast
def test_a_pissa_needs_what_it_began_with(tmp_path: Path) -> None:
    state = tiny.weights("7")
    own, init = adapters.lora(state), adapters.lora(state, seed=7)
    begun = {f"model.{name.replace('.lora_', '.init_lora_')}": tensor for name, tensor in init.items()}
    (tmp_path / "run").mkdir()
    path, other = tiny.save(tmp_path / "run" / "pissa-3.pth", own), tiny.save(tmp_path / "begun.pth", begun)
    with pytest.raises(SourceError, match="pissa-3 seems to be a PiSSA, .* --lora-init, or put it beside"):
        pinned(str(path))
    given = pinned(str(path), init=str(other))
    beside = tmp_path / "run" / "init_pissa.pth"
    beside.write_bytes(other.read_bytes())
    found = pinned(str(path))
    assert [(one.kind, one.scale) for one in (*given, *found)] == [("PiSSA", 1.0)] * 2
    assert found[0].init.path == str(beside) and found[0].key == given[0].key
    with pytest.raises(UsageError, match="no adapter here needs alpha"):
        pinned(str(path), alpha=8)
    with pytest.raises(UsageError, match="belongs to one adapter"):
        pinned(str(path), f"{path}:2", init=str(other))
    with pytest.raises(SourceError, match="hold the same tensors"):
        pinned(str(path), init=str(path))
    vocab, source = tiny.write_vocab(tmp_path / "v.txt"), tiny.save(tmp_path / "m.pth", state)
    for name, tensor in own.items():
        if name.endswith("lora_A"):
            layer, b = f"{name.removesuffix('.lora_A')}.weight", f"{name[:-1]}B"
            state[layer] = -(init[b] @ init[name]) + state[layer] + own[b] @ tensor
    expected = converted(tiny.save(tmp_path / "e.pth", state), vocab, tmp_path / "e.gguf")
    assert converted(source, vocab, tmp_path / "x.gguf", str(path)) == expected


@pytest.mark.fast
def test_what_is_named_as_an_adapter_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "g.pth").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "zero.pth").write_bytes(b"")
    for text, says in {
        str(tmp_path / "empty"): "there is no adapter .*/empty/adapter_model.safetensors",
        str(tmp_path / "none.pth"): "there is no adapter",
        str(tmp_path / "g.pth"): "is a GGUF: give the adapter as it was trained",
        str(tmp_path / "zero.pth"): "is empty",
        "https://example.org/a.pth": "is not the address of a model on the Hub",
    }.items():
        with pytest.raises(SourceError, match=says):
            pinned(text)
    with pytest.raises(UsageError, match="--lora-alpha and --lora-init say more of an adapter"):
        pinned(alpha=8)
    with pytest.raises(UsageError, match="a number above 0"):
        pinned(str(tmp_path / "none.pth"), alpha=float("nan"))


# ---- what the trainers' own programs make of them

FILES = {
    "lora": "peft-7v0-lora.pth",
    "pissa": "peft-7v0-pissa.pth",  # with peft-7v0-pissa_init.pth beside it
    "bone": "peft-7v0-bone.pth",
    "bone_bat": "peft-7v0-bone_bat.pth",
    "disha": "peft-7v0-disha.pth",
    "disha_bat": "peft-7v0-disha_bat.pth",
    "hfpeft-lora": "hfpeft-lora",
    "hfpeft-rslora": "hfpeft-rslora",
    "hfpeft-miss": "hfpeft-miss",
    "hfpeft-miss-bat": "hfpeft-miss-bat",
}
ALPHAS = {"lora": 32}


def merged_reference(model: str, adapter: str, alpha: float | None = None) -> dict[str, torch.Tensor]:
    """A model of the data with an adapter of it, merged here."""
    path = reference_file(f"{DATA}/derived/tiny-rwkv-{model}.pth")
    one = pinned(str(reference_file(f"{DATA}/derived/adapters/{adapter}")), alpha=alpha)
    with opened_adapters(one, path.parent, SEARCH) as opened, open_checkpoint(path) as file:
        origins = merge_adapters(identity(file.shapes), opened)
        return {
            name: (origin.make(*map(file.tensor, origin.sources)) if origin.make else file.tensor(name)).clone()
            for name, origin in origins.items()
        }


@pytest.mark.parametrize("case", FILES)
def test_the_matrices_that_the_trainers_scripts_make(case: str) -> None:
    known = np.load(reference_file(f"{DATA}/reference/peft-7v0.npz"))
    state = merged_reference("7v0-834K", FILES[case], ALPHAS.get(case))
    names = [name for name in known if name.startswith(f"{case}/blocks")]
    assert len(names) == 3
    own = torch.load(reference_file(f"{DATA}/derived/adapters/peft-7v0-pissa.pth"), weights_only=True)
    for name in names:
        expected, found = torch.tensor(known[name]), state[name.partition("/")[2]]
        if case == "pissa":  # its script rounds to bf16 twice: W - B0 A0, and the result
            layer = name.partition("/")[2].removesuffix(".weight")
            rest = expected - own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]
            assert ((found - expected).abs() <= (rest.abs() + expected.abs()) * 2**-8).all()
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Reads what to run from stdin: for each checkpoint the logits after `"in`. `eps` of v5's group norm is rwkv.cpp's.
ENGINE = """
import json, sys
import numpy as np, torch
from rwkv.model import RWKV

norm, eps = torch.nn.functional.group_norm, float(sys.argv[3])
torch.nn.functional.group_norm = lambda *given, **named: norm(*given, **(named | {"eps": eps}))
found = {}
for path in json.loads(sys.argv[1]):
    model, state = RWKV(model=path, strategy="cpu fp32"), None
    for token in b'"in':
        logits, state = model.forward([token], state)
    found[path] = logits.float().numpy()
np.savez(sys.argv[2], **found)
"""


def logits(states: Mapping[str, Mapping[str, torch.Tensor]], folder: Path, version: str) -> dict[str, np.ndarray]:
    """What the package `rwkv` on PyPI says after three tokens."""
    paths = {name: str(tiny.save(folder / f"{name}.pth", dict(state)))[:-4] for name, state in states.items()}
    switches = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": str(int(version == "7"))}
    eps = "1e-5" if version == "5" else "64e-5"
    command = [sys.executable, "-c", ENGINE, json.dumps(list(paths.values())), str(folder / "l.npz"), eps]
    subprocess.run(command, env=os.environ | switches | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    found = np.load(folder / "l.npz")
    return {name: found[path] for name, path in paths.items()}


def test_an_adapter_is_merged_before_the_upgrade(tmp_path: Path) -> None:
    """RWKV-5.2 becomes RWKV-6 on the way; the adapter knows it as it was."""
    vocab = reference_file(f"{DATA}/derived/byte.vocab.txt")
    merged = tiny.save(tmp_path / "merged.pth", merged_reference("5v2-730K", "lora-5v2.pth", 32))
    expected = converted(merged, vocab, tmp_path / "e.gguf")
    source, lora = (
        reference_file(f"{DATA}/derived/{name}.pth") for name in ("tiny-rwkv-5v2-730K", "adapters/lora-5v2")
    )
    assert converted(source, vocab, tmp_path / "x.gguf", f"{lora}:4") == expected


def test_the_logits_of_models_that_the_trainers_scripts_merge(tmp_path: Path) -> None:
    known = np.load(reference_file(f"{DATA}/reference/peft-7v0.npz"))
    found = logits(
        {case: merged_reference("7v0-834K", file, ALPHAS.get(case)) for case, file in FILES.items()}, tmp_path, "7"
    )
    for case, values in found.items():
        near = 5e-3 if case == "pissa" else 1e-5
        np.testing.assert_allclose(values, known[f"{case}/logits3"], rtol=0, atol=near, err_msg=case)


@pytest.mark.parametrize(("version", "model"), [("4", "4v0-660K"), ("5", "5v2-730K"), ("7", "7v0-834K")])
def test_the_logits_of_models_that_rwkv_cpp_merges(tmp_path: Path, version: str, model: str) -> None:
    known = np.load(reference_file(f"{DATA}/reference/lora.npz"))
    short = model.partition("-")[0]
    found = logits({"m": merged_reference(model, f"lora-{short}.pth", 32)}, tmp_path, version)
    np.testing.assert_allclose(found["m"], known[f"{short}-FP32/logits3"], rtol=0, atol=1e-5)
