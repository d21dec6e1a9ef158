"""Inference on files of rwkv.cpp: the logits and states of rwkv.cpp itself, of BlinkDL's package and of the formulas,
with ggml's products and with NumPy's."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufy.core.errors import SourceError, UsageError
from ggufy.formats.rwkvcpp import TYPES, read_head
from ggufy.llama import ggml
from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.quantize import quantize
from tests import recurrence, tiny
from tests.reference import reference_file
from tests.rwkvcpp_files import Written, expected, write
from tests.rwkvcpp_models import VERSIONS, file_of, package_logits

TOKENS = [1 + (7 * number * number + 3 * number) % 255 for number in range(70)]  # more than go through at once
TYPES_5 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
MODELS = ("4v0-660K", "5v1-730K", "5v2-730K", "6v0-1m", "7v0-834K")
#: Most difference between our logits and rwkv.cpp's on quantized files by ggml, by NumPy. ggml quantizes the inputs
#: of products too: one that lies between two steps may fall to the other on another CPU. NumPy quantizes no input.
QUANTIZED = {"4v0-660K": (1e-3, 0.04), "5v1-730K": (0.1, 0.2), "5v2-730K": (0.15, 0.3), "6v0-1m": (0.1, 0.1)}
QUANTIZED["7v0-834K"] = (1e-3, 2e-3)
Load = Callable[..., Engine]
BOTH = pytest.mark.parametrize("load", [pytest.param("ggml", marks=pytest.mark.tools), "numpy"], indirect=True)
NUMPY = pytest.mark.parametrize("load", [pytest.param("numpy", marks=pytest.mark.fast)], indirect=True)


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """Loads a file, with ggml's products or with NumPy's; `name` says which."""
    folder = request.getfixturevalue("llama_bin") if request.param == "ggml" else None
    engines: list[Engine] = []

    def start(path: Path, **options: Any) -> Engine:
        engines.append(Engine(path, **({"threads": 2, "ggml_folder": folder} | options)))
        return engines[-1]

    start.name = request.param  # type: ignore[attr-defined]
    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def even_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of RWKV-6's small matrices that blocks of 32 fit."""
    monkeypatch.setattr(tiny, "RANKS_6", tiny.LARGE_RANKS_6)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return package_logits(tmp_path_factory.mktemp("package"), TOKENS, layers=3)


def differ(left: Any, right: Any) -> float:
    """The largest difference, against values above 1 in parts of them."""
    assert left.shape == right.shape
    return float((np.abs(left - right) / np.maximum(1, np.abs(right))).max())


# ---- models that we make


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_after_every_token_are_those_of_the_package(
    tmp_path: Path, load: Load, package: Any, version: str
) -> None:
    engine = load(file_of(tmp_path, version, layers=3), eps=64e-5)
    logits, _ = engine.eval(TOKENS, None, every=True)
    assert logits.shape == (len(TOKENS), tiny.VOCAB_ROWS) and logits.dtype == np.float32
    assert np.abs(logits - package[version]).max() < 5e-5
    assert np.abs(logits[1:] - logits[:-1]).max() > 1, "a model whose logits depend on what it read"


