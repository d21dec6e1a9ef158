"""Roles, depths and groups from the names of RWKV-6, RWKV-7 and transformers."""

from __future__ import annotations

import math

import pytest

from ggufy.models.registry import ARCHITECTURES, of_tensors
from ggufy.models.rwkv6 import RWKV6
from ggufy.models.rwkv7 import RWKV7
from ggufy.quantize.search import roles
from ggufy.quantize.search.roles import Depth, Role, groups, sensitivity
from tests import tiny

LLAMA = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def rwkv(version: str, layers: int = 24) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a 1.6B."""
    return {plan.name: plan.shape for plan in tiny.hyperparameters(version, layers=layers, F=7168).tensors()}


def matrices(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """The tensors that llama-quantize makes smaller, with their number of weights."""
    return {name: math.prod(shape) for name, shape in shapes.items() if min(shape) >= 2048 and len(shape) == 2}


def llama(*, layers: int = 32, tied: bool = False, stems: tuple[str, ...] = LLAMA) -> dict[str, int]:
    whole = {"token_embd.weight": 1 << 28} | ({} if tied else {"output.weight": 1 << 28})
    return whole | {f"blk.{block}.{stem}.weight": 1 << 24 for block in range(layers) for stem in stems}


def test_the_matrices_of_rwkv() -> None:
    for version, table, expected in (("6", RWKV6, 8), ("7", RWKV7, 6)):
        found = roles.roles(rwkv(version))
        names = {found[name].name for name in matrices(rwkv(version))}
        assert names - {"embedding", "head"} < {name.split("@")[0] for name in table.sensitivities}
        assert len(names) == expected + 2
        assert found["token_embd.weight"] == Role(name="embedding", depth=Depth.NONE)
        assert found["output.weight"].key == "head"
        assert found["blk.0.time_mix_output.weight"].key == "time_mix_output@first"
        assert found["blk.1.time_mix_value.weight"].key == "time_mix_value@middle"
        assert found["blk.23.channel_mix_key.weight"].key == "channel_mix_key@last"


def test_the_low_rank_matrices_are_told_apart_by_version() -> None:
    six, seven = roles.roles(rwkv("6")), roles.roles(rwkv("7"))
    assert six["blk.3.time_mix_w1.weight"].name == "low_rank_mix"
    assert six["blk.3.time_mix_decay_w2.weight"].name == "low_rank_decay"
    assert seven["blk.3.time_mix_w1.weight"].name == "low_rank_decay"
    assert [seven[f"blk.3.time_mix_{x}2.weight"].name for x in "avg"] == [
        "low_rank_rate", "low_rank_value", "low_rank_gate",
    ]  # fmt: skip
    for version, found, pairs in (("6", six, 2), ("7", seven, 4)):
        low = {name for name, role in found.items() if role.low_rank}
        assert len(low) == 24 * 2 * pairs, version
        assert not low & matrices(rwkv(version)).keys()


def test_what_is_a_vector_is_no_low_rank_matrix() -> None:
    found = roles.roles(rwkv("7"))
    assert not any(found[f"blk.1.time_mix_{stem}.weight"].low_rank for stem in ("w0", "k_k", "lerp_fused", "ln"))


@pytest.mark.parametrize(("layers", "depths"), [(1, "first"), (2, "first last"), (4, "first middle middle last")])
def test_depth(layers: int, depths: str) -> None:
    found = roles.roles(llama(layers=layers))
    assert [found[f"blk.{block}.attn_q.weight"].depth for block in range(layers)] == depths.split()


def test_transformers() -> None:
    found = roles.roles([*llama(), "blk.0.attn_norm.weight", "output_norm.weight", "rope_freqs.weight"])
    assert of_tensors(found) is None
    assert {found[f"blk.9.{stem}.weight"].name for stem in LLAMA} == set(LLAMA)
    assert found["output_norm.weight"].name == "output_norm"
    tied = roles.roles(llama(tied=True))
    assert tied["token_embd.weight"].name == "tied_embedding"


def test_the_nearest_sensitivity_is_taken() -> None:
    table = {"ffn_down": 4.0, "ffn_down@first": 9.0, "head": 2.0, "attn_q": 1.0}
    middle, first = Depth.MIDDLE, Depth.FIRST
    assert sensitivity(Role(name="ffn_down", depth=first), table) == 9
    assert sensitivity(Role(name="ffn_down", depth=middle), table) == 4
    assert sensitivity(Role(name="ffn_down_exps", depth=first), table) == 9
    assert sensitivity(Role(name="tied_embedding", depth=Depth.NONE), table) == 2
    assert sensitivity(Role(name="ssm_in", depth=middle), table) == pytest.approx((4 * 9 * 2 * 1) ** 0.25)
    assert sensitivity(Role(name="ssm_in", depth=middle), {}) == 1


# What llama.cpp calls the matrices of a block of families that are converted here.
FAMILIES = {
    "llama, qwen2, qwen3": LLAMA,
    "gemma3": (*LLAMA, "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
    "phi3": ("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    "mixtral": (*LLAMA[:4], "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    "qwen2moe": (*LLAMA[:4], "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp", "ffn_down_shexp"),
    "deepseek2": ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", *LLAMA[4:]),
    "old mixtral": (*LLAMA[:4], "ffn_gate.0", "ffn_gate.1", "ffn_up.0", "ffn_up.1", "ffn_down.0", "ffn_down.1"),
    "lfm2, jamba": ("shortconv.in_proj", "shortconv.out_proj", "ssm_in", "ssm_out", *LLAMA[4:]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_family_has_a_row(family: str) -> None:
    names = llama(layers=3, stems=FAMILIES[family])
    found = roles.roles(names)
    for name, role in found.items():
        known = any(one in roles._TRANSFORMER for one in roles._names(role))
        assert known != (role.name.endswith("norm") or role.name == "ffn_gate_inp"), name
    assert all(value > 0 and math.isfinite(value) for value in roles.transferred(names).values())


@pytest.mark.parametrize("version", "67")
def test_the_matrices_of_a_hybrid_count_as_those_of_rwkv_that_they_stand_for(version: str) -> None:
    mixing = {n: math.prod(s) for n, s in rwkv(version, layers=3).items() if "channel_mix" not in n and n != "output"}
    hybrid = mixing | {f"blk.{b}.ffn_{x}.weight": 2048 * 7168 for b in range(3) for x in ("gate", "up", "down")}
    whole = {n: math.prod(s) for n, s in rwkv(version, layers=3).items()}
    c, own = roles.transferred(hybrid), roles.transferred(whole)
    for b in range(3):
        assert c[f"blk.{b}.ffn_up.weight"] == pytest.approx(own[f"blk.{b}.channel_mix_key.weight"])
        assert c[f"blk.{b}.ffn_down.weight"] == pytest.approx(own[f"blk.{b}.channel_mix_value.weight"])
        assert c[f"blk.{b}.time_mix_value.weight"] == pytest.approx(own[f"blk.{b}.time_mix_value.weight"])


def test_what_nobody_knows_counts_as_the_mean_of_the_others() -> None:
    names = llama(layers=2, stems=(*LLAMA, "no_such_thing"))
    c = roles.transferred(names)
    known = sorted(c[name] for name in names if "no_such" not in name)
    assert known[0] < c["blk.1.no_such_thing.weight"] < known[-1]


def test_every_prior_is_of_a_role_that_models_have() -> None:
    tables = {one.name: one.sensitivities for one in ARCHITECTURES} | {"": roles._TRANSFORMER}
    assert all(value > 0 and math.isfinite(value) for table in tables.values() for value in table.values())
    models = {"rwkv6": [rwkv("6")], "rwkv7": [rwkv("7")], "": [llama(), llama(tied=True)]}
    for name, table in tables.items():
        found = [role for names in models[name] for role in roles.roles(names).values()]
        known = {role.key for role in found} | {role.name for role in found} | {"attn_qkv"}
        assert set(table) <= known


def covered(made: dict[str, list[str]], weights: dict[str, int]) -> bool:
    names = [name for group in made.values() for name in group]
    return sorted(names) == sorted(weights)


@pytest.mark.parametrize(("version", "count"), [("6", 26), ("7", 20)])
def test_every_role_and_depth_is_a_group_of_rwkv(version: str, count: int) -> None:
    shapes = rwkv(version)
    made = groups(matrices(shapes), all_names=shapes)
    assert len(made) == count and covered(made, matrices(shapes))
    assert made["time_mix_value@first"] == ["blk.0.time_mix_value.weight"]
    assert len(made["time_mix_value@middle"]) == 22
    assert made["head"] == ["output.weight"]


def test_with_few_probes_the_least_important_are_joined_first() -> None:
    weights = matrices(rwkv("6"))
    assert set(groups(weights, most=10)) == {
        "embedding", "head", "time_mix_value", "time_mix_output", "time_mix_gate", "time_mix_receptance",
        "time_mix_key", "channel_mix_key", "channel_mix_value", "channel_mix_receptance",
    }  # fmt: skip
    fewer = groups(weights, most=25)
    assert "channel_mix_receptance@rest" in fewer and "time_mix_value@last" in fewer
    seven = groups(matrices(rwkv("7")), all_names=rwkv("7"), most=10)
    assert {key for key in seven if "@" in key} == {
        "time_mix_output@first", "time_mix_output@rest", "channel_mix_key@first", "channel_mix_key@rest",
    }  # fmt: skip
    assert "other" in groups(weights, most=9)


@pytest.mark.parametrize("most", range(1, 30))
def test_any_number_of_groups_covers_every_tensor_once(most: int) -> None:
    experts = (*LLAMA, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ssm_in", "ssm_out")
    for weights in (matrices(rwkv("6")), llama(layers=2), llama(layers=1), llama(stems=experts)):
        made = groups(weights, most=most)
        assert len(made) <= most and covered(made, weights)


def test_there_is_at_least_one_group() -> None:
    with pytest.raises(ValueError, match="at least one"):
        groups(llama(), most=0)
