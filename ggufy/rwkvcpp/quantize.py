"""A file of rwkv.cpp made anew in another type: quantized, or FP16 made from FP32, with the bytes of rwkv.cpp's own
quantizer and converter; a file of version 100 with its old blocks brought up to date.

The matrices are cut into pieces of some rows. One thread reads and writes them in order; as many others as may be busy
quantize them, by ggml's kernels where llama.cpp is here, else by those of the package gguf, which give the same. So
the memory needed does not depend on the model. What is whole of a file stays when a run ends early.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
from gguf import GGMLQuantizationType

from ggufy.core.errors import Cancelled, SourceError, ToolError, UsageError
from ggufy.core.messages import Message
from ggufy.formats.rwkvcpp import TYPES, Record, RwkvcppHead, read_head
from ggufy.llama.ggml import F32Array, Ggml
from ggufy.rwkvcpp.tensors import file_type, is_quantized
from ggufy.rwkvcpp.types import OFFERED, QUANTIZED
from ggufy.rwkvcpp.version100 import dequantize
from ggufy.rwkvcpp.writing import made_anew, write_file
from ggufy.system import child_process
from ggufy.system.files import Buffer

_PIECE = 256 << 10  # values: a fraction of a second
_TICK_S = 0.1
_MOST_THREADS = 64
_F16_LIMIT = 65520.0  # the smallest magnitude that rounds to infinity
_NEED_GGML = ("Q4_K", "Q5_K")  # the package gguf cannot make them


@dataclass(frozen=True, kw_only=True)
class Control:
    """What may change while it runs."""

    limit: Callable[[], int] = lambda: 1  # threads that may be busy now
    duty: Callable[[], float] = lambda: 1.0  # share of the time, 0 to 1, in which a busy thread works; 0 is a pause
    stopped: Callable[[], bool] = lambda: False
    report: Callable[[float], None] = lambda fraction: None  # gets the fraction of the values that is done


_ALONE = Control()
_UNNAMED = Message("the file")


def quantize(
    source: Path,
    target: Path,
    type_name: str,
    *,
    ggml: Ggml | None = None,
    control: Control = _ALONE,
    identity: str = "",
) -> str:
    """Makes the file `target` of one of `types.OFFERED` from an unquantized one, or an old one of any type; gives its
    SHA-256 in hex digits.

    `ggml` is needed for Q4_K and Q5_K alone. `identity` tells the source from others of its size, its SHA-256 say;
    otherwise its time of change does. Raises SourceError or UsageError when it cannot be made, and then leaves
    nothing; Cancelled and DiskError leave what the next run goes on with.
    """
    head = read_head(source)
    made = head_of(head, type_name, source.name)
    if type_name in _NEED_GGML and ggml is None:
        raise ToolError("{type} is made with llama.cpp, which is not here: choose Q5_1 or Q4_1.", type=type_name)
    status = source.stat()
    kernels = ggml.sha256 if ggml else "gguf"
    work = _Work(source, head, ggml, control)

    def progress(done: int, total: int) -> None:
        work.check_stopped()
        control.report(done / total)

    return write_file(
        target,
        made,
        work.values,
        key=f"{status.st_size} {identity or status.st_mtime_ns} {kernels}",
        progress=progress,
    )


def head_of(head: RwkvcppHead, type_name: str, name: str = _UNNAMED) -> RwkvcppHead:
    """What the file made from one with this head will say about itself; `name` is the file's, for sentences.

    Raises SourceError if it is quantized already, or has rows that no block fits; UsageError for an unknown type.
    """
    if type_name not in OFFERED:
        raise UsageError(
            "rwkv.cpp has no type {type}: choose one of {types}.", type=type_name, types=", ".join(OFFERED)
        )
    if head.quantized and not head.outdated:
        raise SourceError(
            "{name} is quantized already: start from its FP32 or FP16 file, or from the .pth.", name=name
        )
    types = {one.name: _type_in(one, type_name) for one in head.records.values()}
    for record in head.records.values():
        _check_rows(record, types[record.name], name)
    return made_anew(head, type_name, types)


def size_of(head: RwkvcppHead, type_name: str) -> int:
    """The exact size, bytes, of that file. Raises as `head_of`."""
    return head_of(head, type_name).file_size


def _type_in(record: Record, type_name: str) -> str:
    """The type of a tensor in a file of the given type."""
    if type_name not in QUANTIZED:
        return file_type(record.name, record.shape, type_name)
    return type_name if is_quantized(record.name, record.shape) else record.type


def _check_rows(record: Record, type_name: str, name: str) -> None:
    block, columns = TYPES[type_name].block, record.shape[-1]
    if columns % block:
        raise SourceError(
            "{name} cannot become {type}, whose blocks have {block} values, as {tensor} has rows of {columns}: "
            "choose {instead}.",
            name=name,
            type=type_name,
            block=block,
            tensor=record.name,
            columns=columns,
            instead="FP16" if columns % 32 else "Q5_1 / Q4_1 / Q8_0",
        )


class _Work:
    """One run over one file."""

    def __init__(self, source: Path, head: RwkvcppHead, ggml: Ggml | None, control: Control):
        self._source, self._head, self._ggml, self._control = source, head, ggml, control

    def check_stopped(self) -> None:
        if self._control.stopped():
            raise Cancelled("the job was stopped.")

    def values(self, wanted: Sequence[Record]) -> Generator[Buffer, None, None]:
        """The values of records of the new file, made by several threads, in order."""
        pending: deque[Future[Buffer]] = deque()
        with ThreadPoolExecutor(_MOST_THREADS, "quantize", child_process.lower_own_priority) as pool:
            try:
                for record, raw in self._pieces(wanted):
                    self.check_stopped()
                    while len(pending) >= min(max(1, self._control.limit()), _MOST_THREADS):
                        yield pending.popleft().result()
                    pending.append(pool.submit(self._make, record, raw))
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _pieces(self, wanted: Sequence[Record]) -> Iterator[tuple[Record, bytes]]:
        """The bytes of whole rows of the source, for each record of the new file."""
        with self._source.open("rb") as file:
            for record in wanted:
                before = self._head.records[record.name]
                row = before.size // (before.elements // before.shape[-1])
                step = max(1, _PIECE // before.shape[-1]) * row
                for at in range(0, before.size, step):
                    file.seek(before.offset + at)
                    length = min(step, before.size - at)
                    raw = file.read(length)
                    if len(raw) != length:
                        raise SourceError("{name} changed while it was read: {AGAIN}.", name=self._source.name)
                    yield record, raw

    def _make(self, record: Record, raw: bytes) -> Buffer:
        began = time.thread_time()
        made = self._made(record, raw)
        self._rest(time.thread_time() - began)
        return made

    def _made(self, record: Record, raw: bytes) -> Buffer:
        before = self._head.records[record.name].type
        values = self._floats(raw, before)
        if not np.isfinite(values).all():
            raise SourceError(
                "{base}: {tensor} has values that are not finite: fetch or convert the model again.",
                base=self._source,
                tensor=record.name,
            )
        if record.type == before and not self._head.outdated:
            return raw
        made = self._cast(values.reshape(-1, record.shape[-1]), record.type)
        if made is None:
            raise SourceError(
                "{base}: {tensor} has values that {type} cannot hold: choose another type.",
                base=self._source,
                tensor=record.name,
                type=record.type,
            )
        return made

    def _floats(self, raw: bytes, type_name: str) -> F32Array:
        if type_name in ("FP32", "FP16"):
            return np.frombuffer(raw, dtype="<f4" if type_name == "FP32" else "<f2").astype(np.float32, copy=False)
        return dequantize(raw, type_name)

    def _cast(self, values: F32Array, type_name: str) -> Buffer | None:
        """Rows in another type; None if it cannot hold them."""
        if type_name == "FP32":
            return _bytes(values)
        if type_name == "FP16":
            return _bytes(values.astype("<f2")) if np.abs(values).max() < _F16_LIMIT else None
        if self._ggml is not None:
            made = self._ggml.quantize(np.ascontiguousarray(values), type_name, None)
            return None if made is None else _bytes(made)
        if np.abs(values).max() >= _F16_LIMIT:
            return None
        return _bytes(gguf.quants.quantize(values, GGMLQuantizationType[type_name]))

    def _rest(self, spent: float) -> None:
        """Sleeps so long that the `spent` seconds of work are the duty's share of the time."""
        began = time.monotonic()
        while not self._control.stopped():
            duty = min(max(0.0, self._control.duty()), 1.0)
            left = spent * (1 - duty) - (time.monotonic() - began) * duty
            if left <= 0:
                break
            time.sleep(min(_TICK_S, left / duty) if duty else _TICK_S)


def _bytes(values: np.ndarray[Any, Any]) -> Buffer:
    return np.ascontiguousarray(values).data.cast("B")
