"""The innermost loop of compensated quantization: the codes of one column after the other, for many rows at once."""

from __future__ import annotations

import numpy as np
import torch

from ggufy.llama.ggml import ByteArray, F32Array
from ggufy.quantize.codes.code_format import CodeFormat, Scales

_STEP = 8  # columns between which errors are carried one by one; BLAS takes so few with one thread
_FINE = 2  # parts of a level in which a table of uneven levels is looked up: midpoints of whole levels are halves


class ColumnCodes:
    """Chooses the codes of one block of each row, whose scales are given."""

    def __init__(self, form: CodeFormat, scales: Scales):
        rows = scales.scale.shape[1]
        self._form = form
        self._codes = np.empty((form.block, rows), dtype=np.float32 if form.even else np.uint8)
        scale = np.ascontiguousarray(scales.scale)
        self._inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        self._scale = scale
        self._first, self._last = np.float32(form.lowest), np.float32(len(form.levels) - 1)
        if form.even:
            least = form.levels[0]  # the code of level x is x - least
            self._base = least * scale if scales.offset is None else least * scale + scales.offset
            self._shift = -self._base * self._inverse
        else:
            self._inverse *= np.float32(_FINE)
            self._reach, self._nearest = _table(form)
        self._buffer, self._value = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
        self._index = np.empty(rows, dtype=np.intp)

    def chosen(self) -> ByteArray:
        """The codes of the whole block, U8 [weights, rows]."""
        return self._codes.astype(np.uint8)

    def choose(self, start: int, wanted: F32Array, feedback: F32Array, values: F32Array, errors: F32Array) -> None:
        """Chooses the codes of some columns of the block from its column `start` on.

        `wanted` [columns, rows] is what they ought to be but for each other's errors, and is spoilt; `feedback`
        [columns, columns] how much of an error is carried on; `values` [columns, rows] are the weights; `errors`
        [columns, rows] is filled with what is missing in the codes' values.
        """
        columns = len(wanted)
        nearest = self._nearest_even if self._form.even else self._nearest_level
        for first in range(0, columns, _STEP):
            last = min(first + _STEP, columns)
            if first:
                _carry(feedback[first:last, :first], errors[:first], wanted[first:last])
            for column in range(first, last):
                goal = wanted[column]
                if column > first:
                    goal += np.dot(feedback[column, first:column], errors[first:column])
                value = nearest(goal, start + column)
                np.subtract(values[column], value, out=errors[column])

    def _nearest_even(self, goal: F32Array, column: int) -> F32Array:
        group, code, value = column // self._form.group, self._codes[column], self._value
        np.multiply(goal, self._inverse[group], out=code)
        code += self._shift[group]
        np.rint(code, out=code)
        np.maximum(code, self._first, out=code)
        np.minimum(code, self._last, out=code)
        np.multiply(code, self._scale[group], out=value)
        value += self._base[group]
        return value

    def _nearest_level(self, goal: F32Array, column: int) -> F32Array:
        group, code = column // self._form.group, self._codes[column]
        np.multiply(goal, self._inverse[group], out=self._buffer)
        self._buffer += self._reach
        np.maximum(self._buffer, np.float32(0), out=self._buffer)
        np.minimum(self._buffer, np.float32(len(self._nearest) - 1), out=self._buffer)
        self._index[...] = self._buffer
        np.take(self._nearest, self._index, out=code)
        np.take(self._form.levels, code, out=self._value)
        self._value *= self._scale[group]
        return self._value


def _carry(feedback: F32Array, errors: F32Array, wanted: F32Array) -> None:
    wanted += (torch.from_numpy(feedback) @ torch.from_numpy(errors)).numpy()


def _table(form: CodeFormat) -> tuple[np.float32, ByteArray]:
    """The nearest code of every part of a level from the lowest level on, and where the table begins."""
    least, most = form.levels[[0, -1]]
    middles = (form.levels[1:] + form.levels[:-1]) / 2
    parts = np.arange(least * _FINE, most * _FINE + 1) / _FINE
    return np.float32(-least * _FINE), np.searchsorted(middles, parts, side="right").astype(np.uint8)
