"""Quantization errors by type, against the formula with gguf-py's own quantization, and the file that keeps them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from ggufy.core.errors import DiskError
from ggufy.formats.gguf import GgufHead, TensorInfo
from ggufy.quantize.search import loss
from ggufy.quantize.search.allocate import allocate
from ggufy.quantize.search.analysis import Analysis
from ggufy.quantize.search.loss import Kernels, LossTable, relative_error, sampled
from ggufy.quantize.search.roles import prior

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


class Counting:
    """gguf-py's quantization, which knows no imatrix, and a count of its calls."""

    def __init__(self, build: str = "gguf-py"):
        self.calls = 0
        self.kernels = Kernels(quantize=self.quantize, build=build)

    def quantize(self, rows: np.ndarray, kind: str, weights: np.ndarray | None) -> np.ndarray:
        assert rows.dtype == np.float32 and rows.flags.c_contiguous
        assert weights is None or (weights.dtype == np.float32 and weights.shape == rows.shape[1:])
        self.calls += 1
        return quants.quantize(rows, GGMLQuantizationType[kind]).view(np.uint8)


def written_out(rows: np.ndarray, kind: str, v: np.ndarray) -> float:
    """The formula, one weight after the other, over a Q8_0 or Q4_0 that is written out too."""
    noise = energy = 0.0
    for row in rows.tolist():
        for start in range(0, len(row), 32):
            block = row[start : start + 32]
            extreme = max(block, key=abs)
            scale = np.float32(abs(extreme) / 127 if kind == "Q8_0" else extreme / -8)
            stored = float(np.float16(scale))
            for j, w in enumerate(block, start=start):
                steps = np.float32(w) * (np.float32(1) / scale)
                if kind == "Q8_0":
                    q = math.copysign(math.floor(abs(steps) + 0.5), steps) * stored
                else:
                    q = (min(15, math.floor(steps + np.float32(8.5))) - 8) * stored
                noise += v[j] * (q - w) ** 2
                energy += v[j] * w**2
    return noise / energy


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_the_error_is_that_of_the_formula(kind: str) -> None:
    rows = normal(6, 128)
    importance = np.random.default_rng(1).lognormal(0, 1, 128).astype(np.float32)
    for weights in (None, importance):
        v = np.ones(128) if weights is None else weights
        made = relative_error(rows[None], kind, None if weights is None else weights[None], kernels=Counting().kernels)
        assert made == pytest.approx(written_out(rows, kind, v), rel=1e-5)


def test_matrices_are_weighed_by_their_own_imatrix() -> None:
    tensor, importance = normal(3, 8, 64), np.random.default_rng(2).lognormal(0, 1, (3, 64)).astype(np.float32)
    kernels = Counting().kernels
    made = relative_error(tensor, "Q4_0", importance, kernels=kernels)
    noise = energy = 0.0
    for matrix, v in zip(tensor, importance, strict=True):
        share = (matrix.astype(np.float64) ** 2 @ v).sum()
        energy += share
        noise += share * relative_error(matrix[None], "Q4_0", v[None], kernels=kernels)
    assert made == pytest.approx(noise / energy)


def spiked(width: int, *, times: float) -> np.ndarray:
    """Importances about 1, of which the first is so many times their median."""
    v = np.random.default_rng(4).uniform(0.5, 1.5, width).astype(np.float32)
    v[0] = np.float32(times) * np.median(v)
    return v


def test_a_few_massive_inputs_do_not_speak_for_all_others() -> None:
    """Weights whose first column is exact in Q4_0, while all others are as they are."""
    rows = normal(8, 64)
    rows[:, :32] *= np.float32(1e-3)
    rows[:, 0] = -0.5  # the scale of its block, exact; what is left of the block becomes 0
    kernels = Counting().kernels

    def error(times: float) -> float:
        return relative_error(rows[None], "Q4_0", spiked(64, times=times)[None], kernels=kernels)

    v = np.minimum(spiked(64, times=1e6), 100 * np.median(spiked(64, times=1e6)))
    assert error(1e6) == error(1e4) == pytest.approx(written_out(rows, "Q4_0", v), rel=1e-5)
    plain = spiked(64, times=99)
    assert error(99) == pytest.approx(written_out(rows, "Q4_0", plain), rel=1e-5)
    assert error(1e6) > 50 * written_out(rows, "Q4_0", spiked(64, times=1e6))


def test_columns_that_no_input_reached_do_not_lower_the_cap() -> None:
    v = np.zeros(64, dtype=np.float32)
    v[:5] = (1, 1, 1, 50, 1e9)
    rows = normal(4, 64)
    capped = np.minimum(v, 100)
    assert relative_error(rows[None], "Q4_0", v[None], kernels=Counting().kernels) == pytest.approx(
        written_out(rows, "Q4_0", capped), rel=1e-5
    )


