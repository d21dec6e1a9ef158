"""Writes what the pinned converter of Hugging Face models knows, `ggufy/sources/hf_converter.json`: architectures of
texts and of what sees or hears, and the fingerprints of pre-tokenizers. Its source is read, not run.

    .venv/bin/python -m tools.converter_names
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ggufy.llama.install import installed_folder
from ggufy.system.settings import Settings

TARGET = Path(__file__).parent.parent / "ggufy/sources/hf_converter.json"


def read_names(source: Path) -> dict[str, Any]:
    """Of the converter in a folder: `text` and `mmproj`, sorted, and `pre`, fingerprint to name of a pre-tokenizer."""
    maps: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse((source / "conversion/__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Dict):
            maps[node.target.id] = sorted(key.value for key in node.value.keys if isinstance(key, ast.Constant))
    pre = {}
    for node in ast.walk(ast.parse((source / "conversion/base.py").read_text(encoding="utf-8"))):
        match node:
            case ast.If(
                test=ast.Compare(left=ast.Name(id="chkhsh"), comparators=[ast.Constant(value=digest)]),
                body=[ast.Assign(value=ast.Constant(value=name))],
            ):
                pre[digest] = name
            case _:
                pass
    return {"text": maps["TEXT_MODEL_MAP"], "mmproj": maps["MMPROJ_MODEL_MAP"], "pre": pre}


def main() -> None:
    source = installed_folder(Settings.from_env().cache) / "source"
    TARGET.write_text(json.dumps(read_names(source), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
