"""Rows of a base, as values, and as ggml's own kernels quantize them: what every row of a plain quant is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.layout import Rows
from ggufy.quantize.open_file import OpenFile


@dataclass(frozen=True)
class PlainRows:
    """Rows of an open base. May be asked by several threads. Each method raises SourceError for values that are not
    finite."""

    base: OpenFile
    ggml: Ggml

    def raw(self, rows: Rows) -> ByteArray:
        """As they are in the base."""
        source, raw = rows.tensor.source, self.base.read(*rows.source)
        if not self.ggml.sound(raw, source.type):
            raise SourceError(
                "{base}: {tensor} has values that are not finite: fetch or convert the model again.",
                base=self.base.path,
                tensor=source.name,
            )
        return raw

    def values(self, rows: Rows) -> F32Array:
        """The weights, F32 [rows, columns]."""
        values = self.ggml.to_f32(self.raw(rows), rows.tensor.source.type).reshape(rows.count, rows.columns)
        if rows.tensor.scale != 1:
            values = values * np.float32(rows.tensor.scale)
        factors = rows.tensor.factors
        return values if factors is None else factors.times(values, matrix=rows.matrix, first=rows.first)

    def quantized(self, rows: Rows) -> ByteArray:
        """The bytes of the new file. Raises SourceError, too, for values that the type cannot hold."""
        tensor = rows.tensor
        if not tensor.changes:
            return self.raw(rows)
        weights = None if tensor.weights is None else tensor.weights[rows.matrix]
        made = self.ggml.quantize(self.values(rows), tensor.type, weights)
        if made is None:
            raise SourceError(
                "{base}: {tensor} has values that {type} cannot hold: choose another type.",
                base=self.base.path,
                tensor=tensor.name,
                type=tensor.type,
            )
        return made
