"""The engine with covariances: threads, kills, siblings, what stays plain, and whether llama.cpp takes the files."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ggufy.core.errors import CalibrationError, Cancelled
from ggufy.formats.covariance import Covariance, CovarianceFacts, CovarianceFile, write_covariances
from ggufy.formats.gguf import read_head
from ggufy.llama.ggml import F32Array, Ggml
from ggufy.quantize import layout
from ggufy.quantize.compensated import decoded, output_error
from ggufy.quantize.engine import quantize
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.task import ROUNDING, Made, QuantizeTask
from ggufy.system.control import Control
from tests import covariances, small, tiny

ROOT = Path(__file__).parent.parent
Q4_K_M = 15
SHAPES = {
    "token_embd.weight": (64, 512),
    "output_norm.weight": (499,),
    "output.weight": (1500, 512),
    "blk.0.ffn_up.weight": (2200, 512),
    "blk.0.ffn_down.weight": (512, 768),
    "blk.1.ffn_up.weight": (300, 512),
    "blk.1.ffn_down.weight": (7, 768),
}
CHILD = """
import sys
from pathlib import Path
from ggufy.llama.ggml import Ggml
from ggufy.quantize.engine import quantize
from ggufy.system.control import Control
from tests.test_compensated_runs import order_of
base, target, folder = map(Path, sys.argv[1:])
control = Control(limit=lambda: 2, duty=lambda: 0.3, report=lambda fraction: print(fraction, flush=True))
quantize(order_of(base, target), control, ggml=Ggml(folder))
"""


@pytest.fixture(scope="module")
def ggml(llama_bin: Path) -> Ggml:
    return Ggml(llama_bin)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.matrices(tmp_path_factory.mktemp("base") / "base.gguf", SHAPES, scale=0.1)


def order_of(base: Path, target: Path, **changes: object) -> QuantizeTask:
    recipe = {name: "Q4_K" if "up" in name else "Q5_0" for name, shape in SHAPES.items() if len(shape) > 1}
    order = QuantizeTask(
        base=base, target=target, recipe=recipe, ftype=Q4_K_M, covariances=covariances.of_matrices(base)
    )
    return replace(order, **changes)  # type: ignore[arg-type]


def make(order: QuantizeTask, ggml: Ggml, threads: int = 2) -> Made:
    return quantize(order, Control(limit=lambda: threads), ggml=ggml)


@pytest.fixture(scope="module")
def made(base: Path, ggml: Ggml) -> Path:
    target = base.with_name("made.gguf")
    make(order_of(base, target), ggml, threads=1)
    return target


def weights(path: Path, name: str) -> F32Array:
    head = read_head(path)
    tensor = head.tensors[name]
    data = path.read_bytes()[head.data_start + tensor.offset :][: tensor.size]
    if tensor.type == "F32":
        return np.frombuffer(data, dtype=np.float32).reshape(tensor.shape[::-1])
    return decoded(np.frombuffer(data, dtype=np.uint8), tensor.type).reshape(tensor.shape[::-1])


def error(base: Path, quant: Path, name: str) -> float:
    known = covariances.of_matrices(base).get(name)
    assert known is not None
    return output_error(np.ascontiguousarray(weights(base, name) - weights(quant, name)), known.held_out)


def test_all_matrices_with_a_covariance_err_less_in_the_same_bytes(
    base: Path, made: Path, ggml: Ggml, tmp_path: Path
) -> None:
    plain = order_of(base, tmp_path / "plain.gguf", covariances=None)
    make(plain, ggml)
    head, other = read_head(made), read_head(plain.target)
    assert {n: (t.type, t.size) for n, t in head.tensors.items()} == {
        n: (t.type, t.size) for n, t in other.tensors.items()
    }
    for name in covariances.of_matrices(base).names():
        assert error(base, made, name) <= 0.5 * error(base, plain.target, name), name
    assert np.array_equal(weights(made, "token_embd.weight"), weights(plain.target, "token_embd.weight"))
    assert head.metadata[ROUNDING].startswith("compensated ") and ROUNDING not in other.metadata
    assert head.metadata.keys() - other.metadata.keys() == {ROUNDING}


def test_bytes_do_not_depend_on_threads_or_what_torch_is_told(
    base: Path, made: Path, ggml: Ggml, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    for threads, told in ((3, 2), (2, 1)):
        torch.set_num_threads(told)
        order = order_of(base, tmp_path / f"{threads}.gguf")
        make(order, ggml, threads)
        assert torch.get_num_threads() == told
        assert order.target.read_bytes() == made.read_bytes()
    torch.set_num_threads(before)


def test_a_kill_costs_nothing_that_was_whole(
    base: Path, made: Path, ggml: Ggml, llama_bin: Path, tmp_path: Path
) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    command = [sys.executable, "-c", CHILD, str(base), str(order.target), str(llama_bin)]
    for kill_at in (0.0, 0.3):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            while float(child.stdout.readline()) < kill_at:
                pass
            child.send_signal(signal.SIGKILL)
        assert not order.target.exists()
    again = make(order, ggml)
    assert again.resumed >= 0.25 * read_head(base).elements
    assert order.target.read_bytes() == made.read_bytes()


def test_a_stop_is_heard_within_a_tensor(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    """Nothing is whole yet when it ends: only a pause within a preparation or a tile can have ended it."""
    stop: list[bool] = []
    counted = Counted(ggml.path.parent, lambda: stop.append(True))
    order = order_of(base, tmp_path / "q.gguf")
    with pytest.raises(Cancelled):
        quantize(order, Control(limit=lambda: 1, duty=lambda: 0.001, stopped=lambda: bool(stop)), ggml=counted)
    assert counted.calls < 10


class Counted(Ggml):
    """Kernels that tell when they are called first, and how often they were."""

    def __init__(self, folder: Path, told: Callable[[], None]):
        super().__init__(folder)
        self.calls, self._told = 0, told

    def quantize(self, rows: F32Array, kind: str, weights: F32Array | None) -> object:  # type: ignore[override]
        if not self.calls:
            self._told()
        self.calls += 1
        return super().quantize(rows, kind, weights)


def test_what_an_earlier_run_with_other_covariances_left_is_not_used(
    base: Path, made: Path, ggml: Ggml, tmp_path: Path
) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    few = covariances.InMemory({"blk.0.ffn_up.weight": covariances.sums(512, seed=9)})
    fractions: list[float] = []
    for others in (None, few):
        fractions.clear()
        # It rests most of the time, or a quick machine is done before anybody looks how far it is.
        control = Control(
            report=fractions.append, duty=lambda: 0.02, stopped=lambda: bool(fractions) and fractions[-1] > 0.1
        )
        with pytest.raises(Cancelled):
            quantize(replace(order, covariances=others), control, ggml=ggml)
        assert order.target.with_name("q.gguf.part").exists()
    assert make(order, ggml).resumed == 0
    assert order.target.read_bytes() == made.read_bytes()


def test_a_file_of_covariances_does_as_well(base: Path, made: Path, ggml: Ggml, tmp_path: Path) -> None:
    known = covariances.of_matrices(base)
    sums = {name: known.get(name) for name in known.names()}
    written = {
        name: Covariance(calibration=one.calibration, held_out=one.held_out, tokens=2400, held_out_tokens=600)
        for name, one in sums.items()
        if one is not None
    }
    facts = CovarianceFacts(base_sha256="0" * 64, text_sha256="1" * 64, text="text.txt", chunks=6, commit="0c1e57098")
    write_covariances(tmp_path / "covariances.gguf", written, facts=facts)
    with CovarianceFile.open(tmp_path / "covariances.gguf") as file:
        order = QuantizeTask(
            base=base,
            target=tmp_path / "q.gguf",
            recipe=order_of(base, made).recipe,
            ftype=Q4_K_M,
            covariances=file,
        )
        make(order, ggml)
    for name in known.names():
        assert np.array_equal(weights(order.target, name), weights(made, name))


def test_siblings_rounded_alike_are_copied_from(base: Path, made: Path, ggml: Ggml, tmp_path: Path) -> None:
    plain = order_of(base, tmp_path / "plain.gguf", covariances=None)
    make(plain, ggml)
    order = order_of(base, tmp_path / "q.gguf", siblings=(plain.target, made))
    done = make(order, ggml)
    assert set(done.copied) == set(order.recipe) and not done.computed
    assert order.target.read_bytes() == made.read_bytes()
    again = replace(plain, target=tmp_path / "again.gguf", siblings=(made,))
    assert not make(again, ggml).copied
    assert again.target.read_bytes() == plain.target.read_bytes()


def test_the_kernels_codes_stay_where_compensation_does_not_help(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    known = covariances.sums(512)
    other = np.diag(np.diag(covariances.sums(512, seed=3).held_out[0])).astype(np.float32)
    misled = covariances.InMemory({name: replace(known, held_out=(other,))})
    compensated = order_of(base, tmp_path / "q.gguf", covariances=misled)
    plain = order_of(base, tmp_path / "plain.gguf", covariances=None)
    make(compensated, ggml)
    make(plain, ggml)
    assert np.array_equal(weights(compensated.target, name), weights(plain.target, name))


def test_covariances_of_another_width_are_refused(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    other = covariances.InMemory({"output.weight": covariances.sums(256)})
    with pytest.raises(CalibrationError, match="the covariances have none for output.weight"):
        make(order_of(base, tmp_path / "q.gguf", covariances=other), ggml)
    assert not list(tmp_path.iterdir())


def test_chunks_of_compensated_tensors_are_tiles(base: Path, ggml: Ggml) -> None:
    order = order_of(base, base.with_name("planned.gguf"))
    plan = layout.plan(base, read_head(base), order.recipe, ftype=Q4_K_M, imatrix=None, ggml=ggml)
    rows = [c.count for c in plan.chunks(["blk.0.ffn_up.weight"]) if c.tensor.name == "blk.0.ffn_up.weight"]
    assert rows == [layout.TILE, layout.TILE, 2200 - 2 * layout.TILE]


@pytest.mark.tools
def test_llama_cpp_takes_the_file(llama_bin: Path, ggml: Ggml, tmp_path: Path) -> None:
    model = tiny.converted(tmp_path, "7", outtype="f16", width=256, ffn=512, layers=1)
    imatrix = read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", model))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200, encoding="utf-8")
    known = covariances.of_matrices(model)
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_1", "IQ4_XS", "IQ4_NL", "IQ3_S", "TQ2_0"):
        recipe = {name: kind for name in known.names() if read_head(model).tensors[name].shape[0] % 256 == 0}
        order = QuantizeTask(
            base=model, target=tmp_path / f"{kind}.gguf", recipe=recipe, ftype=1, imatrix=imatrix, covariances=known
        )
        make(order, ggml)
        command = [str(llama_bin / "llama-perplexity"), "-m", str(order.target), "-f", str(text), "-c", "128"]
        done = subprocess.run([*command, "--chunks", "2"], capture_output=True, text=True)
        assert done.returncode == 0 and "Final estimate: PPL" in done.stdout + done.stderr, done.stderr[-2000:]
