"""Quantizes a base GGUF: the same bytes as llama-quantize, but stoppable, resumable and throttled while it runs.

The tensors are cut into chunks of rows, which a pool of threads takes in the order of the file and works off in pieces
of a fraction of a second. Between two pieces a thread looks whether it may go on, so limit, duty and stop act at once.
Each piece is read from its place in the base and written to its place in `<name>.part`, so the memory needed does not
depend on the model. A journal beside it (journal.py) tells which chunks are whole.

After a kill, whatever the journal names and has the right digest is kept, and the rest is made. A tensor that a
finished quant of the same base and imatrix (a sibling) has in the same type is copied from there: its first and its
last row are made again to see that they are the same.

Where there are covariances, matrices are compensated (rounding.py), tile by tile, and the file's metadata has a digest
of all that this follows from. Then the siblings are those with the same digest, and such matrices are not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufy.core.errors import CalibrationError, Cancelled, SourceError, UsageError
from ggufy.formats.gguf import read_head
from ggufy.llama.ggml import ByteArray, Ggml
from ggufy.quantize.factors import digest_of
from ggufy.quantize.journal import journal_line, journal_of, read_journal
from ggufy.quantize.layout import PIECE, FileLayout, Rows, Tensor, plan
from ggufy.quantize.open_file import OpenFile, write_at
from ggufy.quantize.plain_rows import PlainRows
from ggufy.quantize.task import ROUNDING, Made, QuantizeTask, rounding_facts
from ggufy.quantize.turns import Ended, Turn, Turns
from ggufy.system import child_process
from ggufy.system.control import TICK_S, Control
from ggufy.system.files import PART_SUFFIX, disk_errors, finish, write_text

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Preparation, Rounding

logger = logging.getLogger(__name__)
_MOST_THREADS = 256


def quantize(order: QuantizeTask, control: Control, *, ggml: Ggml) -> Made:
    """Makes `order.target`.

    Raises UsageError, SourceError or CalibrationError when recipe, base or imatrix cannot be used, and then leaves
    nothing; Cancelled and DiskError leave what the next run goes on with.
    """
    target = order.target
    part = target.with_name(target.name + PART_SUFFIX)
    journal = journal_of(part)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            layout = plan(
                order.base,
                read_head(order.base),
                order.recipe,
                ftype=order.ftype,
                imatrix=order.imatrix,
                scales=order.scales,
                scaling=order.scaling,
                ggml=ggml,
                facts={**order.facts, **rounding_facts(order, ggml.sha256)},
            )
            with contextlib.ExitStack() as stack:
                made = _Run(order, layout, ggml, control, stack).make(part, journal)
            finish(part, target)
        except (UsageError, SourceError, CalibrationError):
            part.unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
            raise
        journal.unlink(missing_ok=True)
    return made


class _Run:
    """One run over one file. What several threads change is guarded by `_lock`."""

    def __init__(
        self, order: QuantizeTask, layout: FileLayout, ggml: Ggml, control: Control, stack: contextlib.ExitStack
    ):
        self.order, self.layout, self.ggml, self.control, self.stack = order, layout, ggml, control, stack
        self.made = Made()
        self._base = self._opened(order.base)
        self._plain = PlainRows(self._base, ggml)
        self._copies: dict[str, tuple[OpenFile, int]] = {}  # tensor -> a sibling, and where it is in it
        self._lock = threading.Lock()
        self._turns = Turns()
        self._rounding: Rounding | None = None
        if order.covariances is not None:
            from ggufy.formats.torch_threads import threads_kept  # noqa: PLC0415 - plain quants do without PyTorch
            from ggufy.quantize.rounding import Rounding  # noqa: PLC0415

            self._rounding = Rounding(order.covariances, layout, ggml, self._plain.values)
            stack.enter_context(threads_kept())

    def make(self, part: Path, journal: Path) -> Made:
        self._file = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        self.stack.callback(os.close, self._file)
        key = self._key()
        left_by, found = read_journal(journal)
        kept = {offset: digest for offset, (digest, _) in found.items()} if left_by == key else {}
        os.ftruncate(self._file, self.layout.size)
        chunks = self.layout.chunks(self._rounding.names if self._rounding else ())
        whole = {c.offset: c for c in chunks if c.offset in kept and self._is_whole(c, kept[c.offset])}
        due = [chunk for chunk in chunks if chunk.offset not in whole]
        self.made.resumed = self._turns.done = self.layout.elements - sum(chunk.weights for chunk in due)
        lines = [journal_line(kept[offset], chunk.offset, chunk.size) for offset, chunk in whole.items()]
        write_text(journal, "".join([f"{key}\n", *lines]))
        self._journal = self.stack.enter_context(journal.open("a", encoding="utf-8"))
        for offset, data in self.layout.fixed():
            write_at(self._file, data, offset)
        changing = {chunk.tensor.name: chunk.tensor for chunk in due if chunk.tensor.changes}
        self._prepare(changing.values())
        self._find_copies(changing)
        self._obey()
        self._work_off(self._rounding.in_order(due, self._copies, self._turns.limit) if self._rounding else due)
        return self.made

    def _work_off(self, due: Sequence[Rows | Preparation]) -> None:
        """Threads make the chunks that are due; this one watches."""
        queue = iter(due)
        workers: list[Future[None]] = []
        with ThreadPoolExecutor(_MOST_THREADS, "quantize", child_process.lower_own_priority) as pool:
            try:
                while due:
                    self._obey()
                    workers += [pool.submit(self._work, queue) for _ in range(len(workers), self._turns.limit)]
                    done, running = wait(workers, timeout=TICK_S, return_when=FIRST_EXCEPTION)
                    for worker in done:
                        worker.result()
                    if not running:
                        break
            finally:
                self._turns.ended.set()
        self.control.report(1.0)

    def _check_stopped(self) -> None:
        if self.control.stopped():
            raise Cancelled("the job was stopped.")

    def _obey(self) -> None:
        """Looks at all that may have changed, and tells how far it is."""
        self._check_stopped()
        limit = min(max(1, self.control.limit()), _MOST_THREADS)
        self._turns.allow(limit, min(max(0.0, self.control.duty()), 1.0))
        self.control.report(self._turns.done / self.layout.elements)

    def _work(self, queue: Iterator[Rows | Preparation]) -> None:
        with contextlib.suppress(Ended):
            while not self._turns.ended.is_set():
                with self._lock:
                    item = next(queue, None)
                if item is None:
                    return
                if isinstance(item, Rows):
                    self._do(item)
                elif self._rounding:
                    with Turn(self._turns) as turn:
                        self._rounding.prepare(item.tensor, turn.pause)

    def _do(self, chunk: Rows) -> None:
        digest, seconds = hashlib.sha256(), 0.0
        in_one = self._rounding is not None and self._rounding.ready(chunk.tensor, self._turns.ended)
        for piece in chunk.split(chunk.weights if in_one else PIECE):
            with Turn(self._turns, piece.weights) as turn:
                data = self._bytes(piece, turn.pause)
                digest.update(data.data)
                write_at(self._file, data.data, piece.offset)
            seconds += turn.seconds
        with self._lock:
            self._journal.write(journal_line(digest.hexdigest(), chunk.offset, chunk.size))
            self._journal.flush()
            self._note(chunk, seconds)
        if self._rounding:
            self._rounding.forget(chunk.tensor)

    def _note(self, chunk: Rows, seconds: float) -> None:
        """Keeps for the caller how a chunk came about."""
        tensor = chunk.tensor
        if not tensor.changes:
            return
        if tensor.name in self._copies:
            names = self.made.copied
        else:
            names = self.made.computed
            weights, before = self.made.speeds.get(tensor.type, (0, 0.0))
            self.made.speeds[tensor.type] = (weights + chunk.weights, before + seconds)
        if tensor.name not in names:
            names.append(tensor.name)

    # ---- how bytes come about

    def _bytes(self, rows: Rows, pause: Callable[[], None]) -> ByteArray:
        if copy := self._copies.get(rows.tensor.name):
            sibling, offset = copy
            return sibling.read(offset + rows.start, rows.size)
        made = self._rounding.make(rows, pause) if self._rounding else None
        return self._plain.quantized(rows) if made is None else made

    def _prepare(self, tensors: Iterable[Tensor]) -> None:
        """Lets ggml compute the tables of the types that need some, which cannot be interrupted but left alone."""
        tables = self.ggml.prepare({tensor.type for tensor in tensors})
        while tables.is_alive():
            tables.join(TICK_S)
            self._check_stopped()

    # ---- what is there already

    def _key(self) -> str:
        """Tells whether what an earlier run left belongs to the same file."""
        order, status = self.order, os.fstat(self._base.descriptor)
        digest = hashlib.sha256(self.layout.head)
        for word in (
            status.st_size,
            order.identity or status.st_mtime_ns,
            order.imatrix.sha256 if order.imatrix else "",
            self.ggml.sha256 + digest_of(order.scaling),
        ):
            digest.update(f"{word} ".encode())
        return digest.hexdigest()

    def _is_whole(self, chunk: Rows, expected: str) -> bool:
        self._check_stopped()
        data = os.pread(self._file, chunk.size, chunk.offset)
        return hashlib.sha256(data).hexdigest() == expected

    def _find_copies(self, tensors: Mapping[str, Tensor]) -> None:
        """Finds siblings for what is due."""
        for path in self.order.siblings:
            try:
                head = read_head(path)
            except SourceError as error:
                logger.warning("%s is left alone: %s", path.name, error)
                continue
            if _comparable(head.metadata) != _comparable(self.layout.metadata):
                logger.warning("%s was made from another base or imatrix, and is left alone.", path.name)
                continue
            sibling = self._opened(path)
            for name, tensor in tensors.items():
                theirs = head.tensors.get(name)
                if name in self._copies or theirs is None:
                    continue
                offset = head.data_start + theirs.offset
                if (theirs.type, theirs.shape) == (tensor.type, tensor.source.shape) and self._agrees(
                    tensor, sibling, offset
                ):
                    self._copies[name] = (sibling, offset)

    def _agrees(self, tensor: Tensor, sibling: OpenFile, offset: int) -> bool:
        """Whether the first and the last row in a sibling are what this run would make; what is compensated is."""
        self._check_stopped()
        if self._rounding and tensor.name in self._rounding.names:
            return True
        *_, last = tensor.matrices()
        samples = (next(tensor.matrices()), replace(last, first=last.first + last.count - 1))
        return all(
            np.array_equal(self._plain.quantized(row), sibling.read(offset + row.start, row.size))
            for row in (replace(sample, count=1) for sample in samples)
        )

    def _opened(self, path: Path) -> OpenFile:
        descriptor = os.open(path, os.O_RDONLY)
        self.stack.callback(os.close, descriptor)
        return OpenFile(path, descriptor)


def _comparable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What quants of the same base and imatrix have in common."""
    own = ("general.file_type", "ggufy.")
    return {key: value for key, value in metadata.items() if key == ROUNDING or not key.startswith(own)}
