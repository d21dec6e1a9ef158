"""The process that `covariances.py` starts: it loads a base and reads a text chunk by chunk.

    python -P -m ggufy.llama.covariance_child TASK.json

It prints what it is going to do, and a line for each chunk that it has read. Of a failure it prints one sentence, and
ends with exit code 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ggufy.core.errors import DiskError, GgufyError
from ggufy.core.words import human_size
from ggufy.formats.covariance import choose_widest, covariance_shapes, is_held_out, plan_covariances
from ggufy.formats.gguf import read_head, read_tensor
from ggufy.formats.gguf_writer import F32Array, write_gguf
from ggufy.llama.covariances import CovarianceTask, read_task
from ggufy.llama.inference import I32Array, Inference, MatrixInput
from ggufy.llama.input_sums import ProductSums, SquareSums
from ggufy.llama.tools import CONTEXT
from ggufy.system.files import allocated_bytes, disk_errors, finish, flush, free_bytes, part_of

_KEY = "segment.key"
Shapes = dict[str, tuple[int, int]]
_SAVING = 20  # times what the last saving took, between two


def main(task: CovarianceTask) -> None:
    """Does the task. Raises ToolError, DiskError."""
    inference = Inference(task.llama, task.base, threads=task.threads)
    tokens = inference.tokenize(task.text.read_bytes())
    if len(tokens) < 2 * CONTEXT:  # llama-imatrix's words
        sys.exit(f"you need at least {2 * CONTEXT} tokens, and the text tokenizes to only {len(tokens)} tokens")
    chunks = min(len(tokens) // CONTEXT, task.facts.chunks or len(tokens))
    task = dataclasses.replace(task, facts=dataclasses.replace(task.facts, chunks=chunks))
    with ThreadPoolExecutor(task.threads) as pool:
        _Collection(task, inference, pool).collect(tokens[: chunks * CONTEXT].reshape(chunks, CONTEXT))
    inference.close()


def shared_inputs(found: list[MatrixInput], wanted: tuple[str, ...]) -> dict[str, str]:
    """Tensor -> the first tensor that reads the same, of those that are wanted and read every token once."""
    names = [one.name for one in found]
    readers = [
        one
        for one in found
        if one.name in wanted
        and names.count(one.name) == 1
        and one.experts is None
        and one.matrices == (1, 1)
        and one.values[..., 0].size == CONTEXT
    ]
    first: dict[int, str] = {}
    return {one.name: first.setdefault(one.input, one.name) for one in readers}


def grouped(columns: Mapping[str, int], widest: int, memory: int) -> list[Shapes]:
    """Tensors of the inputs' sums in their order, in as many passes as it takes to keep those of each below `memory`
    bytes."""
    groups: list[Shapes] = []
    for name, count in columns.items():
        shapes = covariance_shapes({name: count}, widest)
        if not groups or _bytes_of(groups[-1]) + _bytes_of(shapes) > memory:
            groups.append({})
        groups[-1] |= shapes
    return groups


def _bytes_of(shapes: Mapping[str, tuple[int, int]]) -> int:
    return sum(4 * rows * width for rows, width in shapes.values())


class _Collection:
    """One run, which may go on where another one was stopped."""

    def __init__(self, task: CovarianceTask, inference: Inference, pool: ThreadPoolExecutor):
        self.task, self.inference, self.pool = task, inference, pool
        found, chunks = inference.find_inputs(), task.facts.chunks
        self.inputs = shared_inputs(found, task.wanted)
        widths = {one.name: one.values.shape[-1] for one in found}
        columns = {name: widths[name] for name in dict.fromkeys(self.inputs.values())}
        widest = choose_widest(columns.values())
        self.groups = grouped(columns, widest, task.memory // 2)  # the sums, and a chunk's own products
        held_out = CONTEXT * sum(map(is_held_out, range(chunks)))
        self.plan = plan_covariances(
            covariance_shapes(columns, widest),
            inputs=self.inputs,
            facts=task.facts,
            tokens=CONTEXT * chunks - held_out,
            held_out_tokens=held_out,
        )
        self.part = part_of(task.out)
        what = [hashlib.sha256(self.plan.head).hexdigest(), [list(group) for group in self.groups]]
        self.key = hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def collect(self, chunks: I32Array) -> None:
        """Reads what is not read yet of the tokens [chunks, 512], and leaves both files."""
        task, each = self.task, len(chunks)
        total = each * max(1, len(self.groups))
        count, passes = len(set(self.inputs.values())), len(self.groups)
        _say(f"{count} inputs, {self.plan.size} bytes, {passes} passes over {each} chunks")
        done, tensors = self._resumed()
        self._allocate()
        squares = SquareSums({name: one for name, one in tensors.items() if name not in self.plan.offsets})
        saved, cost = time.monotonic(), 0.0
        for number, group in enumerate(self.groups or [{}]):
            if done >= (number + 1) * each:
                continue
            sums = ProductSums(group, self.pool)
            if done > number * each:
                sums.load(tensors)
            for chunk in range(done - number * each, each):
                self._read(chunks[chunk], sums, squares if number == 0 else None, held_out=is_held_out(chunk))
                done += 1
                _say(f"chunk {done} of {total}")
                if chunk + 1 < each and time.monotonic() - saved > max(task.segment_s, _SAVING * cost):
                    saved, cost = self._save(done, squares, sums)
            self._write(sums)
            saved, cost = self._save(done, squares, None)
        self._finish(squares)

    def _read(
        self,
        tokens: I32Array,
        sums: ProductSums,
        squares: SquareSums | None,
        *,
        held_out: bool,
    ) -> None:
        names = {block.rpartition(".covariance.")[0] for block in sums.tensors}

        def watch(found: MatrixInput) -> None:
            if squares is not None:
                squares.add(found)
            if found.name in names:
                sums.multiply(found.name, found.values.reshape(-1, found.values.shape[-1]))

        loss = self.inference.read(tokens, watch)
        sums.add(math.exp(-loss / 2) if self.task.facts.weighting else 1.0, held_out=held_out)

    # ---- files

    def _segments(self) -> Iterator[Path]:
        return iter(sorted(self.task.work.glob("[0-9]*.gguf")))

    def _resumed(self) -> tuple[int, dict[str, F32Array]]:
        """(chunks read, counted over all passes, and the sums of then) of an earlier run that made the same."""
        for path in reversed(list(self._segments())):
            head = read_head(path)
            done = int(path.stem)
            written = done < self.task.facts.chunks or self._has_head()
            if head.metadata.get(_KEY) == self.key and written:
                shapes = {name: tuple(reversed(info.shape)) for name, info in head.tensors.items()}
                return done, {name: read_tensor(path, head, name).reshape(shape) for name, shape in shapes.items()}
        return 0, {}

    def _has_head(self) -> bool:
        """Whether the part of an earlier run is of the same file."""
        if not self.part.is_file() or self.part.stat().st_size != self.plan.size:
            return False
        with self.part.open("rb") as file:
            return file.read(len(self.plan.head)) == self.plan.head

    def _allocate(self) -> None:
        """Makes the file that is filled pass by pass. Raises DiskError if there is no room for it."""
        work = max(map(_bytes_of, self.groups), default=0)
        needed = self.plan.size - allocated_bytes(self.part) + 2 * work  # the newest segment, and the one before it
        with disk_errors(self.task.out):
            if needed > (free := free_bytes(self.task.out)):
                raise DiskError(
                    "covariances of {name} need {needed} of disk while they are made, {free} are free: free some "
                    "space.",
                    name=self.task.base.name,
                    needed=human_size(needed),
                    free=human_size(free),
                )
            if not self._has_head():
                with self.part.open("wb") as file:
                    file.write(self.plan.head)
                    file.truncate(self.plan.size)

    def _save(self, done: int, squares: SquareSums, sums: ProductSums | None) -> tuple[float, float]:
        """Keeps what is summed up, and drops what was kept before; (when, and seconds that it took)."""
        began = time.monotonic()
        older = list(self._segments())
        path = self.task.work / f"{done:08d}.gguf"
        write_gguf(path, {_KEY: self.key}, squares.tensors | (sums.tensors if sums else {}))
        for other in older:
            if other != path:
                other.unlink()
        return time.monotonic(), time.monotonic() - began

    def _write(self, sums: ProductSums) -> None:
        """Puts a pass's covariances into their places."""
        with disk_errors(self.task.out), self.part.open("r+b") as file:
            for name, array in sums.tensors.items():
                file.seek(self.plan.offsets[name])
                file.write(array.data)
        flush(self.part)

    def _finish(self, squares: SquareSums) -> None:
        task = self.task
        about: dict[str, str | int | list[str]] = {"general.type": "imatrix", "imatrix.datasets": [task.facts.text]}
        about |= {"imatrix.chunk_count": task.facts.chunks, "imatrix.chunk_size": CONTEXT}
        write_gguf(task.imatrix, about, squares.tensors)
        with disk_errors(task.out):
            finish(self.part, task.out)
        for path in self._segments():
            path.unlink()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(read_task(Path(sys.argv[1])))
    except GgufyError as failure:
        sys.exit(f"error: {failure}")
