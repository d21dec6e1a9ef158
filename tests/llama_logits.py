"""The logits that llama.cpp's own library computes, token by token, from a session file: none of its programs prints
them. A program of its own, since the library ends a process whose model it dislikes:

    python -m tests.llama_logits LIBRARY MODEL.gguf SESSION|-|f32|lora:ADAPTER.gguf OUT.npy TOKEN…

With `f32` or an adapter, which stand for no session, attention is computed in F32, where llama.cpp otherwise rounds to
F16.

The library's structs of parameters are handed back as they came, so their layout need not be known here: they are
returned and passed through memory, where a struct that is longer than needed does no harm.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

_MOST_TOKENS = 64  # of a text that a session stands behind


class _Parameters(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 1024),)


class _Batch(ctypes.Structure):
    _fields_ = (("count", c_int32), *((name, c_void_p) for name in ("token", "embd", "pos", "n_seq", "seq", "logits")))


def _in_f32(parameters: _Parameters) -> _Parameters:
    """With the cache of attention in F32 and without its fused form, which computes in F16. The struct has four kinds
    that are -1 (to be found out), the last of which is the fused form's, and the two types of the cache side by side,
    F16 (1), where 0 is F32."""
    raw = bytearray(parameters)
    for before, after in (((-1, -1, -1, -1), (-1, -1, -1, 0)), ((1, 1), (0, 0))):
        one, other = (struct.pack(f"<{len(before)}i", *values) for values in (before, after))
        places = [place for place in range(0, 160, 4) if raw[place : place + len(one)] == one]
        assert len(places) == 1, places
        raw[places[0] : places[0] + len(one)] = other
    return _Parameters.from_buffer_copy(raw)


def logits(library: Path, model: str, session: str, tokens: list[int], *, f32: bool = False, lora: str = "") -> Any:
    """[tokens, V]; a session is read before them unless it is empty, and an adapter applied."""
    llama = ctypes.CDLL(str(library))

    def call(name: str, kind: Any, *arguments: tuple[Any, Any]) -> Any:
        function = getattr(llama, name)
        function.restype, function.argtypes = kind, [argument[0] for argument in arguments]
        return function(*(argument[1] for argument in arguments))

    call("llama_backend_init", None)
    parameters = call("llama_model_default_params", _Parameters)
    loaded = call("llama_model_load_from_file", c_void_p, (c_char_p, model.encode()), (_Parameters, parameters))
    parameters = call("llama_context_default_params", _Parameters)
    parameters = _in_f32(parameters) if f32 else parameters
    context = call("llama_init_from_model", c_void_p, (c_void_p, loaded), (_Parameters, parameters))
    call("llama_set_n_threads", None, (c_void_p, context), (c_int32, 1), (c_int32, 1))
    if lora:
        adapter = call("llama_adapter_lora_init", c_void_p, (c_void_p, loaded), (c_char_p, lora.encode()))
        assert adapter, "llama.cpp does not take this adapter"
        one, whole = (c_void_p * 1)(adapter), (c_float * 1)(1.0)
        places = ((c_void_p, ctypes.addressof(one)), (c_size_t, 1), (c_void_p, ctypes.addressof(whole)))
        assert call("llama_set_adapters_lora", c_int32, (c_void_p, context), *places) == 0
    vocab = call("llama_model_get_vocab", c_void_p, (c_void_p, loaded))
    rows = call("llama_vocab_n_tokens", c_int32, (c_void_p, vocab))
    if session:
        kept, count = (c_int32 * _MOST_TOKENS)(), c_size_t()
        place = ((c_void_p, context), (c_char_p, session.encode()), (c_void_p, ctypes.addressof(kept)))
        sizes = ((c_size_t, _MOST_TOKENS), (POINTER(c_size_t), byref(count)))
        assert call("llama_state_load_file", c_bool, *place, *sizes)
    found = []
    for token in tokens:
        one = (c_int32 * 1)(token)
        batch = call("llama_batch_get_one", _Batch, (c_void_p, ctypes.addressof(one)), (c_int32, 1))
        assert call("llama_decode", c_int32, (c_void_p, context), (_Batch, batch)) == 0
        row = call("llama_get_logits_ith", POINTER(c_float), (c_void_p, context), (c_int32, -1))
        found.append(np.ctypeslib.as_array(row, (rows,)).copy())
    return np.array(found)


if __name__ == "__main__":
    _, where, gguf, start, out, *ids = sys.argv
    adapter = start.removeprefix("lora:") if start.startswith("lora:") else ""
    given = "" if start in ("-", "f32") or adapter else start
    np.save(
        out, logits(Path(where), gguf, given, list(map(int, ids)), f32=start == "f32" or bool(adapter), lora=adapter)
    )
