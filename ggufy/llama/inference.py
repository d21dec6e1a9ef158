"""llama.cpp's inference in this process: libllama by ctypes, to see what every matrix of a model reads.

Before each node of a graph is computed, llama.cpp asks a callback (`cb_eval`) whether it wants to see the node, and
calls it again when the node is there. llama-imatrix collects its sums like that; here the inputs are handed to Python.

Structures are passed by value and have other fields in other versions, so this is for the pinned llama.cpp only: the
caller compares commits, and the constructor two default values. ggml ends the whole process when an assertion of its
own fails: it belongs into a process of its own.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import ToolError
from ggufy.llama import ggml, matmul
from ggufy.llama.ggml import F32Array
from ggufy.llama.tools import CONTEXT

I32Array = np.ndarray[Any, np.dtype[np.int32]]
_LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.so.0", "libllama.0.dylib")
_POINTER, _INT, _UINT, _FLOAT, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
_F32, _MOST_OPS = 0, 256
_FEWEST_ROWS = 16  # of an input that llama-imatrix looks at
_DEFAULT_CONTEXT, _DEFAULT_BATCH = 512, 2048
_ABORTED = 2  # what llama_decode answers when the abort callback ended it


class _Tensor(ctypes.Structure):
    """`ggml_tensor` of ggml.h."""


_Tensor._fields_ = [
    ("type", _INT), ("buffer", _POINTER), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4), ("op", _INT),
    ("op_params", _INT * 16), ("flags", _INT), ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", _POINTER),
    ("view_offs", ctypes.c_size_t), ("data", _POINTER), ("name", ctypes.c_char * 64), ("extra", _POINTER),
]  # fmt: skip


class _ModelParams(ctypes.Structure):
    """`llama_model_params` of llama.h."""

    _fields_ = [
        ("devices", _POINTER), ("tensor_buft_overrides", _POINTER), ("n_gpu_layers", _INT), ("split_mode", _INT),
        ("load_mode", _INT), ("lazy_mode", _INT), ("main_gpu", _INT), ("tensor_split", _POINTER),
        ("progress_callback", _POINTER), ("progress_callback_user_data", _POINTER), ("kv_overrides", _POINTER),
        ("vocab_only", _BOOL), ("check_tensors", _BOOL), ("use_extra_bufts", _BOOL), ("no_host", _BOOL),
        ("no_alloc", _BOOL), ("load_mtp", _BOOL),
    ]  # fmt: skip


class _ContextParams(ctypes.Structure):
    """`llama_context_params` of llama.h."""

    _fields_ = [
        ("n_ctx", _UINT), ("n_batch", _UINT), ("n_ubatch", _UINT), ("n_seq_max", _UINT), ("n_rs_seq", _UINT),
        ("n_outputs_max", _UINT), ("n_outputs_max_per_seq", _UINT), ("n_threads", _INT), ("n_threads_batch", _INT),
        ("ctx_type", _INT), ("rope_scaling_type", _INT), ("pooling_type", _INT), ("attention_type", _INT),
        ("flash_attn_type", _INT), ("rope_freq_base", _FLOAT), ("rope_freq_scale", _FLOAT),
        ("yarn_ext_factor", _FLOAT), ("yarn_attn_factor", _FLOAT), ("yarn_beta_fast", _FLOAT),
        ("yarn_beta_slow", _FLOAT), ("yarn_orig_ctx", _UINT), ("defrag_thold", _FLOAT), ("cb_eval", _POINTER),
        ("cb_eval_user_data", _POINTER), ("type_k", _INT), ("type_v", _INT), ("abort_callback", _POINTER),
        ("abort_callback_data", _POINTER), ("embeddings", _BOOL), ("offload_kqv", _BOOL), ("no_perf", _BOOL),
        ("op_offload", _BOOL), ("swa_full", _BOOL), ("kv_unified", _BOOL), ("samplers", _POINTER),
        ("n_samplers", ctypes.c_size_t), ("ctx_other", _POINTER),
    ]  # fmt: skip


class _Batch(ctypes.Structure):
    """`llama_batch` of llama.h."""

    _fields_ = [
        ("n_tokens", _INT), ("token", _POINTER), ("embd", _POINTER), ("pos", _POINTER), ("n_seq_id", _POINTER),
        ("seq_id", _POINTER), ("logits", _POINTER),
    ]  # fmt: skip


_Watch = ctypes.CFUNCTYPE(_BOOL, ctypes.POINTER(_Tensor), _BOOL, _POINTER)
_Abort = ctypes.CFUNCTYPE(_BOOL, _POINTER)
_Log = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)
_WARNING, _ERROR = 3, 4  # GGML_LOG_LEVEL_WARN and _ERROR
_FUNCTIONS: tuple[tuple[str, Any, list[Any]], ...] = (
    ("llama_log_set", None, [_POINTER, _POINTER]),
    ("llama_backend_init", None, []),
    ("llama_model_default_params", _ModelParams, []),
    ("llama_model_load_from_file", _POINTER, [ctypes.c_char_p, _ModelParams]),
    ("llama_context_default_params", _ContextParams, []),
    ("llama_init_from_model", _POINTER, [_POINTER, _ContextParams]),
    ("llama_model_get_vocab", _POINTER, [_POINTER]),
    ("llama_vocab_get_add_bos", _BOOL, [_POINTER]),
    ("llama_vocab_bos", _INT, [_POINTER]),
    ("llama_vocab_n_tokens", _INT, [_POINTER]),
    ("llama_tokenize", _INT, [_POINTER, ctypes.c_char_p, _INT, _POINTER, _INT, _BOOL, _BOOL]),
    ("llama_get_memory", _POINTER, [_POINTER]),
    ("llama_memory_clear", None, [_POINTER, _BOOL]),
    ("llama_decode", _INT, [_POINTER, _Batch]),
    ("llama_get_logits", ctypes.POINTER(_FLOAT), [_POINTER]),
    ("llama_set_abort_callback", None, [_POINTER, _POINTER, _POINTER]),
    ("llama_free", None, [_POINTER]),
    ("llama_model_free", None, [_POINTER]),
)


def _print_warning(level: int, text: bytes, _data: int | None) -> None:
    if level in (_WARNING, _ERROR):
        sys.stderr.write(text.decode(errors="replace"))


_WARNINGS, _SILENCE = _Log(_print_warning), _Log(lambda level, text, data: None)


@dataclass(frozen=True)
class MatrixInput:
    """What a matrix is about to read, or has just read."""

    name: str  # of the weights
    matrices: tuple[
        int, int
    ]  # that the weights are, slowest dimension first: (1, 1), or more in a tensor of 3 or 4 dimensions
    input: int  # the same for matrices that read the same, within one chunk
    values: F32Array  # [_, _, rows, columns]; of experts [1, tokens, 1 or experts used, columns]. Gone after the call
    experts: I32Array | None  # [tokens, experts used]: which ones read it; None where all do


class Inference:
    """A loaded model that reads chunks of tokens, each by itself. `close` frees it."""

    def __init__(self, folder: Path, model: Path, *, threads: int):
        """Loads a GGUF with the llama.cpp in `folder`. Raises ToolError when it cannot be loaded."""
        matmul.load(folder)  # finds the code for this CPU
        self._watch: Callable[[MatrixInput], None] | None = None
        self._seen: list[MatrixInput] | None = None
        self._error: BaseException | None = None
        self._library = _load(folder)
        self._many, self._routed = _operations(folder)
        self._library.llama_log_set(ctypes.cast(_WARNINGS, _POINTER), None)
        self._library.llama_backend_init()
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._library.llama_model_load_from_file(str(model).encode(), params)
        if not self._model:
            raise ToolError("llama.cpp cannot load {name}: fetch or convert it again.", name=model.name)
        self._callback, self._abort = _Watch(self._evaluated), _Abort(lambda data: True)
        self._context = self._library.llama_init_from_model(self._model, self._context_params(folder, threads))
        if not self._context:
            raise ToolError(
                "llama.cpp has no memory for a context of {name}: free some and try again.", name=model.name
            )
        self._vocab = self._library.llama_model_get_vocab(self._model)

    def close(self) -> None:
        """Frees the model; nothing may be called any more."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _context_params(self, folder: Path, threads: int) -> _ContextParams:
        """What llama-imatrix -b 512 -c 512 has."""
        params: _ContextParams = self._library.llama_context_default_params()
        if (params.n_ctx, params.n_batch) != (_DEFAULT_CONTEXT, _DEFAULT_BATCH):
            raise ToolError(
                "{folder} has another llama.cpp than the pinned one: unset GGUFY_LLAMA_DIR.", folder=folder
            )
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = False
        params.cb_eval = ctypes.cast(self._callback, _POINTER)
        return params

    def tokenize(self, text: bytes) -> I32Array:
        """The tokens of a text as llama-imatrix reads it from a file: without a line break at its end."""
        text = text.removesuffix(b"\n")
        tokens = np.zeros(1, dtype=np.int32)
        count = self._tokenize(text, tokens)
        if count < 0:  # so many are needed
            tokens = np.zeros(-count, dtype=np.int32)
            count = self._tokenize(text, tokens)
        return tokens[: max(0, count)]

    def _tokenize(self, text: bytes, tokens: I32Array) -> int:
        """How many were written; if they do not fit, minus how many there are."""
        places = (tokens.ctypes.data, tokens.size)
        return int(self._library.llama_tokenize(self._vocab, text, len(text), *places, True, False))

    def find_inputs(self) -> list[MatrixInput]:
        """What every matrix will read, in the order of the graph of a chunk; nothing is computed, and of `values` only
        the shapes are true."""
        self._seen = []
        self._library.llama_log_set(ctypes.cast(_SILENCE, _POINTER), None)  # that it ends is no failure
        self._library.llama_set_abort_callback(self._context, ctypes.cast(self._abort, _POINTER), None)
        code = self._decode(np.zeros(CONTEXT, dtype=np.int32))
        self._library.llama_set_abort_callback(self._context, None, None)
        self._library.llama_log_set(ctypes.cast(_WARNINGS, _POINTER), None)
        seen, self._seen = self._seen, None
        self._raise()
        if code != _ABORTED:
            raise ToolError("llama.cpp did not stop before it computed ({code}): unset GGUFY_LLAMA_DIR.", code=code)
        return seen

    def read(self, tokens: I32Array, watch: Callable[[MatrixInput], None]) -> float:
        """Reads one chunk from an empty state, and calls `watch` for every matrix, in the order of the graph; what it
        raises ends the chunk and is raised here. As in llama-imatrix, the first token is the model's BOS if it wants
        one. Gives the chunk's mean cross-entropy, in nats. Raises ToolError if llama.cpp fails."""
        self._watch = watch
        if self._library.llama_vocab_get_add_bos(self._vocab):
            tokens = np.concatenate(([self._library.llama_vocab_bos(self._vocab)], tokens[1:])).astype(np.int32)
        code = self._decode(tokens)
        self._watch = None
        self._raise()
        if code:
            raise ToolError(
                "llama.cpp could not evaluate a chunk ({code}): free some memory and try again.", code=code
            )
        width = self._library.llama_vocab_n_tokens(self._vocab)
        logits = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (len(tokens), width))
        return cross_entropy(logits[:-1], tokens[1:])

    def _decode(self, tokens: I32Array) -> int:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        count = len(tokens)
        tokens = np.ascontiguousarray(tokens, dtype=np.int32)
        positions, ones = np.arange(count, dtype=np.int32), np.ones(count, dtype=np.int32)
        sequence, outputs = np.zeros(1, dtype=np.int32), np.ones(count, dtype=np.int8)
        sequences = np.full(count, sequence.ctypes.data, dtype=np.uintp)
        arrays = (positions, ones, sequences, outputs)
        batch = _Batch(count, tokens.ctypes.data, None, *(array.ctypes.data for array in arrays))
        return int(self._library.llama_decode(self._context, batch))

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _evaluated(self, address: Any, ask: bool, _data: int | None) -> bool:
        """The callback. With `ask`: whether the node is to be shown. Else it is there; False ends the graph."""
        try:
            if self._error is not None:
                return False
            found = self._input(address.contents)
            if ask:
                if found is not None and self._seen is not None:
                    self._seen.append(found)
                return found is not None and self._seen is None
            if found is not None and self._watch is not None:
                self._watch(found)
            return True
        except BaseException as error:  # nothing can pass through C: it is raised again behind it
            self._error = error
            return False

    def _input(self, node: _Tensor) -> MatrixInput | None:
        """What the weights of a product read; None if the node is none, or not one that llama-imatrix looks at."""
        if node.op not in (self._many, self._routed):
            return None
        weights, given = node.src[0].contents, node.src[1].contents
        routed = node.op == self._routed
        if given.type != _F32 or (not routed and given.ne[1] < _FEWEST_ROWS):
            return None
        name = weights.name.decode(errors="replace")
        name = name.split("#")[1] if "#" in name else name  # of a copy on another device
        return MatrixInput(
            name=name,
            matrices=(weights.ne[3], weights.ne[2]),
            input=ctypes.addressof(given),
            values=_array(given, np.float32),
            experts=_array(node.src[2].contents, np.int32)[0, 0] if routed else None,
        )


