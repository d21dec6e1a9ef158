"""Quantizes a base GGUF: the same bytes as llama-quantize, but stoppable, resumable and throttled while it runs.

Rows are quantized in small pieces by a pool of threads. Each piece goes to its place in `<name>.part` at once, so the
memory needed does not depend on the model. Beside it `<name>.journal.part` tells which tensors are whole:

    a digest of all that decides the file's bytes: head, base, imatrix, kernels
    <digest of the tensor's bytes> <its name>       one line a tensor, in the order in which they were finished

After a kill, whatever the journal names and has the right digest is kept, and the rest is made. A tensor that a
finished quant of the same base and imatrix (a sibling) has in the same type is copied from there: one row is made again
to see that it is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.errors import CalibrationError, Cancelled, SourceError, UsageError
from ggufy.files import PART_SUFFIX, disk_errors, finish, sha256, write_text
from ggufy.llama.ggml import ByteArray, Ggml
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.layout import Layout, Piece, Tensor, plan
from ggufy.quantize.recipe import Recipe
from ggufy.sources.gguf import GgufHead, read_head

logger = logging.getLogger(__name__)
_TICK_S = 0.1  # how often limit, stop and progress are looked at


@dataclass(frozen=True, kw_only=True)
class Order:
    """One quant to make."""

    base: Path
    target: Path
    recipe: Recipe  # tensors that it does not name stay as they are
    ftype: int  # llama.cpp's number of the quant type (general.file_type)
    imatrix: Imatrix | None = None
    siblings: Sequence[Path] = ()  # finished quants of the same base and imatrix
    identity: str = ""  # tells the base from others of its size, its SHA-256 say; otherwise its time of change does


@dataclass(kw_only=True)
class Made:
    """How a quant came about."""

    resumed: list[str] = field(default_factory=list)  # tensors that an earlier run had finished
    copied: list[str] = field(default_factory=list)  # tensors that came from a sibling
    computed: list[str] = field(default_factory=list)  # tensors that were quantized, in the order of finishing
    speeds: dict[str, tuple[int, float]] = field(default_factory=dict)  # tensor type -> weights, CPU seconds


def quantize(
    order: Order,
    *,
    ggml: Ggml,
    limit: Callable[[], int],
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[float], None] = lambda fraction: None,
) -> Made:
    """Makes `order.target`. `limit` (threads that may be busy now) and `stopped` are asked ten times a second, and
    `report` gets the fraction of the weights that is done.

    Raises UsageError, SourceError or CalibrationError when recipe, base or imatrix cannot be used, and then leaves
    nothing; Cancelled and DiskError leave what the next run goes on with.
    """
    head = read_head(order.base)
    layout = plan(order.base, head, order.recipe, ftype=order.ftype, imatrix=order.imatrix, ggml=ggml)
    target = order.target
    part, journal = (target.with_name(target.name + end) for end in (PART_SUFFIX, f".journal{PART_SUFFIX}"))
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = _Run(order, head, layout, ggml)
            with run.opened(part, journal, stopped):
                run.quantize(limit, stopped, report)
            finish(part, target)
        except (UsageError, SourceError, CalibrationError):
            part.unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
            raise
        journal.unlink(missing_ok=True)
    return run.made


class _Run:
    """One run over one file. What several threads touch is guarded by `_lock`."""

    def __init__(self, order: Order, head: GgufHead, layout: Layout, ggml: Ggml):
        self.order, self.head, self.layout, self.ggml = order, head, layout, ggml
        self.made = Made()
        self._base = _mapped(order.base)
        self._siblings: dict[str, ByteArray] = {}  # tensor -> its bytes in a sibling
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._weights_done = 0

    @contextlib.contextmanager
    def opened(self, part: Path, journal: Path, stopped: Callable[[], bool]) -> Iterator[None]:
        """Opens what is written, and finds out what is there already."""
        self._file = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._file, self.layout.size)
            whole = self._whole_tensors(_read_journal(journal, self._key()), stopped)
            self._prepare(whole, stopped)
            self._find_siblings(whole, stopped)
            write_text(journal, "".join([f"{self._key()}\n", *(f"{d} {name}\n" for name, d in whole.items())]))
            self.made.resumed = list(whole)
            self._due = [tensor for tensor in self.layout.tensors if tensor.name not in whole]
            self._left = {tensor.name: sum(1 for _ in tensor.pieces()) for tensor in self._due}
            self._digests = {name: [b""] * count for name, count in self._left.items()}
            self._pieces = ((tensor, piece) for tensor in self._due for piece in tensor.pieces())
            self._weights_done = self.head.elements - sum(tensor.source.elements for tensor in self._due)
            _write(self._file, self.layout.head, 0)
            with journal.open("a", encoding="utf-8") as self._journal:
                yield
        finally:
            os.close(self._file)

    def quantize(
        self, limit: Callable[[], int], stopped: Callable[[], bool], report: Callable[[float], None]
    ) -> None:
        """Makes what is due: threads work, this one watches."""
        workers: list[threading.Thread] = []
        if not self._due:
            self._ended.set()
        try:
            while not self._ended.is_set():
                while len(workers) < max(1, limit()):
                    arguments = (len(workers), limit)
                    workers.append(threading.Thread(target=self._work, args=arguments, name="quantize", daemon=True))
                    workers[-1].start()
                self._ended.wait(_TICK_S)
                if stopped():
                    raise Cancelled("the job was stopped.")
                report(self._weights_done / self.head.elements)
        finally:
            self._ended.set()
            for worker in workers:
                worker.join()
        if self._error is not None:
            raise self._error
        report(1.0)

    def _work(self, number: int, limit: Callable[[], int]) -> None:
        while not self._ended.is_set():
            if number >= max(1, limit()):
                self._ended.wait(_TICK_S)
                continue
            with self._lock:
                tensor, piece = next(self._pieces, (None, None))
            if tensor is None or piece is None:
                return
            try:
                self._do(tensor, piece)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that watches
                self._error = self._error or error
                self._ended.set()

    def _do(self, tensor: Tensor, piece: Piece) -> None:
        before = time.thread_time()
        place, size = tensor.part(piece)
        sibling = self._siblings.get(tensor.name)
        data = self._make(tensor, piece) if sibling is None else sibling[place - tensor.offset :][:size]
        digest = hashlib.sha256(data).digest()
        _write(self._file, data, place)
        weights = piece.rows * tensor.source.shape[0]
        with self._lock:
            self._digests[tensor.name][piece.index] = digest
            self._left[tensor.name] -= 1
            self._weights_done += weights
            if sibling is None:
                done, seconds = self.made.speeds.get(tensor.type, (0, 0.0))
                self.made.speeds[tensor.type] = (done + weights, seconds + time.thread_time() - before)
            if not self._left[tensor.name]:
                self._finish(tensor)

    def _finish(self, tensor: Tensor) -> None:
        if tensor.name in self._siblings:
            self.made.copied.append(tensor.name)
        elif tensor.type != tensor.source.type:
            self.made.computed.append(tensor.name)
        self._journal.write(f"{_digest(self._digests.pop(tensor.name))} {tensor.name}\n")
        self._journal.flush()
        del self._left[tensor.name]
        self._base.forget(tensor.source_span(self.head))
        if not self._left:
            self._ended.set()

    def _make(self, tensor: Tensor, piece: Piece) -> ByteArray:
        """The bytes of some rows."""
        source = tensor.source
        raw = self._base.data[tensor.source_part(piece, self.head)]
        if not self.ggml.sound(raw, source.type):
            raise SourceError(
                f"{self.order.base}: {source.name} has values that are not finite: fetch or convert the model again."
            )
        if tensor.type == source.type:
            return raw
        rows = self.ggml.to_f32(raw, source.type).reshape(piece.rows, source.shape[0])
        weights = None if tensor.weights is None else tensor.weights[piece.matrix]
        made = self.ggml.quantize(rows, tensor.type, weights)
        if not self.ggml.sound(made, tensor.type):
            raise SourceError(
                f"{self.order.base}: {source.name} has values that {tensor.type} cannot hold: choose another type."
            )
        return made

    # ---- what is there already

    def _key(self) -> str:
        order = self.order
        status = order.base.stat()
        digest = hashlib.sha256(self.layout.head)
        digest.update(f"{status.st_size} {order.identity or status.st_mtime_ns} {sha256(self.ggml.path)} ".encode())
        digest.update((order.imatrix.sha256 if order.imatrix else "").encode())
        return digest.hexdigest()
