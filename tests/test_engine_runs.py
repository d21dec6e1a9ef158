"""How the engine runs: killed, stopped, throttled, fed from siblings, and given what it must refuse."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggufy.core.errors import CalibrationError, Cancelled, DiskError, GgufyError, SourceError, UsageError
from ggufy.formats.gguf import read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.llama.install import Llama
from ggufy.quantize.engine import quantize
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.task import Made, QuantizeTask
from ggufy.system.control import Control
from ggufy.system.settings import Settings
from tests import small, tiny

ROOT = Path(__file__).parent.parent
FUZZ_FILES = 150
Q4_K_M, Q3_K_M, TQ1_0, IQ3_S = 15, 12, 36, 26  # llama.cpp's numbers
SHAPES = {"token_embd.weight": (64, 512), "output_norm.weight": (499,), "output.weight": (64, 512)} | {
    f"blk.{layer}.{name}.weight": (512, 512) for layer in range(4) for name in ("ffn_up", "ffn_down")
}
CHILD = """
import sys, threading
from pathlib import Path
from ggufy.llama.ggml import Ggml
from ggufy.quantize.engine import quantize
from ggufy.quantize.task import QuantizeTask
from ggufy.system.control import Control
from ggufy.formats.gguf import read_head
base, target, kind, folder = sys.argv[1:]
recipe = {name: kind for name, tensor in read_head(Path(base)).tensors.items() if len(tensor.shape) > 1}
order = QuantizeTask(base=Path(base), target=Path(target), recipe=recipe, ftype=26)
control = Control(limit=lambda: 2, duty=lambda: 0.2, report=lambda fraction: print(fraction, flush=True))
quantize(order, control, ggml=Ggml(Path(folder)))
"""


@pytest.fixture(scope="module")
def ggml(llama_bin: Path) -> Ggml:
    return Ggml(llama_bin)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.matrices(tmp_path_factory.mktemp("base") / "base.gguf", SHAPES, scale=0.1)


def recipe_of(kind: str, **others: str) -> dict[str, str]:
    return {name: others.get(name.split(".")[0], kind) for name, shape in SHAPES.items() if len(shape) > 1}


def order_of(base: Path, target: Path, kind: str = "IQ3_S", ftype: int = IQ3_S, **others: str) -> QuantizeTask:
    return QuantizeTask(base=base, target=target, recipe=recipe_of(kind, **others), ftype=ftype)


def make(order: QuantizeTask, ggml: Ggml) -> Made:
    return quantize(order, Control(limit=lambda: 2), ggml=ggml)


def matrix_weights() -> int:
    return sum(rows * columns for rows, columns in (shape for shape in SHAPES.values() if len(shape) == 2))


# ---- what is finished stays


@pytest.fixture(scope="module")
def undisturbed(base: Path, ggml: Ggml, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    order = order_of(base, tmp_path_factory.mktemp("undisturbed") / "q.gguf")
    made = make(order, ggml)
    assert made.resumed == 0
    assert sorted(made.computed) == sorted(order.recipe)
    assert [path.name for path in order.target.parent.iterdir()] == ["q.gguf"]
    return order.target.read_bytes()


def test_a_killed_run_goes_on_where_it_was(
    base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path, llama_bin: Path
) -> None:
    """Several kills in a row, at instants that lie wherever the progress happens to be reported."""
    order = order_of(base, tmp_path / "q.gguf")
    command = [sys.executable, "-c", CHILD, str(base), str(order.target), "IQ3_S", str(llama_bin)]
    seen = []
    for kill_at in (0.0, 0.1, 0.3, 0.5, 0.8):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            seen.append(float(child.stdout.readline()))
            while (at := float(child.stdout.readline())) < kill_at:
                pass
            assert at < 1
            child.send_signal(signal.SIGKILL)
        assert not order.target.exists()
    assert seen == sorted(seen)
    made = make(order, ggml)
    assert order.target.read_bytes() == undisturbed
    total = read_head(base).elements
    # Two threads were at work: of what was reported done, only the chunk of each was lost.
    assert made.resumed >= 0.8 * total - 2 * 512 * 512 - 499
    assert sum(weights for weights, _ in made.speeds.values()) <= total - made.resumed
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


class Held(Ggml):
    """Kernels that let nobody in any more once so many weights are quantized, until the run is stopped."""

    def __init__(self, folder: Path, weights: float):
        super().__init__(folder)
        self.left, self.reached, self.stopped = weights, threading.Event(), threading.Event()

    def quantize(self, rows: F32Array, kind: str, weights: F32Array | None) -> ByteArray | None:
        if self.left <= 0:
            self.reached.set()
            assert self.stopped.wait(60)
        self.left -= rows.size
        return super().quantize(rows, kind, weights)

    def stop(self) -> bool:
        if self.reached.is_set():
            self.stopped.set()
        return self.stopped.is_set()


def stop_at(order: QuantizeTask, ggml: Ggml, fraction: float) -> None:
    held = Held(ggml.path.parent, fraction * matrix_weights())
    with pytest.raises(Cancelled):
        quantize(order, Control(limit=lambda: 1, stopped=held.stop), ggml=held)
    assert not order.target.exists()


def test_a_stopped_run_goes_on_where_it_was(base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    stop_at(order, ggml, 0.4)
    reported: list[float] = []
    made = quantize(order, Control(limit=lambda: 2, report=reported.append), ggml=ggml)
    assert made.resumed > 0
    assert reported[0] > 0.2
    assert reported == sorted(reported)
    assert reported[-1] == 1
    assert order.target.read_bytes() == undisturbed


DAMAGE: dict[str, Callable[[Path, Path], None]] = {
    "part is gone": lambda part, journal: part.unlink(),
    "journal is gone": lambda part, journal: journal.unlink(),
    "part is empty": lambda part, journal: part.write_bytes(b""),
    "part has other bytes": lambda part, journal: part.write_bytes(bytes(255 for _ in part.read_bytes())),
    "part is too long": lambda part, journal: part.write_bytes(part.read_bytes() + b"x" * 5000),
    "journal is cut": lambda part, journal: journal.write_bytes(journal.read_bytes()[:-9]),
    "journal is empty": lambda part, journal: journal.write_bytes(b""),
    "journal is nonsense": lambda part, journal: journal.write_bytes(journal.read_bytes() + b"\xff x\nab \n1 2\n"),
    "journal is of another file": lambda part, journal: journal.write_bytes(b"x" + journal.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_left_is_not_trusted(base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path, damage: str) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    stop_at(order, ggml, 0.3)
    DAMAGE[damage](tmp_path / "q.gguf.part", tmp_path / "q.gguf.journal.part")
    make(order, ggml)
    assert order.target.read_bytes() == undisturbed


def test_what_another_quant_left_is_not_used(base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path) -> None:
    order = order_of(base, tmp_path / "q.gguf", "Q4_K", Q4_K_M)
    stop_at(order, ggml, 0.5)
    made = make(order_of(base, tmp_path / "q.gguf"), ggml)
    assert made.resumed == 0
    assert order.target.read_bytes() == undisturbed


def test_a_full_disk_costs_nothing_that_is_finished(
    base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    write, writes = os.pwrite, iter(range(1000))

    def full(file: int, data: bytes, offset: int) -> int:
        if next(writes) > 25:
            raise OSError(errno.ENOSPC, "full")
        return write(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskError, match=r"the disk is full while writing q\.gguf"):
            make(order, ggml)
    assert not order.target.exists()
    assert make(order, ggml).resumed > 0
    assert order.target.read_bytes() == undisturbed


# ---- throttle


class Watched(Ggml):
    """The kernels, and how many threads are in them: `together` has a number for each call, as it begins."""

    def __init__(self, folder: Path, meeting: int = 1):
        super().__init__(folder)
        self.lock, self.inside = threading.Lock(), 0
        self.together: list[int] = []
        self.meeting, self.met = meeting, threading.Event()  # nobody leaves until so many are in there

    def quantize(self, rows: F32Array, kind: str, weights: F32Array | None) -> ByteArray | None:
        with self.lock:
            self.inside += 1
            self.together.append(self.inside)
            if self.inside >= self.meeting:
                self.met.set()
        assert self.met.wait(60)
        try:
            return super().quantize(rows, kind, weights)
        finally:
            with self.lock:
                self.inside -= 1


def test_the_limit_holds_while_it_changes(base: Path, llama_bin: Path, undisturbed: bytes, tmp_path: Path) -> None:
    """Four threads meet in the kernels; when the limit has fallen to one and they are out, each call is alone."""
    watched = Watched(llama_bin, meeting=4)
    calls: list[int] = []

    def limit() -> int:
        if not watched.met.is_set():
            return 4
        calls.append(len(watched.together))
        return 1

    order = order_of(base, tmp_path / "q.gguf")
    quantize(order, Control(limit=limit, duty=lambda: 0.5), ggml=watched)
    assert order.target.read_bytes() == undisturbed
    assert max(watched.together) == 4
    alone = watched.together[calls[1] + 4 :]  # the second time it was asked, its first answer was obeyed
    assert alone
    assert set(alone) == {1}


def test_duty_zero_is_a_pause(base: Path, llama_bin: Path, undisturbed: bytes, tmp_path: Path) -> None:
    watched = Watched(llama_bin)
    calls: list[int] = []

    def duty() -> float:
        calls.append(len(watched.together))
        return 0.0 if len(calls) < 8 else 1.0

    order = order_of(base, tmp_path / "q.gguf")
    quantize(order, Control(limit=lambda: 2, duty=duty), ggml=watched)
    assert max(calls[:8]) <= 2  # the piece of each thread
    assert order.target.read_bytes() == undisturbed


def test_duty_is_a_share_of_the_time(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    began = time.monotonic()
    made = quantize(order_of(base, tmp_path / "q.gguf"), Control(limit=lambda: 1, duty=lambda: 0.25), ggml=ggml)
    spent = sum(seconds for _, seconds in made.speeds.values())
    assert time.monotonic() - began >= 0.99 * spent / 0.25


# ---- siblings


def test_no_pair_is_computed_twice(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    first = order_of(base, tmp_path / "first.gguf", "Q3_K", Q3_K_M, output="Q6_K")
    make(first, ggml)
    same = replace(first, target=tmp_path / "same.gguf", ftype=11, siblings=[first.target])
    made = make(same, ggml)
    assert made.computed == []
    assert sorted(made.copied) == sorted(first.recipe)
    assert made.speeds == {}
    mixed = order_of(base, tmp_path / "mixed.gguf", "TQ1_0", TQ1_0, output="Q6_K", token_embd="Q3_K")
    made = make(replace(mixed, siblings=[same.target, first.target]), ggml)
    assert sorted(made.copied) == ["output.weight", "token_embd.weight"]
    assert len(made.computed) == 8
    copied = mixed.target.read_bytes()
    make(mixed, ggml)
    assert mixed.target.read_bytes() == copied
    make(replace(same, siblings=[], target=tmp_path / "alone.gguf"), ggml)
    assert same.target.read_bytes() == (tmp_path / "alone.gguf").read_bytes()


def test_a_sibling_that_is_none_is_left_alone(base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path) -> None:
    other = small.matrices(tmp_path / "other.gguf", SHAPES, scale=0.2)
    foreign, lying = order_of(other, tmp_path / "foreign.gguf"), small.imatrix(tmp_path / "imatrix.gguf", base)
    make(foreign, ggml)
    weighted = replace(foreign, base=base, target=tmp_path / "weighted.gguf", imatrix=read_imatrix(lying))
    make(weighted, ggml)
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(undisturbed[:-1000])
    siblings = [foreign.target, weighted.target, torn, tmp_path / "gone.gguf"]
    order = replace(order_of(base, tmp_path / "q.gguf"), siblings=siblings)
    assert make(order, ggml).copied == []
    assert order.target.read_bytes() == undisturbed


# ---- bad input


def refused(order: QuantizeTask, ggml: Ggml, kind: type[GgufyError], text: str) -> None:
    before = set(order.target.parent.iterdir())
    with pytest.raises(kind, match=text) as caught:
        make(order, ggml)
    assert "\n" not in str(caught.value)
    assert set(order.target.parent.iterdir()) == before


def test_recipes_that_cannot_be(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    order = order_of(base, tmp_path / "q.gguf")
    refused(replace(order, recipe={"blk.9.ffn_up.weight": "Q4_K"}), ggml, UsageError, "names the tensor 'blk.9")
    refused(replace(order, recipe={"output.weight": "Q4_Z"}), ggml, UsageError, "wants Q4_Z for output.weight")
    refused(replace(order, recipe={"output.weight": "I32"}), ggml, UsageError, "wants I32")
    narrow = small.matrices(tmp_path / "narrow.gguf", {"a.weight": (4, 96)})
    order = QuantizeTask(base=narrow, target=tmp_path / "q.gguf", recipe={"a.weight": "Q4_K"}, ftype=Q4_K_M)
    refused(order, ggml, UsageError, "96 wide and cannot become Q4_K")


def test_an_imatrix_that_does_not_fit(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    order = order_of(base, tmp_path / "q.gguf", "IQ3_XXS", 23)
    refused(order, ggml, CalibrationError, "needs an imatrix to become IQ3_XXS, and there is none")
    lacking = small.imatrix(tmp_path / "lacking.gguf", base, without=["blk.2.ffn_up.weight"])
    order = replace(order, imatrix=read_imatrix(lacking))
    refused(order, ggml, CalibrationError, "blk.2.ffn_up.weight needs an imatrix.*lacking.gguf has no data for it")
    wide = small.matrices(tmp_path / "wide.gguf", {name: (4, 768) for name in SHAPES})
    order = replace(order, imatrix=read_imatrix(small.imatrix(tmp_path / "of-wide.gguf", wide)))
    refused(order, ggml, CalibrationError, "768 values for .*, which has 512 columns")
    only_head = {"output.weight": "IQ1_S"}  # llama-quantize lets it pass, and is ended by an assertion of ggml
    refused(replace(order, imatrix=None, recipe=only_head), ggml, CalibrationError, "output.weight needs an imatrix")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30])
def test_an_imatrix_with_impossible_values(base: Path, tmp_path: Path, value: float) -> None:
    path = small.imatrix(tmp_path / "imatrix.gguf", base, blk_1_ffn_down_weight=value)
    with pytest.raises(CalibrationError, match=r"impossible values for blk\.1\.ffn_down\.weight"):
        read_imatrix(path)


def test_files_that_are_no_imatrix(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is no imatrix"):
        read_imatrix(base)
    with pytest.raises(SourceError, match="does not exist"):
        read_imatrix(tmp_path / "gone.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "output_norm.weight"])
def test_a_base_with_values_not_finite(base: Path, ggml: Ggml, tmp_path: Path, name: str, value: float) -> None:
    head, broken = read_head(base), tmp_path / "broken.gguf"
    data = bytearray(base.read_bytes())
    struct.pack_into("<f", data, head.data_start + head.tensors[name].offset + 1000, value)
    broken.write_bytes(data)
    refused(order_of(broken, tmp_path / "q.gguf"), ggml, SourceError, f"{name} has values that are not finite")


def test_values_that_a_type_cannot_hold(ggml: Ggml, tmp_path: Path) -> None:
    """ggml's own assertions would end the process."""
    huge = small.matrices(tmp_path / "huge.gguf", {"output.weight": (4, 256)}, scale=1e19)
    for kind in ("IQ3_S", "IQ3_XXS", "Q4_K", "Q8_0", "F16"):
        order = QuantizeTask(base=huge, target=tmp_path / "q.gguf", recipe={"output.weight": kind}, ftype=IQ3_S)
        refused(order, ggml, SourceError, f"output.weight has values that {kind} cannot hold")


