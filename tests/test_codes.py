"""The codes in ggml's blocks, against ggml's own decoding, bit by bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.codes import FORMATS, LATTICES
from ggufy.quantize.codes.code_format import CodeFormat
from ggufy.quantize.codes.lattices import LatticeFormat

ROWS, COLUMNS = 24, 512
FORMS = [pytest.param(form, id=form.name) for form in FORMATS.values()]


def decoded_by_ggml(ggml: Ggml, kind: str, raw: ByteArray, count: int) -> F32Array:
    function = getattr(ctypes.CDLL(str(ggml.path)), f"dequantize_row_{kind.lower()}".replace("_k", "_K"))
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    raw, out = np.ascontiguousarray(raw), np.empty(count, dtype=np.float32)
    function(raw.ctypes.data, out.ctypes.data, count)
    return out


def planes_of(form: CodeFormat | LatticeFormat, raw: ByteArray) -> ByteArray:
    return np.ascontiguousarray(raw.reshape(-1, form.size).T)


@pytest.fixture(scope="module")
def ggml(llama_bin: object) -> Ggml:
    return Ggml(llama_bin)  # type: ignore[arg-type]


def blocks(ggml: Ggml, form: CodeFormat, *, weighted: bool) -> ByteArray:
    random = np.random.default_rng(7)
    values = (random.standard_normal((ROWS, COLUMNS)) * 0.05).astype(np.float32)
    values[3], values[4, :40], values[5, 64:96] = 0, 0, 0.25
    raw = ggml.quantize(values, form.name, random.random(COLUMNS).astype(np.float32) if weighted else None)
    assert raw is not None
    return raw


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_decoded_as_ggml_does(form: CodeFormat, weighted: bool, ggml: Ggml) -> None:
    raw = blocks(ggml, form, weighted=weighted)
    expected = decoded_by_ggml(ggml, form.name, raw, ROWS * COLUMNS).reshape(-1, form.block).T
    np.testing.assert_array_equal(form.decode(planes_of(form, raw)), expected)


@pytest.mark.parametrize("form", FORMS)
def test_any_codes_can_be_written_into_blocks(form: CodeFormat, ggml: Ggml) -> None:
    raw = blocks(ggml, form, weighted=True)
    planes = planes_of(form, raw)
    form.pack(form.unpack(planes), planes)
    np.testing.assert_array_equal(planes, planes_of(form, raw))
    scales = form.scales(planes)
    others = np.random.default_rng(8).integers(form.lowest, len(form.levels), (form.block, planes.shape[1]))
    form.pack(others.astype(np.uint8), planes)
    np.testing.assert_array_equal(form.unpack(planes), others)
    np.testing.assert_array_equal(form.scales(planes).scale, scales.scale)
    expected = decoded_by_ggml(ggml, form.name, planes.T, ROWS * COLUMNS).reshape(-1, form.block).T
    np.testing.assert_array_equal(form.decode(planes), expected)


@pytest.mark.parametrize("form", [pytest.param(form, id=form.name) for form in LATTICES.values()])
def test_any_points_can_be_written_into_blocks(form: LatticeFormat, ggml: Ggml) -> None:
    random = np.random.default_rng(9)
    values, ones = (random.standard_normal((ROWS, COLUMNS)) * 0.05).astype(np.float32), np.ones(COLUMNS, np.float32)
    raw = ggml.quantize(values, form.name, ones)
    assert raw is not None
    planes = planes_of(form, raw)
    scales = np.repeat(form.scales(planes), form.span, axis=0)
    assert scales.min() >= 0 and scales.max() > 0
    points = random.integers(0, len(form.grid), (256 // form.width, planes.shape[1])).astype(np.uint16)
    minus = random.integers(0, 2, (32, 8, planes.shape[1])).astype(np.uint8)
    if form.even_signs:
        minus[:, 7] = minus[:, :7].sum(axis=1) % 2
    form.pack(points, np.packbits(minus, axis=1, bitorder="little")[:, 0], planes)
    expected = (
        form.grid[points].transpose(0, 2, 1).reshape(256, -1)
        * scales
        * (1 - 2 * minus.reshape(256, -1).astype(np.float32))
    )
    found = decoded_by_ggml(ggml, form.name, planes.T, ROWS * COLUMNS).reshape(-1, 256).T
    np.testing.assert_array_equal(found, expected)


def test_sizes_are_those_of_ggml(ggml: Ggml) -> None:
    assert {name: (form.block, form.size) for name, form in FORMATS.items()} == {
        name: (ggml.types[name].block, ggml.types[name].size) for name in FORMATS
    }