@BOTH
@pytest.mark.parametrize("version", ["6", "7"])
def test_a_tuned_state_is_taken_as_the_formulas_take_it(tmp_path: Path, load: Load, version: str) -> None:
    layers, heads, size = 2, 2, tiny.HEAD_SIZE
    weights = {name: tensor.double().numpy() for name, tensor in tiny.weights(version).items()}
    tuned = np.random.default_rng(3).standard_normal((layers, heads, size, size))
    wanted = recurrence.logits(weights, version, TOKENS[:20], list(tuned))
    engine = load(file_of(tmp_path, version))
    state = engine.initial_state().reshape(layers, -1)
    own = tuned.swapaxes(2, 3) if version == "6" else tuned  # [H, keys, values] there
    state[:, 2 * engine.n_embed :] = own.reshape(layers, -1)
    logits, _ = engine.eval(TOKENS[:20], state.reshape(-1), every=True)
    assert np.abs(logits - wanted).max() < 5e-5
    assert np.abs(logits - engine.eval(TOKENS[:20], None, every=True)[0]).max() > 0.1


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_at_once_in_pieces_and_one_by_one_are_the_same(tmp_path: Path, load: Load, version: str) -> None:
    engine = load(file_of(tmp_path, version))
    assert (engine.n_vocab, engine.n_embed, engine.n_layer) == (tiny.VOCAB_ROWS, 128, 2)
    assert engine.logits_len == tiny.VOCAB_ROWS
    assert engine.state_len == 2 * 128 * (5 if version == "4" else 2 + tiny.HEAD_SIZE)
    every, end = engine.eval(TOKENS, None, every=True)
    last, same = engine.eval(TOKENS, engine.initial_state())
    assert differ(last, every[-1]) < 1e-4 and differ(same, end) < 1e-4
    first, half = engine.eval(TOKENS[:41], None)
    before = half.copy()
    last, pieces = engine.eval(TOKENS[41:], half)
    assert np.array_equal(half, before), "a state is not changed"
    assert differ(first, every[40]) < 1e-4 and differ(last, every[-1]) < 1e-4 and differ(pieces, end) < 1e-4
    state = None
    for token, wanted in zip(TOKENS, every, strict=True):
        logits, state = engine.eval([token], state)
        assert differ(logits, wanted) < 1e-4
    assert state is not None and differ(state, end) < 1e-4


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_half_precision_rounds_weights_and_what_they_are_multiplied_with(
    tmp_path: Path, load: Load, version: str
) -> None:
    exact, _ = load(file_of(tmp_path, version)).eval(TOKENS[:9], None, every=True)
    half, _ = load(file_of(tmp_path, version, half=True)).eval(TOKENS[:9], None, every=True)
    assert 0 < np.abs(half - exact).max() < 0.05


def dequantized(source: Path, target: Path) -> Path:
    """An FP32 file of the values that a quantized one stands for, by gguf-py."""
    head, data = read_head(source), source.read_bytes()
    records = []
    for one in head.records.values():
        raw = np.frombuffer(data[one.offset : one.offset + one.size], dtype=np.uint8)
        kind = gguf.GGMLQuantizationType[TYPES[one.type].ggml]
        values = gguf.quants.dequantize(raw.reshape(*one.shape[:-1], -1), kind).astype("<f4")
        records.append(Written(one.name.encode(), 0, one.shape[::-1], values.tobytes()))
    return write(target, records, tokens=head.vocab_size, width=head.width, layers=head.layers)


@NUMPY
@pytest.mark.usefixtures("even_ranks")
@pytest.mark.parametrize("version", VERSIONS)
def test_numpy_computes_with_the_values_of_the_blocks(tmp_path: Path, load: Load, version: str) -> None:
    source = file_of(tmp_path, version)
    for name in ("Q4_1", "Q5_0", "Q8_0"):
        quantize(source, tmp_path / "q.bin", name)
        engine = load(tmp_path / "q.bin")
        logits, _ = engine.eval(TOKENS[:9], None, every=True)
        wanted, _ = load(dequantized(tmp_path / "q.bin", tmp_path / "d.bin")).eval(TOKENS[:9], None, every=True)
        assert engine.type == name and np.abs(logits - wanted).max() < 2e-5
        (tmp_path / "q.bin").unlink()


@pytest.mark.tools
@pytest.mark.usefixtures("even_ranks")
@pytest.mark.parametrize("version", VERSIONS)
def test_ggml_and_numpy_say_nearly_the_same_of_every_type(tmp_path: Path, llama_bin: Path, version: str) -> None:
    source = file_of(tmp_path, version, width=256, ffn=512)
    exact = Engine(source, threads=1).eval(TOKENS[:9], None, every=True)[0]
    lost = {}
    for name in TYPES_5 if version == "6" else (*TYPES_5, "Q4_K", "Q5_K"):  # whose ranks are no 256
        quantize(source, target := tmp_path / f"{name}.bin", name, ggml=ggml.load(llama_bin))
        ours, theirs = Engine(target, threads=1), Engine(target, threads=3, ggml_folder=llama_bin)
        slow, fast = (engine.eval(TOKENS[:9], None, every=True)[0] for engine in (ours, theirs))
        assert 0 < np.abs(fast - slow).mean() < 2 * np.abs(slow - exact).mean()
        lost[name] = np.abs(fast - exact).mean()
        ours.close()
        theirs.close()
    assert lost["Q8_0"] < lost["Q5_1"] < lost["Q4_0"]
    assert version == "6" or lost["Q8_0"] < lost["Q5_K"] < lost["Q4_K"]