def cross_entropy(logits: F32Array, tokens: I32Array) -> float:
    """The mean of -log p(token), in nats; logits [tokens, vocabulary]."""
    total = 0.0
    for row, token in zip(logits, tokens, strict=True):  # one at a time: a copy of all of them is large
        most = row.max()
        total += float(most - row[token]) + math.log(np.exp(row - most).sum(dtype=np.float64))
    return total / len(tokens)


def _array(tensor: _Tensor, dtype: type[Any]) -> np.ndarray[Any, Any]:
    """The tensor's values where they lie, slowest dimension first."""
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    place = (ctypes.c_byte * np.dtype(dtype).itemsize).from_address(tensor.data)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memoryview(place), dtype=dtype), shape, strides, writeable=False
    )


def _load(folder: Path) -> Any:
    places = [place / name for place in (folder, folder.parent / "lib") for name in _LIBRARIES]
    path = next((path for path in places if path.is_file()), None)
    try:
        if path is None:
            raise OSError(f"no {_LIBRARIES[0]}")
        library = ctypes.CDLL(str(path))
        for name, result, arguments in _FUNCTIONS:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ToolError(
            "{path} cannot be used ({reason}): build llama.cpp again, or unset GGUFY_LLAMA_DIR.",
            path=path or folder,
            reason=error,
        ) from error
    return library


def _operations(folder: Path) -> Sequence[int]:
    """ggml's numbers of a product of matrices, and of one with experts."""
    base = ctypes.CDLL(str(ggml.load(folder).path))
    base.ggml_op_name.restype, base.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    names: list[bytes] = []
    while len(names) < _MOST_OPS and not {b"MUL_MAT", b"MUL_MAT_ID"} <= set(names):
        names.append(base.ggml_op_name(len(names)))
    return names.index(b"MUL_MAT"), names.index(b"MUL_MAT_ID")
