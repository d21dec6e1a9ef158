"""Writes what the pinned converter of Hugging Face models knows, `ggufy/sources/hf_converter.json`: architectures of
texts, of what sees or hears, and of those whose heads for several tokens (MTP) it can part from the model, and the
fingerprints of pre-tokenizers. Its source is read, not run.

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
    """Of the converter in a folder: `text`, `mmproj` and `mtp`, sorted, and `pre`, fingerprint to name of a
    pre-tokenizer."""
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
    parted = sorted(_parting(source) & set(maps["TEXT_MODEL_MAP"]))
    return {"text": maps["TEXT_MODEL_MAP"], "mmproj": maps["MMPROJ_MODEL_MAP"], "mtp": parted, "pre": pre}


def _parting(source: Path) -> set[str]:
    """The architectures of classes with supports_mtp_export, of their own or of the first above them that says."""
    classes = {}
    for path in sorted((source / "conversion").glob("*.py")):
        found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        classes |= {node.name: node for node in found if isinstance(node, ast.ClassDef)}

    def parts(name: str) -> bool | None:
        if (node := classes.get(name)) is None:
            return None
        for line in node.body:
            match line:
                case (
                    ast.Assign(targets=[ast.Name(id="supports_mtp_export")], value=ast.Constant(value=bool() as own))
                    | ast.AnnAssign(target=ast.Name(id="supports_mtp_export"), value=ast.Constant(value=bool() as own))
                ):
                    return own
        above = (parts(base.id) for base in node.bases if isinstance(base, ast.Name) and base.id != "ModelBase")
        return next((said for said in above if said is not None), None)

    return {
        word.value
        for name, node in classes.items()
        if parts(name)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "register"
        for word in call.args
        if isinstance(word, ast.Constant)
    }


def main() -> None:
    source = installed_folder(Settings.from_env().cache) / "source"
    TARGET.write_text(json.dumps(read_names(source), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
