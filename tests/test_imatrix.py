"""Which imatrix files are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from ggufy.errors import CalibrationError
from ggufy.sources.gguf import GgufHead, TensorInfo
from ggufy.steps.imatrix import check_imatrix

W = "blk.0.time_mix_key.weight"
BASE = GgufHead(
    metadata={},
    tensors={W: TensorInfo(name=W, shape=(256, 64), type="F16", offset=0, size=0)},
    metadata_end=0,
    data_start=0,
    file_size=0,
)


def write(
    path: Path, *, kind: str = "imatrix", name: str = W, columns: int = 256, bad: float = 1, count: float = 9
) -> Path:
    writer = GGUFWriter(path, "")
    writer.add_type(kind)
    sums = np.ones((1, columns), dtype=np.float32)
    sums[0, 3] = bad
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", np.full((1, 1), count, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_sound_one_is_taken(tmp_path: Path) -> None:
    check_imatrix(write(tmp_path / "i.gguf"), BASE, [W], shown_as="i.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "model"}, "no imatrix"),
        ({"name": "blk.0.attn_q.weight"}, f"no data for {W}"),
        ({"columns": 128}, "another model"),
        ({"bad": float("nan")}, "not finite"),
        ({"bad": float("inf")}, "not finite"),
        ({"count": 0}, "no token"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = write(tmp_path / "i.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=words):
        check_imatrix(path, BASE, [W], shown_as="i.gguf")