@BOTH
def test_small_matrices_that_begin_anywhere(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The five of the mix of RWKV-6 lie one after the other, here 130 * 7 values each."""
    monkeypatch.setattr(tiny, "HEAD_SIZE", 65)
    monkeypatch.setattr(tiny, "RANKS_6", {"mix": 7, "decay": 5})
    path = file_of(tmp_path, "6", width=130, half=True)
    exact, _ = load(file_of(tmp_path, "6", width=130)).eval(TOKENS[:9], None, every=True)
    assert np.abs(load(path).eval(TOKENS[:9], None, every=True)[0] - exact).max() < 0.05


@pytest.mark.tools
@pytest.mark.usefixtures("even_ranks")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_number_of_threads_decides_no_bit(tmp_path: Path, llama_bin: Path, version: str) -> None:
    quantize(file_of(tmp_path, version), tmp_path / "q.bin", "Q5_1")
    results = []
    for threads in (1, 2, 5):
        engine = Engine(tmp_path / "q.bin", threads=threads, ggml_folder=llama_bin)
        results.append(engine.eval(TOKENS[:1], engine.eval(TOKENS[1:2], None)[1]))
        engine.close()
    for logits, state in results[1:]:
        assert np.array_equal(logits, results[0][0]) and np.array_equal(state, results[0][1])


# ---- rwkv.cpp's own models and figures


def tokens_of(model: str) -> list[int]:
    text = json.loads(reference_file("rwkvcpp/reference/reference.json").read_text(encoding="utf-8"))["text"]
    return list(text[:128].encode("utf-16-le") if model == "6v0-1m" else text.encode())


@pytest.fixture(scope="module")
def figures() -> Any:
    with np.load(reference_file("rwkvcpp/reference/reference.npz")) as arrays:
        return dict(arrays)


@BOTH
@pytest.mark.parametrize("model", MODELS)
def test_rwkv_cpp_s_logits_and_states(load: Load, figures: Any, model: str) -> None:
    engine = load(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin"))
    wanted = np.fromfile(reference_file(f"rwkvcpp/upstream/expected-logits-{model}.bin"), "<f4")
    assert np.abs(engine.eval(list(b'"in'), None)[0] - wanted).max() < 1e-5
    every, state = engine.eval(tokens_of(model), None, every=True)
    assert np.abs(every - figures[f"{model}/FP32/logits_all"]).max() < 1e-5
    assert differ(state, figures[f"{model}/FP32/state_end"]) < 1e-5


@BOTH
@pytest.mark.parametrize("model", ["5v1-730K", "5v2-730K"])
def test_rwkv_lm_s_group_norm(load: Load, model: str) -> None:
    engine = load(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin"), eps=64e-5)
    with np.load(reference_file("rwkvcpp/reference/v5-upstream-eps.npz")) as arrays:
        wanted = arrays[f"{model}/upstream/logits_all"]
    assert np.abs(engine.eval(tokens_of(model), None, every=True)[0] - wanted).max() < 2e-5


@BOTH
@pytest.mark.parametrize(("model", "name"), [("6v0-1m", "6v0"), ("7v0-834K", "7v0")])
def test_rwkv_cpp_s_logits_from_a_tuned_state(load: Load, model: str, name: str) -> None:
    engine = load(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin"))
    with np.load(reference_file(f"rwkvcpp/reference/state-{name}.npz")) as arrays:
        state, wanted = arrays[f"{model}/state/state_in"], arrays[f"{model}/state/logits48"]
    assert differ(engine.eval(tokens_of(model)[:48], state, every=True)[0], wanted) < 1e-5


@BOTH
@pytest.mark.parametrize("model", MODELS)
def test_rwkv_cpp_s_logits_of_quantized_files(tmp_path: Path, load: Load, figures: Any, model: str) -> None:
    source = reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin")
    most = QUANTIZED[model][load.name == "numpy"]  # type: ignore[attr-defined]
    for name in TYPES_5:
        quantize(source, target := tmp_path / f"{name}.bin", name)
        logits, _ = load(target).eval(list(b'"in'), None)
        assert np.abs(logits - figures[f"{model}/FP32-to-{name}/logits3"]).max() < most


# ---- what is refused


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    engine = Engine(file_of(tmp_path, "7"), threads=1)
    with pytest.raises(UsageError, match="token 320 is none of the model's 320: choose"):
        engine.eval([1, 320], None)
    with pytest.raises(UsageError, match="token -1 "):
        engine.eval([-1], None)
    with pytest.raises(ValueError, match="there has to be a token"):
        engine.eval([], None)
    with pytest.raises(ValueError, match=r"a state of \(5,\) values, expected"):
        engine.eval([1], np.zeros(5, dtype=np.float32))


def changed(folder: Path, version: str, name: str, new: Written | None) -> Path:
    records = [r for r in expected(tiny.weights(version), version, half=False) if r.name != name.encode()]
    assert len(records) < len(tiny.weights(version))
    more = [] if new is None else [new]
    return write(folder / "m.bin", records + more, tokens=tiny.VOCAB_ROWS, width=128, layers=2)


def written(name: str, *sizes: int) -> Written:
    return Written(name.encode(), 0, sizes, bytes(4 * int(np.prod(sizes))))


@NUMPY
@pytest.mark.parametrize(
    ("version", "name", "sizes", "message"),
    [
        ("4", "blocks.1.att.key.weight", (), "has no tensor blocks.1.att.key.weight: convert"),
        ("4", "blocks.1.att.time_decay", (127,), r"time_decay is FP32 \[127\], expected \[128\]: convert"),
        ("5", "head.weight", (128, 319), r"head.weight is FP32 \[319, 128\], expected \[320, 128\]: convert"),
        ("5.2", "blocks.0.ffn.value.weight", (128, 128), r"expected \[128, 384\]: convert"),
        ("5.2", "blocks.0.att.time_decay", (1, 64, 3), "3 heads do not share a width of 128: convert"),
        ("6", "blocks.1.att.time_maa_w2", (24, 128), r"expected \[5, 128, 128\]: convert|expected"),
        ("6", "blocks.0.att.time_decay", (1, 64, 3), "3 heads do not share a width of 128: convert"),
        ("7", "blocks.1.att.r_k", (32, 4), "different numbers of heads: convert"),
        ("7", "blocks.1.att.v1", (), "has no tensor blocks.1.att.v1: convert"),
        ("7", "emb.weight", (128,), r"emb.weight is FP32 \[128\], expected \[320, 128\]"),
    ],
)
def test_a_model_with_a_wrong_tensor(
    tmp_path: Path, load: Load, version: str, name: str, sizes: tuple[int, ...], message: str
) -> None:
    path = changed(tmp_path, version, name, written(name, *sizes) if sizes else None)
    with pytest.raises(SourceError, match=message):
        load(path)


@NUMPY
def test_old_blocks_and_cut_files(tmp_path: Path, load: Load) -> None:
    quantize(file_of(tmp_path, "4"), tmp_path / "q.bin", "Q5_1")
    data = bytearray((tmp_path / "q.bin").read_bytes())
    (tmp_path / "cut.bin").write_bytes(data[:-1])
    with pytest.raises(SourceError, match="cut off within 'head.weight'"):
        load(tmp_path / "cut.bin")
    data[4:8] = struct.pack("<i", 100)
    (tmp_path / "old.bin").write_bytes(data)
    with pytest.raises(SourceError, match="blocks that rwkv.cpp gave up in May 2023: convert"):
        load(tmp_path / "old.bin")


@NUMPY
def test_a_llama_cpp_without_libraries_leaves_numpy(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    path, empty = file_of(tmp_path, "7"), tmp_path / "empty"
    empty.mkdir()
    with caplog.at_level(logging.WARNING):
        logits, _ = load(path, ggml_folder=empty).eval(TOKENS[:3], None)
    assert "products are made in NumPy, which is slow" in caplog.text
    assert np.array_equal(logits, load(path).eval(TOKENS[:3], None)[0])
