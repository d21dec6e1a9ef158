"""The Python interface of rwkv.cpp: the example of its README, and what the arguments may be."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ggufy.rwkvcpp
from ggufy.core.errors import SourceError, UsageError
from ggufy.rwkvcpp import RWKVModel, load_rwkv_shared_library
from ggufy.rwkvcpp.engine import Engine
from tests.rwkvcpp_models import file_of
from tests.test_rwkvcpp_library import compiled

TOKENS = [1 + number * number % 250 for number in range(35)]

# The example of rwkv.cpp's README of April 2023, and the import in which ours differs from it.
IMPORTS = ("import rwkv_cpp_model\nimport rwkv_cpp_shared_library\n",)
OURS = "from ggufy import rwkvcpp as rwkv_cpp_model, rwkvcpp as rwkv_cpp_shared_library\n"
EXAMPLE = """import rwkv_cpp_model
import rwkv_cpp_shared_library

# Change to model paths used above (quantized or full weights)
model_path = r'C:\\rwkv.cpp-169M.bin'


model = rwkv_cpp_model.RWKVModel(
    rwkv_cpp_shared_library.load_rwkv_shared_library(),
    model_path
)

logits, state = None, None

for token in [1, 2, 3]:
    logits, state = model.eval(token, state)

    print(f'Output logits: {logits}')

# Don't forget to free the memory after you've done working with the model
model.free()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return file_of(tmp_path, "4")


@pytest.fixture
def model(path: Path) -> Iterator[RWKVModel]:
    made = RWKVModel(None, path, thread_count=1)
    yield made
    made.free()


def test_the_example_of_its_readme(path: Path) -> None:
    script = EXAMPLE.replace(IMPORTS[0], OURS).replace(r"C:\rwkv.cpp-169M.bin", str(path))
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(script, "example", "exec"), names)
    wanted, state = Engine(path, threads=1).eval([1, 2, 3], None)
    assert printed.getvalue().count("Output logits: [") == 3
    assert np.abs(names["logits"] - wanted).max() < 1e-5 and np.abs(names["state"] - state).max() < 1e-5


def test_all_three_ways_to_evaluate(model: RWKVModel) -> None:
    assert (model.n_vocab, model.n_embed, model.n_layer) == (320, 128, 2)
    state = None
    for token in TOKENS:
        logits, state = model.eval(token, state, use_numpy=True)
    at_once = model.eval_sequence(TOKENS, None)
    for size in (1, 4, 16, 34, 35, 100):
        for wanted, found in zip(at_once, model.eval_sequence_in_chunks(TOKENS, None, chunk_size=size), strict=True):
            assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(at_once[0] - logits).max() < 1e-4 and np.abs(at_once[1] - state).max() < 1e-4


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_arrays_that_are_given_are_filled(model: RWKVModel, kind: str) -> None:
    empty = torch.zeros if kind == "torch" else lambda size: np.zeros(size, dtype=np.float32)
    logits, state = empty(320), empty(5 * 128 * 2)
    wanted, first = model.eval(1, None)
    result = model.eval(1, None, state, logits)
    assert result[0] is logits and result[1] is state
    assert np.array_equal(np.asarray(logits), wanted) and np.array_equal(np.asarray(state), first)
    wanted, second = model.eval_sequence([2, 3], first)
    model.eval_sequence_in_chunks([2, 3], state, state, logits)  # in place
    assert np.array_equal(np.asarray(logits), wanted) and np.array_equal(np.asarray(state), second)


def test_arguments_that_do_not_fit(model: RWKVModel) -> None:
    size = 5 * 128 * 2
    with pytest.raises(UsageError, match="token 320 is none of the model's 320"):
        model.eval(320, None)
    for tokens in ([], 3, [1.5], [[1]]):
        with pytest.raises(ValueError, match="tokens are a list of whole numbers, at least one"):
            model.eval_sequence(tokens, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state_in is float64, expected float32"):
        model.eval(1, np.zeros(size))
    with pytest.raises(ValueError, match=r"state_in has the shape \(3,\), expected \(1280,\)"):
        model.eval(1, np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"logits_out has the shape \(1, 320\), expected \(320,\)"):
        model.eval(1, None, None, np.zeros((1, 320), dtype=np.float32))
    with pytest.raises(ValueError, match="without gaps"):
        model.eval(1, None, np.zeros(2 * size, dtype=np.float32)[::2])
    fixed = np.zeros(size, dtype=np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="state_out cannot be written to"):
        model.eval(1, None, fixed)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        model.eval_sequence_in_chunks([1], None, chunk_size=0)


def test_what_cannot_be_loaded(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="thread_count is 0"):
        RWKVModel(None, path, thread_count=0)
    with pytest.raises(ValueError, match="gpu_layer_count needs rwkv.cpp's own library"):
        RWKVModel(None, path, gpu_layer_count=1)
    with pytest.raises(SourceError, match="does not exist: check the path"):
        RWKVModel(None, tmp_path / "no.bin")
    with pytest.raises(AttributeError, match="has no attribute nothing"):
        ggufy.rwkvcpp.nothing  # noqa: B018


def test_a_freed_model(path: Path) -> None:
    model = RWKVModel(None, str(path), thread_count=1)
    model.free()
    model.free()
    for use in (lambda: model.n_vocab, lambda: model.eval(1, None), lambda: model.eval_sequence([1], None)):
        with pytest.raises(ValueError, match="this model was freed: load it again"):
            use()


def test_a_library_is_used_in_its_place(tmp_path: Path) -> None:
    from tests.rwkvcpp_files import Written, write

    path = write(tmp_path / "m.bin", [Written(b"emb.weight", 0, [64, 5], bytes(1280))])
    model = RWKVModel(load_rwkv_shared_library(compiled(tmp_path)), path, thread_count=2, gpu_layer_count=1)
    logits, state = model.eval_sequence_in_chunks([1, 2], None)
    model.free()
    assert logits.tolist() == [712, 2, 201, 1, 2] and state.tolist() == [712, 2, 201]
