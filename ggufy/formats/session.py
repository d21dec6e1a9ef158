"""Session files of llama.cpp: what llama-completion keeps with --prompt-cache, for an RWKV.

Layout (llama.cpp's src/llama-context.cpp and src/llama-memory-recurrent.cpp; little endian):

    u32 magic  u32 version  u32 count of tokens  i32 tokens[count]
    u32 length and bytes of the architecture's name
    u32 cells = 1   i32 position  u32 count of sequences  i32 sequences[count]
    u32 0  u32 blocks
    of each block: i32 type = 0 (F32)  u64 bytes  the last inputs of both mixes, of two tokens' width
    of each block: i32 type = 0 (F32)  u64 bytes  its state, a matrix for each head

llama.cpp changes the layout now and then, with the version, and its programs refuse every other one. So nothing is
written from memory: `write_session` takes magic, version and sizes from a file that the installed program has written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message
from ggufy.system.files import partial

SUFFIX = ".state.bin"  # of the files that the page offers beside a model
_MOST_BLOCKS, _LONGEST_NAME = 4096, 64
_F32 = 0
_BEGINNING = -1  # the position before the first token
State = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a session file says of itself."""

    magic: int
    version: int
    tokens: int  # of the text that it stands behind; 0: it is a state to begin a text from
    architecture: str
    shifts: tuple[int, ...]  # bytes of each block's last inputs
    states: tuple[int, ...]  # bytes of each block's state


def read_session(path: Path) -> Session:
    """The head of a session file, with every size compared with that of the file. Values are not read.

    Raises SourceError for anything but a session of an RWKV in the layout above.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path.name).session()
    except FileNotFoundError:
        raise SourceError("{path} does not exist: check the path.", path=path) from None
    except IsADirectoryError:
        raise SourceError("{path} is a folder: give the path of a file.", path=path) from None


def write_session(path: Path, layout: Session, states: Iterable[State]) -> None:
    """Writes a session that stands before the first token, in the layout of another one; it appears whole or not at
    all. `states` are those of its blocks, in llama.cpp's order; the last inputs are zeros."""
    name = layout.architecture.encode()
    with partial(path) as part, part.open("wb") as file:
        file.write(struct.pack("<III", layout.magic, layout.version, 0))
        file.write(struct.pack("<I", len(name)) + name)
        file.write(struct.pack("<IiIi", 1, _BEGINNING, 1, 0))
        file.write(struct.pack("<II", 0, len(layout.states)))
        for size in layout.shifts:
            file.write(struct.pack("<iQ", _F32, size) + bytes(size))
        for size, state in zip(layout.states, states, strict=True):
            file.write(struct.pack("<iQ", _F32, size) + state.astype("<f4").tobytes())


class _Reader:
    """A cursor over the file that never reads past its end."""

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.size = file.seek(0, 2)
        file.seek(0)

    def session(self) -> Session:
        magic, version, tokens = self.unpack("III")
        self.skip(4 * tokens)
        (length,) = self.unpack("I")
        if not 0 < length <= _LONGEST_NAME:
            self.refuse(Message("it names no architecture"))
        architecture = self.take(length)
        if not architecture.isalnum() or not architecture.isascii():
            self.refuse(Message("it names no architecture"))
        cells, _, sequences = self.unpack("IiI")
        self.skip(4 * sequences)
        turned, blocks = self.unpack("II")
        if cells != 1 or sequences > 1 or turned or not 0 < blocks <= _MOST_BLOCKS:
            self.refuse(Message("it is not of one text in a recurrent model"))
        shifts = tuple(self.row() for _ in range(blocks))
        states = tuple(self.row() for _ in range(blocks))
        if self.file.tell() != self.size:
            self.refuse(Message("it goes on where it should end"))
        return Session(
            magic=magic,
            version=version,
            tokens=tokens,
            architecture=architecture.decode(),
            shifts=shifts,
            states=states,
        )

    def row(self) -> int:
        """Bytes of the values that come next, which are skipped."""
        kind, size = self.unpack("iQ")
        if kind != _F32:
            self.refuse(Message("its values are not in F32"))
        self.skip(size)
        return int(size)

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            self.refuse(Message("it is cut off"))
        return data

    def skip(self, count: int) -> None:
        if self.file.tell() + count > self.size:
            self.refuse(Message("it is cut off"))
        self.file.seek(count, 1)

    def refuse(self, why: str) -> NoReturn:
        raise SourceError(
            "{name} is no state that llama.cpp can begin from ({why}): make one with `python -m ggufy state`.",
            name=self.name,
            why=why,
        )
