"""Data set files as texts: the rows of one column of a Parquet or Arrow file, one after the other.

    test.parquet            its only column of texts
    test.parquet#text       the column `text`

A row keeps its own line feed, or gets one. So the rows of wikitext come out as its raw file, but for the blank that
stands there in each empty line. Such a file may be a stranger's: it is read in a process of its own
(dataset_reader.py), within limits.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ggufy.core.errors import CalibrationError
from ggufy.core.messages import Message
from ggufy.core.words import brief
from ggufy.system.isolated import IsolatedFailure, run_isolated

SUFFIXES = (".parquet", ".arrow")
PACKAGE = "arro3-io"
_CPU_S, _MEMORY = 120, 4 << 30
_PANIC = re.compile(r'.*\("(.*)"\)')  # of Rust, around its reason
_SHOWN = 20  # names of columns in a sentence


def split_column(choice: str) -> tuple[str, str]:
    """What was chosen without its column, and the column: `("a.parquet", "text")` for `a.parquet#text`. Only a data
    set file has one."""
    place, _, column = choice.rpartition("#")
    return (place, column) if is_dataset(place) else (choice, "")


def is_dataset(name: str) -> bool:
    """Whether a file of this name is a data set's."""
    return name.lower().endswith(SUFFIXES)


def text_of(data: bytes, column: str, *, name: str, limit: int) -> bytes:
    """The text of a data set file with this content: at most `limit` bytes of whole rows; nulls are left out.

    Raises CalibrationError for a file that cannot be read, a column that is not there, or one that is to be chosen.
    """
    with tempfile.TemporaryDirectory(prefix="ggufy-dataset-") as folder:
        source, target = Path(folder) / "data", Path(folder) / "text"
        source.write_bytes(data)
        script = Path(__file__).with_name("dataset_reader.py").absolute()
        try:
            found = run_isolated(script, [str(source), column, str(target), str(limit)], cpu_s=_CPU_S, memory=_MEMORY)
        except IsolatedFailure as failure:
            raise CalibrationError(
                "{name} cannot be read as a data set ({reason}): give a Parquet or Arrow file, or a text.",
                name=name,
                reason=brief(_PANIC.sub(r"\1", str(failure))) or Message("it takes too much memory or time"),
            ) from None
        if found.get("missing"):
            raise CalibrationError(
                "{name} is a data set, and what reads those is not installed: run `pip install {package}`.",
                name=name,
                package=PACKAGE,
            )
        if found["chosen"] is None:
            raise _unchosen(name, column, found["columns"])
        return target.read_bytes()


def _unchosen(name: str, column: str, columns: list[str]) -> CalibrationError:
    if not columns:
        return CalibrationError("{name} has no column of texts: give another data set file.", name=name)
    listed = ", ".join(brief(one) for one in columns[:_SHOWN])
    if column:
        return CalibrationError(
            "{name} has no column {column} of texts: choose of {columns}, as {example}.",
            name=name,
            column=brief(column),
            columns=listed,
            example=f"{name}#{brief(columns[0])}",
        )
    return CalibrationError(
        "{name} has several columns of texts, {columns}: choose one, as {example}.",
        name=name,
        columns=listed,
        example=f"{name}#{brief(columns[0])}",
    )
