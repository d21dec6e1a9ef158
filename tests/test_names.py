"""What a checkpoint is, from the names and shapes of its tensors alone."""

from __future__ import annotations

import re

import pytest

from ggufy.core.errors import CheckpointError
from ggufy.models.registry import detect
from tests import tiny


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_missing_tensor_is_named(version: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.weights(version).items()}
    assert detect(shapes).parameters == sum(tensor.numel() for tensor in tiny.weights(version).values())
    for name in shapes:
        with pytest.raises(CheckpointError, match=rf"the checkpoint has no tensor {re.escape(name)}:"):
            detect({other: shape for other, shape in shapes.items() if other != name})


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_wrong_shape_is_refused(version: str) -> None:
    """A size that others are derived from shows at the first of those; all others by their own name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.weights(version).items()}
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            for wrong in (0, size + 2):
                with pytest.raises(CheckpointError, match=r"has the shape .* (expected|matrix)|not a multiple"):
                    detect(shapes | {name: (*shape[:axis], wrong, *shape[axis + 1 :])})
    with pytest.raises(
        CheckpointError, match=r"blocks\.1\.att\.key\.weight has the shape 128 x 64, but 128 x 128 was"
    ):
        detect(shapes | {"blocks.1.att.key.weight": (128, 64)})


V7A = ("emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight", "blocks.0.ffn.s0")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["emb.weight", "blocks.0.att.time_mix_k", "blocks.0.att.time_first"], "this is RWKV-4, .* no matrix"),
        (["emb.weight", "blocks.0.att.time_mix_k", "blocks.0.att.ln_x.weight"], "this is RWKV-5, .* has no gate"),
        ([*V7A], r"this is RWKV-7a, an RWKV-7 with DeepEmbed, for which llama\.cpp has no graph"),
        ([*V7A, "blocks.0.qkv.k_emb.weight"], "this is RWKV-7b, an RWKV-7 with DeepEmbed and DeepEmbedAttention"),
        (["emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.enn.weight"], "this is RWKV-8, with an embedding of every"),
        (["emb.weight", "blocks.0.ffn.enn.weight", "blocks.0.qkv.ennk.weight"], "this is RWKV-8 hybrid"),
        (["blocks.0.att.time_state", "blocks.1.att.time_state"], "this is a tuned state, .* `ggufy state`"),
        (["emb.weight", "blocks.0.att.other"], "a variety of RWKV that ggufy does not know"),
        (
            ["model.embed_tokens.weight", "lm_head.weight"],
            r"not an RWKV checkpoint \(its first tensors are model.embed",
        ),
        (["model.blocks.0.att.r_k"], "not an RWKV checkpoint"),
    ],
)
def test_other_models_are_named(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        detect({name: (64, 64) for name in names})
