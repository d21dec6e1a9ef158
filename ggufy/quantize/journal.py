"""The journal of a quant in the making, `<name>.journal.part`, tells which chunks of the file are whole:

a digest of all that decides the file's bytes: head, base, imatrix, kernels
<SHA-256 of the chunk's bytes> <its offset in the file> <its size>     one line a chunk, in the order of making
"""

from __future__ import annotations

from pathlib import Path

from ggufy.system.files import PART_SUFFIX


def journal_of(part: Path) -> Path:
    """The journal beside a file that is being made."""
    return part.with_name(f"{part.name.removesuffix(PART_SUFFIX)}.journal{PART_SUFFIX}")


def journal_line(digest: str, offset: int, size: int) -> str:
    """What the journal says of a chunk."""
    return f"{digest} {offset} {size}\n"


def read_journal(path: Path) -> tuple[str, dict[int, tuple[str, int]]]:
    """The key, and of each chunk by its offset the digest and the size; nothing if there is none."""
    try:
        key, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ValueError):
        return "", {}
    words = [line.split() for line in lines]  # the last one may be cut
    whole = [word for word in words if len(word) == 3 and word[1].isdecimal() and word[2].isdecimal()]
    return key, {int(offset): (digest, int(size)) for digest, offset, size in whole}
