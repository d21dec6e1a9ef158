"""Layouts of others: every one gives BlinkDL's tensors back, and what is no RWKV that can be converted is named."""

from __future__ import annotations

import pytest
import torch

from ggufy.core.errors import CheckpointError
from ggufy.models.layouts import origins_of, recognize
from ggufy.models.origin import shapes_of
from ggufy.models.registry import detect
from tests import layouts, tiny

pytestmark = pytest.mark.fast


def shapes(state: layouts.State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_layout_gives_blinkdls_tensors_back(name: str) -> None:
    version, export, title = layouts.LAYOUTS[name]
    state = tiny.weights(version, layers=3, dtype=torch.float16)
    other = export(state)
    found = recognize(shapes(other))
    assert found.title == title
    assert detect(shapes_of(found.origins)).leftovers(shapes_of(found.origins)) == []
    for key, tensor in state.items():
        origin = found.origins[key]
        stored = [other[source] for source in origin.sources]
        made = origin.make(*stored) if origin.make else stored[0]
        assert tuple(made.shape) == origin.shape
        assert torch.equal(made.squeeze(), tensor.squeeze()), key
    unread = {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}
    assert set(found.origins) - set(state) <= unread


@pytest.mark.parametrize("version", ["4", "5.2"])
def test_older_ones_have_their_names_back(version: str) -> None:
    words = ["time_decay", "time_mix_k", "time_mix_v", "time_mix_r"] + ["time_mix_g", "time_faaaa"] * (version != "4")
    state = {f"blocks.0.att.{word}": torch.zeros(2, 4) for word in words} | {"emb.weight": torch.zeros(9, 8)}
    state |= {"blocks.0.ffn.time_mix_k": torch.zeros(8), "blocks.0.ln0.weight": torch.zeros(8)}
    assert origins_of(shapes(layouts.spelt_out("rwkv.")(state))).keys() - {"head.weight"} == state.keys()
    assert origins_of(shapes(layouts.web_rwkv(state))).keys() - {"head.weight"} == state.keys()


def test_a_tied_head_is_the_embedding() -> None:
    state = layouts.fla_7(tiny.weights("7"))
    del state["lm_head.weight"]
    origins = origins_of(shapes(state))
    assert origins["head.weight"].sources == origins["emb.weight"].sources == ("model.embeddings.weight",)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["base_model.model.blocks.0.att.key.lora_A.weight"], "this is an adapter, not a model: give its base model"),
        (["base_model.model.blocks.0.att.key.miss_block"], "this is an adapter"),
        (["blocks.0.att.key.bone"], "this is an adapter"),
        (["model.layers.0.self_attn.time_mixer.k_k", "model.embed_tokens.weight"], "this is ARWKV"),
        (["model.layers.0.self_attn.time_maa_w1"], "this is RWKV6Qwen2"),
        (["model.emb.weight", "rwkv7.embeddings.weight"], "are both emb.weight"),
        (["module.emb.weight", "_orig_mod.emb.weight"], "are both emb.weight"),
        (["emb.weight", "blocks.0.att.key.lora_A"], r"an adapter \(blocks\.0\.att\.key\.lora_A\) that is not merged"),
        (["base_model.model.emb.weight", "base_model.model.blocks.0.att.key.lora_A.default.weight"], "is not merged"),
    ],
)
def test_what_cannot_be_read_is_named(names: list[str], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        origins_of(dict.fromkeys(names, (4, 4)))


def test_a_transformer_with_linear_attention_is_no_rwkv() -> None:
    """Qwen3.5's is called `linear_attn` too."""
    names = ["model.layers.0.linear_attn.in_proj_qkv.weight", "model.layers.0.mlp.gate_proj.weight"]
    with pytest.raises(CheckpointError, match="not an RWKV checkpoint"):
        detect(shapes_of(origins_of(dict.fromkeys(names, (4, 4)))))
