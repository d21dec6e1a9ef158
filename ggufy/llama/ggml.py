"""ggml's own quantization kernels, called in this process: libggml-base of the llama.cpp that is used, through ctypes.

ctypes lets go of Python's global lock during a call, so threads quantize in parallel. ggml ends the whole process when
an assertion of its own fails, so every argument is checked here first. Values too: the IQ1, IQ2 and IQ3 kernels
search, and find nothing when a sum of theirs leaves the range of F32. (Tried with weights of 1e-44 to 3e38 and
importances of 1e-45 to 1e38: up to the limits below, which no real model comes near, they always ended well.)

The tables that the IQ1 and IQ2 types search in are computed at their first use, which takes seconds (11 s for IQ1 on
one core of 2025) and cannot be interrupted; they stay until the process ends, and so are computed once for all files.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import ToolError
from ggufy.system.files import sha256

F32Array = np.ndarray[Any, np.dtype[np.float32]]
ByteArray = np.ndarray[Any, np.dtype[np.uint8]]

_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.so.0", "libggml-base.0.dylib")
_UNQUANTIZED = {"F32": 0, "F16": 1, "BF16": 30}
# ggml's numbers of the types that ggml_quantize_chunk makes (ggml.h, enum ggml_type: numbers are never used again).
_NUMBERS = _UNQUANTIZED | {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
    "IQ1_M": 29, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39,
}  # fmt: skip
MOST_IMPORTANCE = 1e15  # of a column, in an imatrix
_MOST_WEIGHT = 1e6  # magnitude, for the types that search; F16 goes to 65504
_SEARCHING = ("IQ1_", "IQ2_", "IQ3_")


@functools.cache
def load(folder: Path) -> Ggml:
    """The library of the llama.cpp in `folder`, once a process. Raises ToolError when that build has none."""
    return Ggml(folder)


@dataclass(frozen=True, kw_only=True)
class GgmlType:
    """One type of tensor that ggml can make from F32."""

    name: str  # upper case: F16, Q4_K, …
    number: int  # in a GGUF file
    block: int  # weights a block; a row is whole blocks
    size: int  # bytes a block
    needs_imatrix: bool  # the kernel itself cannot do without

    def bytes_of(self, weights: int) -> int:
        """Bytes of whole rows of so many weights."""
        return weights // self.block * self.size


class Ggml:
    """The loaded library. `types` is what it can make, by name. One is enough for all threads."""

    def __init__(self, folder: Path):
        """Loads it from the folder with llama.cpp's programs. Raises ToolError when that build has none."""
        paths = [place / name for place in (folder, folder.parent / "lib") for name in _LIBRARIES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ToolError(
                "{folder} has no {library}, as a static build of llama.cpp: build it with -DBUILD_SHARED_LIBS=ON, "
                "or unset GGUFY_LLAMA_DIR.",
                folder=folder,
                library=_LIBRARIES[0],
            )
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
            self._declare()
        except (OSError, AttributeError) as error:
            raise ToolError(
                "{path} cannot be used ({reason}): build llama.cpp again, or unset GGUFY_LLAMA_DIR.",
                path=path,
                reason=error,
            ) from error
        self.sha256 = sha256(path)  # another build may give other bytes
        self.types = {name: self._type(name, number) for name, number in _NUMBERS.items() if self._is(name, number)}

    def prepare(self, types: Iterable[str]) -> threading.Thread:
        """Starts to compute the tables of these types, in a thread that ends when they are ready."""
        numbers = [self.types[name].number for name in types]

        def run() -> None:
            for number in numbers:
                self._library.ggml_quantize_init(number)

        thread = threading.Thread(target=run, name="ggml-tables", daemon=True)
        thread.start()
        return thread

    def to_f32(self, raw: ByteArray, kind: str) -> F32Array:
        """F32, F16 or BF16 weights, as bytes of a file -> flat F32 array; F32 is not copied where it is aligned."""
        if kind == "F32":
            return np.require(raw.view("<f4"), requirements="A")
        out = np.empty(raw.size // 2, dtype=np.float32)
        convert = self._library.ggml_fp16_to_fp32_row if kind == "F16" else self._library.ggml_bf16_to_fp32_row
        convert(raw.ctypes.data, out.ctypes.data, out.size)
        return out

    def quantize(self, rows: F32Array, kind: str, weights: F32Array | None) -> ByteArray | None:
        """F32 [rows, columns], and the importance of each column, F32 [columns], 0 to MOST_IMPORTANCE -> bytes of the
        rows; None if the type cannot hold such values.

        Raises ValueError for shapes and types that the kernels do not take.
        """
        made = self.types[kind]
        count, columns = rows.shape
        if columns % made.block or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            raise ValueError(f"rows of {columns} {rows.dtype} cannot become {kind}")
        if weights is None and made.needs_imatrix:
            raise ValueError(f"{kind} needs an imatrix")
        if weights is not None and (
            weights.shape != (columns,) or weights.dtype != np.float32 or not weights.flags.c_contiguous
        ):
            raise ValueError(f"an imatrix of {weights.shape} does not fit rows of {columns}")
        if kind.startswith(_SEARCHING) and not max(rows.max(), -rows.min()) <= _MOST_WEIGHT:
            return None
        out = np.empty(made.bytes_of(rows.size), dtype=np.uint8)
        address = None if weights is None else weights.ctypes.data
        done = self._library.ggml_quantize_chunk(
            made.number, rows.ctypes.data, out.ctypes.data, 0, count, columns, address
        )
        if done != out.size:
            raise ValueError(f"ggml made {done} bytes of {kind}, expected {out.size}")
        return out if self.sound(out, kind) else None

    def sound(self, raw: ByteArray, kind: str) -> bool:
        """No NaN and no infinity among a tensor's weights or scales; types unknown here are taken as sound."""
        made = self.types.get(kind)
        return made is None or bool(self._library.ggml_validate_row_data(made.number, raw.ctypes.data, raw.size))

    def _declare(self) -> None:
        pointer, number, wide, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
        for name, result, arguments in (
            ("ggml_type_name", ctypes.c_char_p, [number]),
            ("ggml_blck_size", wide, [number]),
            ("ggml_type_size", size, [number]),
            ("ggml_quantize_requires_imatrix", ctypes.c_bool, [number]),
            ("ggml_quantize_init", None, [number]),
            ("ggml_fp16_to_fp32_row", None, [pointer, pointer, wide]),
            ("ggml_bf16_to_fp32_row", None, [pointer, pointer, wide]),
            ("ggml_quantize_chunk", size, [number, pointer, pointer, wide, wide, wide, pointer]),
            ("ggml_validate_row_data", ctypes.c_bool, [number, pointer, size]),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def _is(self, name: str, number: int) -> bool:
        found: bytes | None = self._library.ggml_type_name(number)
        return found is not None and found.decode(errors="replace").upper() == name

    def _type(self, name: str, number: int) -> GgmlType:
        return GgmlType(
            name=name,
            number=number,
            block=self._library.ggml_blck_size(number),
            size=self._library.ggml_type_size(number),
            needs_imatrix=self._library.ggml_quantize_requires_imatrix(number),
        )
