"""A folder that stands in for a Hugging Face model: its small files, and holes where its weights would be.

llama.cpp's converter reads heads first and values when it writes them. So what it would make is known from the heads
of a model's files, to the byte, before any of them is fetched; see `converter_child.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ggufy.formats.safetensors import ANY_DTYPES, StoredTensor, packed_header
from ggufy.sources.format import Report
from ggufy.sources.hf_config import without_programs

_NAMES = {short: (name, width) for name, (short, width) in ANY_DTYPES.items()}
_INDEX = "model.safetensors.index.json"


def write_stand_in(report: Report, folder: Path) -> None:
    """Writes the folder of a model that was described for a forecast. Raises SourceError for JSON that is none."""
    folder.mkdir(parents=True)
    for name, content in report.companions.items():
        (folder / name).write_bytes(without_programs(content, name) if name.endswith(".json") else content)
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in report.stored.items():
        parts.setdefault(tensor.file, {})[name] = tensor
    for file, tensors in parts.items():
        _write_hollow(folder / file, tensors)
    if len(parts) > 1:
        places = {name: tensor.file for name, tensor in report.stored.items()}
        (folder / _INDEX).write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def _write_hollow(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """A safetensors file with these tensors, as a hole behind its list."""
    kinds = {name: _NAMES[tensor.dtype] for name, tensor in tensors.items()}
    head, size = packed_header(
        (name, kinds[name][0], tensor.shape, tensor.elements * kinds[name][1]) for name, tensor in tensors.items()
    )
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
