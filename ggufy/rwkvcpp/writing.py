"""A file of rwkv.cpp written record by record, and taken up again where that was stopped.

What is whole of `<target>.part` stays when a run ends early, if the caller says what the file is made from; it goes
when the source itself is at fault.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from ggufy.core.errors import SourceAway, SourceError
from ggufy.formats.rwkvcpp import (
    HEADER_SIZE,
    VERSION,
    Record,
    RwkvcppHead,
    packed_header,
    packed_record,
    record_size,
    values_size,
)
from ggufy.system.files import BackgroundWriter, Buffer, disk_errors, finish, part_of, partial
from ggufy.system.journaled_part import JournaledPart

Progress = Callable[[int, int], None]  # bytes of values that are there, and of all
# The values of records, in order, in blocks of which none reaches over the end of a record.
Values = Callable[[Sequence[Record]], Generator[Buffer, None, None]]


def planned_head(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], *, vocab_size: int, width: int, layers: int, type_name: str
) -> RwkvcppHead:
    """What a file of version 101 with these tensors (name, type, shape) in this order will say about itself."""
    records, end = {}, HEADER_SIZE
    for name, kind, shape in tensors:
        offset = end + len(packed_record(name, kind, shape))
        records[name] = Record(name, kind, shape, offset, values_size(kind, shape))
        end = offset + records[name].size
    return RwkvcppHead(
        version=VERSION,
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        type=type_name,
        records=records,
        file_size=end,
    )


def made_anew(head: RwkvcppHead, type_name: str, types: Mapping[str, str]) -> RwkvcppHead:
    """The same of a file with the tensors of another one, in other types."""
    tensors = ((one.name, types[one.name], one.shape) for one in head.records.values())
    sizes = {"vocab_size": head.vocab_size, "width": head.width, "layers": head.layers}
    return planned_head(tensors, type_name=type_name, **sizes)


def write_file(
    target: Path, head: RwkvcppHead, values: Values, *, key: str = "", progress: Progress | None = None
) -> str:
    """Writes the file that `head` describes, which appears whole or not at all; gives its SHA-256 in hex digits.

    `values` is asked once, for the records that are not there yet. `key` stands for everything that decides their
    bytes; without one, nothing is taken up again. Raises DiskError and what `values` and `progress` raise.
    """
    records = [*head.records.values()]
    heads = [packed_record(one.name, one.type, one.shape) for one in records]
    total = sum(one.size for one in records)

    def tell(done: int) -> None:
        if progress is not None:
            progress(min(done, total), total)

    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not key:
            part_of(target).unlink(missing_ok=True)
        spans = [record_size(one.name, one.type, one.shape) for one in records]
        part = JournaledPart(target, key + hashlib.sha256(b"".join(heads)).hexdigest(), _header(head), spans)
        try:
            part.open(tell)
            whole = part.whole
            with part, contextlib.closing(values(records[whole:])) as blocks, BackgroundWriter(part) as writer:
                done = sum(one.size for one in records[:whole])
                for record, start in zip(records[whole:], heads[whole:], strict=True):
                    writer.write(start)
                    end = done + record.size
                    while done < end:
                        block = next(blocks)
                        done += len(block)
                        writer.write(block)
                        tell(done)
            finish(part.path, target)
            return part.digest.hexdigest()
        except BaseException as error:
            if not key or (isinstance(error, SourceError) and not isinstance(error, SourceAway)):
                part.path.unlink(missing_ok=True)
            raise
        finally:
            if not part.path.exists():
                part.journal.unlink(missing_ok=True)


def write_skeleton(target: Path, head: RwkvcppHead) -> None:
    """Writes a file of the exact size that says all that `head` does, with holes for the values, which take no
    disk."""
    with partial(target) as part, part.open("wb") as file:
        file.write(_header(head))
        for one in head.records.values():
            file.write(packed_record(one.name, one.type, one.shape))
            file.seek(one.size, 1)
        file.truncate()


def _header(head: RwkvcppHead) -> bytes:
    return packed_header(vocab_size=head.vocab_size, width=head.width, layers=head.layers, type_name=head.type)
