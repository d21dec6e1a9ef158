"""Reads the texts of one column of a data set file: a script that dataset.py runs (see system/isolated.py).

The file may be a stranger's; it is read by arrow-rs, which is written in Rust.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PARQUET, _ARROW_FILE = b"PAR1", b"ARROW1"


def main(source: Path, column: str, target: Path, limit: int) -> dict[str, Any]:
    """Writes the rows of a column to `target`, each as it is and with a line feed at its end, at most `limit` bytes of
    whole rows. Gives the `columns` that hold texts, and whether one was `chosen` and written."""
    try:
        reader = _opened(source)
    except ModuleNotFoundError:
        return {"missing": True}
    fields = [reader.schema.field(number) for number in range(len(reader.schema))]
    columns = [field.name for field in fields if _is_text(field.type)]
    chosen = column if column in columns else columns[0] if len(columns) == 1 and not column else None
    if chosen is not None:
        size = 0
        with target.open("wb") as out:
            for row in _rows(reader, chosen):
                size += len(row)
                if size > limit:
                    break
                out.write(row)
    return {"columns": columns, "chosen": chosen}


def _opened(source: Path) -> Any:
    """The batches of a file, whichever of the three layouts it has."""
    from arro3 import io  # noqa: PLC0415 - it may not be installed

    with source.open("rb") as file:
        begin = file.read(len(_ARROW_FILE))
    if begin.startswith(_PARQUET):
        return io.read_parquet(source)
    return io.read_ipc(source) if begin == _ARROW_FILE else io.read_ipc_stream(source)


def _is_text(kind: Any) -> bool:
    from arro3.core import DataType  # noqa: PLC0415

    return kind in (DataType.utf8(), DataType.large_utf8(), DataType.string_view())


def _rows(reader: Any, column: str) -> Iterator[bytes]:
    for batch in reader:
        for text in batch.column(column).to_pylist():
            if text is not None:
                yield (text if text.endswith("\n") else text + "\n").encode()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))  # noqa: T201
