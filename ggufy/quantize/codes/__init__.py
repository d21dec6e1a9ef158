"""The codes inside ggml's blocks: what each code of a block stands for, and how other codes get into it.

A kernel of ggml writes blocks of scales and codes. A `CodeFormat` reads the scales of such blocks and writes codes of
one's own beside them, so that somebody else may choose the codes (compensated.py does).
"""

from __future__ import annotations

from ggufy.quantize.codes.blocks_of_32 import SMALL_FORMATS
from ggufy.quantize.codes.blocks_of_256 import K_FORMATS
from ggufy.quantize.codes.code_format import CodeFormat
from ggufy.quantize.codes.lattices import LATTICE_FORMATS, LatticeFormat
from ggufy.quantize.codes.ternary import TERNARY_FORMATS

FORMATS: dict[str, CodeFormat] = {form.name: form for form in (*SMALL_FORMATS, *K_FORMATS, *TERNARY_FORMATS)}
LATTICES: dict[str, LatticeFormat] = {form.name: form for form in LATTICE_FORMATS}