def test_what_was_kept_before_inputs_were_capped_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything measured again that the cap leaves as it was: RWKV's tables stay."""
    tensor, path = normal(8, 64), tmp_path / "losses.jsonl"
    usual, massive = spiked(64, times=99), spiked(64, times=1e6)
    with monkeypatch.context() as before:
        before.setattr(loss, "MOST_IMPORTANCE", math.inf)
        old = LossTable(path, Counting().kernels)
        kept = [old.measure(tensor, ["Q4_0"], importance=v)["Q4_0"] for v in (usual, massive)]
    table = LossTable(path, Counting().kernels)
    assert table.measure(tensor, ["Q4_0"], importance=usual)["Q4_0"] == kept[0] and table.measured == 0
    assert table.measure(tensor, ["Q4_0"], importance=massive)["Q4_0"] != kept[1] and table.measured == 1


def test_more_bits_lose_less() -> None:
    made = [relative_error(normal(1, 64, 256), kind, None, kernels=Counting().kernels) for kind in TYPES]
    assert made == sorted(made, reverse=True)
    assert made[0] == pytest.approx(0.0085, rel=0.2) and 0 < made[-2] < 1e-6 and made[-1] == 0


def test_tensors_of_zeros_and_what_is_not_finite() -> None:
    zeros = np.zeros((1, 4, 32), dtype=np.float32)
    kernels = Counting().kernels
    assert relative_error(zeros, "Q8_0", None, kernels=kernels) == 0
    assert relative_error(normal(1, 4, 32), "Q8_0", np.zeros((1, 32), dtype=np.float32), kernels=kernels) > 0
    broken = Kernels(quantize=kernels.quantize, dequantize=lambda data, kind: np.full(128, np.nan, "f4"), build="")
    assert relative_error(zeros, "Q8_0", None, kernels=broken) == math.inf
    wrong = Kernels(quantize=kernels.quantize, dequantize=lambda data, kind: np.ones(128, "f4"), build="")
    assert relative_error(zeros, "Q8_0", None, kernels=wrong) == math.inf


def test_rows_are_sampled_evenly() -> None:
    tensor = np.repeat(np.arange(1000, dtype=np.float16)[:, None], 32, axis=1)
    taken = sampled(tensor, 32 * 100)
    assert taken.shape == (1, 100, 32) and taken.dtype == np.float32
    assert np.array_equal(taken[0, :, 0], np.arange(0, 1000, 10))
    assert sampled(tensor, 1).shape == (1, 16, 32)
    assert sampled(tensor, 1 << 30).shape == (1, 1000, 32)
    assert sampled(tensor[:3]).shape == (1, 3, 32)
    experts = sampled(tensor.reshape(10, 100, 32), 32 * 200)
    assert experts.shape == (10, 20, 32) and experts[3, 0, 0] == 300


def test_the_sample_stands_for_the_whole(tmp_path: Path) -> None:
    tensor = normal(4096, 256) * np.random.default_rng(3).lognormal(0, 0.5, (4096, 1)).astype(np.float32)
    kernels = Counting().kernels
    part = LossTable(tmp_path / "part", kernels, count=1 << 17).measure(tensor, ["Q4_0", "Q8_0"])
    whole = LossTable(tmp_path / "whole", kernels, count=1 << 30).measure(tensor, ["Q4_0", "Q8_0"])
    assert part == {kind: pytest.approx(loss, rel=0.03) for kind, loss in whole.items()}


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    path, tensor, first = tmp_path / "cache" / "loss.jsonl", normal(64, 64), Counting()
    importance = np.arange(1, 65, dtype=np.float32)
    table = LossTable(path, first.kernels)
    made = table.measure(tensor, TYPES, importance=importance)
    assert table.measure(tensor.astype(np.float64), TYPES, importance=importance) == made
    assert first.calls == table.measured == len(TYPES) == len(path.read_text().splitlines())
    again = Counting()
    assert LossTable(path, again.kernels).measure(tensor, [*TYPES, "Q8_0"], importance=importance) == made
    assert again.calls == 0


def test_what_changes_the_error_is_measured_anew(tmp_path: Path) -> None:
    path, tensor = tmp_path / "loss.jsonl", normal(64, 64)
    LossTable(path, Counting().kernels).measure(tensor, ["Q8_0"])
    changed = tensor.copy()
    changed[0, 0] += 1e-3
    for kernels, rows, importance in (
        (Counting("newer").kernels, tensor, None),
        (Counting().kernels, changed, None),
        (Counting().kernels, tensor.reshape(32, 128), None),
        (Counting().kernels, tensor, np.ones(64, dtype=np.float32)),
    ):
        table = LossTable(path, kernels)
        table.measure(rows, ["Q8_0"], importance=importance)
        assert table.measured == 1


