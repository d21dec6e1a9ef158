"""The tool that measures the tables: what it makes of a record of `ggufy mix`, and of one tiny model."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.formats.gguf import read_head
from ggufy.llama.install import Llama
from ggufy.models.rwkv6 import RWKV6
from ggufy.models.rwkv7 import RWKV7
from ggufy.quantize.search.roles import groups, roles, sensitivity
from ggufy.system.settings import Settings
from tests import tiny
from tools.measure_mixes import keys, measured_harmless, probed_tables


@pytest.mark.parametrize("most", [10, 17, 26])
def test_a_record_becomes_tables_that_give_every_group_its_c_back(tmp_path: Path, most: int) -> None:
    head = read_head(tiny.converted(tmp_path, "7", outtype="f16", width=256, layers=4))
    matrices = {name: tensor.elements for name, tensor in head.tensors.items() if len(tensor.shape) == 2}
    weights = {
        name: n for name, n in matrices.items() if not name.startswith(("blk.0.time_mix_v1", "blk.0.time_mix_v2"))
    }  # nobody reads it
    made = groups(weights, all_names=head.tensors, most=most)
    measured = {group: 1e-7 * (1 + i) for i, group in enumerate(made)}
    printed = probed_tables(head, measured)
    assert printed == probed_tables(head, {"mode": "thorough", "sensitivities": measured})
    tables = ast.literal_eval("{" + printed.replace("sensitivities=", "'s': ").replace("measured_at=", "'m': ") + "}")
    table, sizes = tables["s"], tables["m"]
    reference = replace(RWKV7, sensitivities=table, measured_at=sizes).reference
    assert {key.split("@")[0] for key in table} == set(reference) and "other" not in table
    found = roles(head.tensors)
    for group, names in made.items():
        for name in names if group != "other" else ():
            assert sensitivity(found[name], table) == pytest.approx(1e9 * measured[group], rel=0.01)
            assert reference[found[name].name] == weights[name]
    assert not [key for key in keys(RWKV6.sensitivities) if key.endswith(("@rest", "@middle"))]


@pytest.mark.tools
def test_low_rank_roles_are_measured_one_by_one(tmp_path: Path, llama: Llama) -> None:
    base = tiny.converted(tmp_path, "7", outtype="f16", width=256, layers=2)
    text = tmp_path / "text.txt"
    text.write_text("it's the text of a test and nothing else\n" * 200)
    found = measured_harmless(base, llama, Settings.from_env(), text=text, chunks=2)
    assert {*RWKV7.harmless, "low_rank_decay", " + ".join(RWKV7.harmless), "stock Q6_K"} == set(found)
    assert all(map(math.isfinite, found.values()))
    assert found[" + ".join(RWKV7.harmless)] < found["stock Q6_K"]
