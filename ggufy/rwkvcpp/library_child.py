"""A process of its own around somebody's librwkv: it loads the library and a model and evaluates what it is sent.

    python -I -S library_child.py LIBRARY MODEL THREADS GPU_LAYERS

Run as a script, it may import nothing but the standard library; imported, it offers what both sides agree on. Each
message on stdin and stdout is a line of JSON, and behind it as many values, F32 in machine order, as the line says:

    out  {"state": values of a state, "logits": values of logits}, once, when the model is loaded
    in   {"tokens": [numbers], "every": are the logits after each token wanted, "values": 0 or those of a state}
    out  {"values": of all logits and of the state behind them}

or {"error": a sentence}, which is the last. Functions that a library has tell how old it is (rwkv.h of RWKV/rwkv.cpp):
layers for a GPU are the third argument of rwkv_init_from_file since July 2024, before that there was
rwkv_gpu_offload_layers, and before June 2023 neither; sizes had longer names then, and sequences were not evaluated.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_TOKENS_AT_ONCE = 16  # what rwkv.h recommends; libraries have limits of their own
_FLOATS = ctypes.POINTER(ctypes.c_float)


def send(pipe: IO[bytes], message: Mapping[str, object], values: bytes | memoryview = b"") -> None:
    """Writes one message."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.write(values)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Reads one message; None at the end of the pipe."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    message: dict[str, Any] = json.loads(line)
    values = pipe.read(4 * message.get("values", 0))
    return message, values


class Library:
    """A loaded library with a loaded model."""

    def __init__(self, library: str, model: str, threads: int, gpu_layers: int):
        """Raises OSError for a library or a model that cannot be loaded."""
        self._library = ctypes.CDLL(library)
        offload = self._function("rwkv_gpu_offload_layers", ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint32)
        numbers = [threads] if offload or not self._has("rwkv_get_state_len") else [threads, gpu_layers]
        init = self._needed("rwkv_init_from_file", ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_uint32] * len(numbers))
        self._context = init(os.fsencode(model), *numbers)
        if not self._context:
            raise OSError("the library cannot load the model")
        if gpu_layers and offload:
            offload(self._context, gpu_layers)
        self.state, self.logits = (self._length(name) for name in ("state", "logits"))
        end = [_FLOATS, _FLOATS, _FLOATS]
        self._one = self._needed("rwkv_eval", ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint32, *end)
        tokens = [ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t]
        self._many = self._function("rwkv_eval_sequence", ctypes.c_bool, ctypes.c_void_p, *tokens, *end)

    def eval(self, tokens: Sequence[int], state: bytes, every: bool) -> array.array[float]:
        """All logits, and the state behind them. Raises OSError if the library could not."""
        states = (ctypes.c_float * self.state)()
        if state:
            ctypes.memmove(states, state, len(state))
        logits = (ctypes.c_float * self.logits)()
        made: array.array[float] = array.array("f")
        step = 1 if every or not self._many else _TOKENS_AT_ONCE
        for first in range(0, len(tokens), step):
            part, begun = tokens[first : first + step], first or state
            given = ctypes.cast(states, _FLOATS) if begun else None  # NULL: the beginning
            if len(part) == 1 or not self._many:
                done = self._one(self._context, part[0], given, states, logits)
            else:
                done = self._many(
                    self._context, (ctypes.c_uint32 * len(part))(*part), len(part), given, states, logits
                )
            if not done:
                raise OSError("the library could not evaluate a token")
            if every or first + step >= len(tokens):
                made.frombytes(bytes(logits))
        made.frombytes(bytes(states))
        return made

    def _has(self, name: str) -> bool:
        return hasattr(self._library, name)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function with its signature, None if the library lacks it."""
        function = getattr(self._library, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
        return function

    def _needed(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._function(name, result, *arguments)
        if function is None:
            raise OSError(f"the library has no {name}, as one of another project")
        return function

    def _length(self, name: str) -> int:
        kind = "len" if self._has(f"rwkv_get_{name}_len") else "buffer_element_count"
        size = ctypes.c_size_t if kind == "len" else ctypes.c_uint32
        length: int = self._needed(f"rwkv_get_{name}_{kind}", size, ctypes.c_void_p)(self._context)
        return length


def main(library: str, model: str, threads: str, gpu_layers: str) -> None:
    with os.fdopen(os.dup(1), "wb") as out, os.fdopen(os.dup(0), "rb") as into:
        os.dup2(2, 1)  # what a library prints is no message
        try:
            loaded = Library(library, model, int(threads), int(gpu_layers))
            send(out, {"state": loaded.state, "logits": loaded.logits})
            while (asked := receive(into)) is not None:
                message, state = asked
                made = loaded.eval(message["tokens"], state, message["every"])
                send(out, {"values": len(made)}, memoryview(made).cast("B"))
        except OSError as error:
            send(out, {"error": str(error)})


if __name__ == "__main__":
    main(*sys.argv[1:])