def test_types_that_do_not_fit_the_width_are_left_out(tmp_path: Path) -> None:
    made = LossTable(tmp_path / "loss.jsonl", Counting().kernels).measure(normal(8, 96), ["Q8_0", "Q4_K", "F16"])
    assert set(made) == {"Q8_0", "F16"}


@pytest.mark.parametrize(
    "rest", [b'{"key": "abc Q4', b"\xff\xfe\n", b"null\n{}\n[1]\n\n", b'{"key": "x", "loss": "?"}\n']
)
def test_a_damaged_end_costs_that_line_only(tmp_path: Path, rest: bytes) -> None:
    path, tensor = tmp_path / "loss.jsonl", normal(16, 64)
    made = LossTable(path, Counting().kernels).measure(tensor, ["Q8_0", "Q4_0"])
    path.write_bytes(path.read_bytes() + rest)
    more = LossTable(path, Counting().kernels)
    assert more.measure(tensor, ["Q8_0", "Q4_0", "Q5_0"]).items() >= made.items()
    assert more.measured == 1
    last = LossTable(path, Counting().kernels)
    last.measure(tensor, ["Q8_0", "Q4_0", "Q5_0"])
    assert last.measured == 0


def test_an_infinite_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "loss.jsonl"
    broken = Kernels(
        quantize=Counting().quantize, dequantize=lambda data, kind: np.full(256, np.inf, "f4"), build="broken"
    )
    for expected in (1, 0):
        table = LossTable(path, broken)
        assert table.measure(normal(4, 64), ["Q8_0"]) == {"Q8_0": math.inf}
        assert table.measured == expected
    assert json.loads(path.read_text())["loss"] is None


KILLED = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_loss import Counting, TYPES, normal
from ggufy.quantize.search.loss import LossTable
table = LossTable(Path(sys.argv[1]), Counting().kernels)
for seed in range(10_000):
    table.measure(normal(32, 64, seed=seed), TYPES)
    print(seed, flush=True)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, here = tmp_path / "loss.jsonl", Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path, here],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(here.parent)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "5":
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    table = LossTable(path, Counting().kernels)
    for seed in range(6):
        table.measure(normal(32, 64, seed=seed), TYPES)
    assert table.measured == 0


def test_threads_share_a_table(tmp_path: Path) -> None:
    path, counting = tmp_path / "loss.jsonl", Counting()
    table = LossTable(path, counting.kernels)
    tensors = [normal(16, 64, seed=seed) for seed in range(8)]
    threads = [threading.Thread(target=table.measure, args=(tensor, TYPES)) for tensor in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.measured == len(path.read_text().splitlines()) == len(tensors) * len(TYPES)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    table = LossTable(tmp_path / "loss.jsonl", Counting().kernels)
    table.path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match="the disk is full while writing loss.jsonl"):
        table.measure(normal(16, 64), ["Q8_0"])


def test_from_errors_to_a_recipe(tmp_path: Path) -> None:
    """All parts together: the more a tensor matters and the more it loses, the more bits it gets."""
    shapes = {"token_embd.weight": (64, 320), "output.weight": (64, 320), "blk.0.time_mix_decay_w1.weight": (64, 32)}
    shapes |= {f"blk.{b}.time_mix_{x}.weight": (64, 64) for b in range(3) for x in ("key", "value", "output")}
    infos = {n: TensorInfo(name=n, shape=s, type="F32", offset=0, size=4 * math.prod(s)) for n, s in shapes.items()}
    head = GgufHead(metadata={}, tensors=infos, metadata_end=0, data_start=0, file_size=0)
    table = LossTable(tmp_path / "loss.jsonl", Counting().kernels)
    losses = {
        name: table.measure(normal(*reversed(shape), seed=seed), TYPES)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    choices = Analysis(head=head, losses=losses, probes={}, proxies={}, flat={}).options(prior(shapes))
    q8 = next(option for option in choices["output.weight"] if option.type == "Q8_0")
    assert q8.size == 64 * 320 * 34 // 32 and q8.cost < choices["output.weight"][0].cost
    smallest = sum(min(option.size for option in row) for row in choices.values())
    made = allocate(choices, int(smallest * 1.3))
    bits = {name: TYPES.index(kind) for name, kind in made.recipe.items()}
    assert bits["token_embd.weight"] > bits["blk.2.time_mix_key.weight"]
    assert bits["blk.0.time_mix_value.weight"] >= bits["blk.1.time_mix_key.weight"]
    lost = {"output.weight": {"Q8_0": math.inf}}
    assert Analysis(head=head, losses=lost, probes={}, proxies={}, flat={}).options(prior(shapes)) == {
        "output.weight": []
    }