def test_bases_that_cannot_be_quantized(base: Path, ggml: Ggml, undisturbed: bytes, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    source = tmp_path / "bad.gguf"
    source.write_bytes(base.read_bytes()[:-4096])
    refused(order_of(source, target), ggml, SourceError, "it is cut off")
    source.write_bytes(undisturbed)
    refused(order_of(source, target, "Q4_K"), ggml, SourceError, "is quantized already")
    source.unlink()
    refused(order_of(source, target), ggml, SourceError, "does not exist")


def test_a_base_that_shrinks_meanwhile(base: Path, ggml: Ggml, tmp_path: Path) -> None:
    copy, target = tmp_path / "copy.gguf", tmp_path / "q.gguf"
    copy.write_bytes(base.read_bytes())
    control = Control(limit=lambda: 1, duty=lambda: 0.5, report=lambda fraction: os.truncate(copy, 5000))
    with pytest.raises(SourceError, match="became shorter while it was read"):
        quantize(order_of(copy, target), control, ggml=ggml)
    assert not list(tmp_path.glob("q.gguf*"))


def test_a_part_of_a_split_model(ggml: Ggml, tmp_path: Path, llama_bin: Path) -> None:
    base = small.mixture(tmp_path / "base.gguf")
    command = [llama_bin / "llama-gguf-split", "--split-max-tensors", "8", base, tmp_path / "part"]
    subprocess.run(command, check=True, capture_output=True)
    part = next(tmp_path.glob("part-00001*"))
    order = QuantizeTask(base=part, target=tmp_path / "q.gguf", recipe={}, ftype=Q4_K_M)
    refused(order, ggml, SourceError, "is one part of a split model")


def test_mutated_bases_are_quantized_or_refused(ggml: Ggml, tmp_path: Path) -> None:
    shapes = {"blk.0.a.weight": (4, 256), "blk.0.b.weight": (2, 2, 64), "c.bias": (33,)}
    base = small.matrices(tmp_path / "base.gguf", shapes)
    whole, path, target = base.read_bytes(), tmp_path / "mutated.gguf", tmp_path / "q.gguf"
    rng, made = random.Random(7), 0
    for _ in range(FUZZ_FILES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.choice([rng.randrange(360), rng.randrange(len(data))])] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.write_bytes(data)
        recipe = {"blk.0.a.weight": rng.choice(["IQ3_S", "Q6_K", "Q4_K"]), "blk.0.b.weight": "Q4_0"}
        try:
            make(QuantizeTask(base=path, target=target, recipe=recipe, ftype=IQ3_S), ggml)
        except (SourceError, UsageError, CalibrationError):
            assert not list(tmp_path.glob("q.gguf*"))
        else:
            made += 1
            assert read_head(target).tensors.keys() == shapes.keys()
            target.unlink()
    assert 0 < made < FUZZ_FILES


def test_mutated_imatrix_files_are_read_or_refused(tmp_path: Path) -> None:
    base = small.matrices(tmp_path / "base.gguf", {"a.weight": (4, 64), "b.weight": (2, 4, 32)})
    whole, path = small.imatrix(tmp_path / "imatrix.gguf", base).read_bytes(), tmp_path / "mutated.gguf"
    rng, read = random.Random(8), 0
    for _ in range(FUZZ_FILES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.choice([rng.randrange(700), rng.randrange(len(data))])] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.write_bytes(data)
        try:
            weights = read_imatrix(path).weights
        except (SourceError, CalibrationError):
            continue
        read += 1
        assert all(((values >= 0) & (values <= 1e15)).all() for values in weights.values())
    assert 0 < read < FUZZ_FILES


def test_a_job_with_a_static_build_ends_before_it_begins(llama: Llama, tmp_path: Path) -> None:
    """Its programs work, but the kernels are inside them; nothing is converted first."""
    own = tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    for program in llama.bin.glob("llama-*"):
        (own / "bin" / program.name).symlink_to(program)  # each finds its libraries beside the real one
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7")
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path / "o"), "HOME": str(tmp_path)})
    options = JobOptions(source=str(checkpoint), vocab=str(vocab), quant_types=("Q8_0",), imatrix="none")
    runner = Runner(settings=settings, llama=replace(llama, bin=own / "bin"))
    done = runner.run(make_job(options, settings))
    assert "as a static build of llama.cpp" in done.error
    assert not list((tmp_path / "o").rglob("*.gguf"))
