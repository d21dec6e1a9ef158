"""The Python interface of rwkv.cpp (python/rwkv_cpp of RWKV/rwkv.cpp) over our engine, so that scripts written for
that library run with one import changed.

    from ggufy.rwkvcpp import RWKVModel, load_rwkv_shared_library

    model = RWKVModel(load_rwkv_shared_library(), "RWKV-4-Pile-169M-Q5_1.bin")
    logits, state = model.eval(1, None)
    logits, state = model.eval_sequence_in_chunks([2, 3, 4], state)
    model.free()

Logits and states are NumPy arrays, F32, one dimension. Arrays of others (torch, say) are taken where NumPy can look at
their memory; what is given as `state_out` or `logits_out` is filled and handed back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.llama.ggml import F32Array
from ggufy.llama.install import find
from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.rwkvcpp.library import LibraryEngine
from ggufy.system.settings import Settings


def load_rwkv_shared_library(path: str | Path | None = None) -> Path | None:
    """What RWKVModel takes first: rwkv.cpp's own library at `path`, or without a path None, our engine."""
    return None if path is None else Path(path)


class RWKVModel:
    """One loaded model. `free` gives its memory back; afterwards nothing else may be called."""

    def __init__(
        self,
        shared_library: str | Path | None,
        model_path: str | Path,
        thread_count: int | None = None,
        gpu_layer_count: int = 0,
    ):
        """Loads a file of rwkv.cpp.

        `shared_library` is the path of a librwkv, or None: our engine, with the matrix products of the llama.cpp that
        ggufy built or GGUFY_LLAMA_DIR names, or else in NumPy. `thread_count` of None: one less than the CPUs that may
        be used. `gpu_layer_count` is only for a library. Raises SourceError for a file that is no sound model.
        """
        if thread_count is not None and thread_count < 1:
            raise ValueError(f"thread_count is {thread_count}, expected 1 or more")
        if gpu_layer_count and shared_library is None:
            raise ValueError("gpu_layer_count needs rwkv.cpp's own library: this engine computes on the CPU")
        path = Path(model_path)
        self._engine: Evaluator | None = (
            Engine(path, threads=thread_count, ggml_folder=_ggml_folder())
            if shared_library is None
            else LibraryEngine(Path(shared_library), path, threads=thread_count, gpu_layers=gpu_layer_count)
        )

    @property
    def n_vocab(self) -> int:
        """Tokens that the model knows; logits are as many."""
        return self._loaded.n_vocab

    @property
    def n_embed(self) -> int:
        return self._loaded.n_embed

    @property
    def n_layer(self) -> int:
        return self._loaded.n_layer

    def eval(
        self,
        token: int,
        state_in: Any = None,
        state_out: Any = None,
        logits_out: Any = None,
        use_numpy: bool = True,
    ) -> tuple[Any, Any]:
        """Goes on by one token from `state_in` (None: from the start) and gives the logits [n_vocab] and the state.

        `state_out` may be `state_in`. `use_numpy` is taken as it was written for the library: new arrays are always
        NumPy's. Raises ValueError or TypeError for arguments that do not fit, UsageError for an unknown token.
        """
        return self.eval_sequence([token], state_in, state_out, logits_out, use_numpy)

    def eval_sequence(
        self,
        tokens: Sequence[int],
        state_in: Any = None,
        state_out: Any = None,
        logits_out: Any = None,
        use_numpy: bool = True,
    ) -> tuple[Any, Any]:
        """The same for one token or more; the logits are those after the last."""
        engine, numbers = self._loaded, _numbers(tokens)
        given = None if state_in is None else _buffer(state_in, engine.state_len, "state_in")
        outs = [
            None if out is None else _buffer(out, length, name, written=True)
            for out, length, name in (
                (logits_out, engine.logits_len, "logits_out"),
                (state_out, engine.state_len, "state_out"),
            )
        ]
        results = engine.eval(numbers, given)
        for out, made in zip(outs, results, strict=True):
            if out is not None:
                out[:] = made
        logits, state = results
        return (logits if logits_out is None else logits_out), (state if state_out is None else state_out)

    def eval_sequence_in_chunks(
        self,
        tokens: Sequence[int],
        state_in: Any = None,
        state_out: Any = None,
        logits_out: Any = None,
        use_numpy: bool = True,
        chunk_size: int = 16,
    ) -> tuple[Any, Any]:
        """The same as `eval_sequence`, `chunk_size` tokens at a time."""
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, expected 1 or more")
        numbers, state = _numbers(tokens), state_in
        start = (len(numbers) - 1) // chunk_size * chunk_size  # of the last chunk
        for first in range(0, start, chunk_size):
            _, state = self.eval_sequence(numbers[first : first + chunk_size], state)
        return self.eval_sequence(numbers[start:], state, state_out, logits_out, use_numpy)

    def free(self) -> None:
        """Gives memory and threads back; a second call does nothing."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def _loaded(self) -> Evaluator:
        if self._engine is None:
            raise ValueError("this model was freed: load it again")
        return self._engine


@functools.cache
def _ggml_folder() -> Path | None:
    """Where the llama.cpp is that ggufy uses; None if it has not been built."""
    settings = Settings.from_env()
    found = find(settings.cache, settings.llama_dir)
    return found.bin if found else None


def _numbers(tokens: Sequence[int]) -> list[int]:
    numbers = np.asarray(tokens)
    if numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError("tokens are a list of whole numbers, at least one")
    return [int(number) for number in numbers]


def _buffer(array: Any, length: int, name: str, *, written: bool = False) -> F32Array:
    """NumPy's view of an array of NumPy or of others; nothing is copied."""
    view = np.asarray(array)
    if view.dtype != np.float32:
        raise TypeError(f"{name} is {view.dtype}, expected float32")
    if view.shape != (length,) or not view.flags.c_contiguous:
        raise ValueError(f"{name} has the shape {view.shape}, expected ({length},) without gaps")
    if written and not view.flags.writeable:
        raise ValueError(f"{name} cannot be written to")
    return view
