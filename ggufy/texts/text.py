"""Text that every Python carries, cut into three parts that never share a paragraph.

The prose is the standard library's docstrings, its comments and ``pydoc``'s topics; the code is the library itself.
Every paragraph falls into one of three parts by a hash of its own words, so two Python versions agree on the part of
every paragraph that they share, and text that trained the demo or calibrated an imatrix can never come back as
evaluation text:

    train         about 84 %   the demo checkpoint learns from it (tools/train_demo.py)
    calibration   about  8 %   lengthens the project's own calibration text
    evaluation    about  8 %   measures the quants

Training also reads code, where a paragraph may stand inside a larger block that falls into another part. So the
evaluation text leaves out every paragraph whose words stand inside a larger block, of code or of other prose, and is
lengthened with the docstrings of the modules written in C, which nothing else reads.

Nothing of it is stored in the repository.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics

PARTS = ("train", "calibration", "evaluation")
# A paragraph in the calibration or evaluation part must say something on its own.
MIN_PARAGRAPH_CHARS = 120
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
# Modules written in C that are part of (nearly) every Python; those that are missing are skipped.
_C_MODULES = (
    "builtins sys posix time math cmath itertools _io _socket select _functools _collections _operator _thread "
    "_signal gc marshal array zlib _struct unicodedata binascii _datetime _json _pickle _csv _elementtree _ssl "
    "_asyncio fcntl resource termios mmap _random _bisect _heapq errno atexit faulthandler _weakref _warnings _sre "
    "_codecs _string _statistics _contextvars grp pwd syslog _zoneinfo _decimal _sqlite3 _lzma _bz2 _hashlib _queue "
    "_abc _ast _imp _tracemalloc _uuid pyexpat _posixsubprocess _multiprocessing _opcode _symtable"
)
_ANCHOR_WORDS = 6  # a paragraph is looked for by its first words


def part_of(paragraph: str) -> str:
    """The part of a paragraph: a function of its words alone (case and white space do not count)."""
    first_byte = hashlib.sha256(_key(paragraph).encode()).digest()[0]
    if first_byte < 20:
        return "evaluation"
    return "calibration" if first_byte < 40 else "train"


def prose_documents() -> Iterator[list[str]]:
    """Paragraphs of one docstring, comment block or pydoc topic after the other, in a fixed order."""
    for name in sorted(topics):
        yield split_paragraphs(topics[name])
    for source in _library_sources():
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for text in (*_docstrings(tree), *_comment_blocks(source, tree)):
            yield split_paragraphs(text)


def code_documents() -> Iterator[list[str]]:
    """Blank-line separated blocks of one library module after the other."""
    for source in _library_sources():
        yield split_paragraphs(source)


def split_paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, without trailing blanks."""
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n").expandtabs(8))
    return [block.strip("\n").rstrip() for block in blocks if block.strip()]


def part_text(part: str, max_bytes: int | None = None) -> str:
    """`parts_texts` for one part."""
    return parts_texts({part: max_bytes})[part]


def parts_texts(limits: Mapping[str, int | None]) -> dict[str, str]:
    """All prose of the parts named, each paragraph once, each part at most so many bytes of UTF-8 (None: no limit).

    One pass over the library serves all parts; it takes some seconds. Raises ValueError for an unknown part.
    """
    if unknown := set(limits) - set(PARTS):
        raise ValueError(f"unknown part {sorted(unknown)[0]!r}, expected one of {', '.join(PARTS)}")
    found: dict[str, dict[str, str]] = {part: {} for part in PARTS}
    for document in prose_documents():
        for paragraph in document:
            if len(paragraph) >= MIN_PARAGRAPH_CHARS:
                found[part_of(paragraph)].setdefault(_key(paragraph), paragraph)
    if "evaluation" in limits:
        for paragraph in _c_paragraphs():
            found["evaluation"].setdefault(_key(paragraph), paragraph)
        others = (*found["train"].values(), *found["calibration"].values())
        found["evaluation"] = _standing_alone(found["evaluation"], others)
    return {part: _joined(found[part].values(), limit) for part, limit in limits.items()}


def cut(text: str, max_bytes: int) -> tuple[str, str]:
    """The first paragraphs of a part, at most so many bytes of UTF-8, and the others."""
    paragraphs = text.removesuffix("\n").split("\n\n")
    first = _joined(paragraphs, max_bytes)
    return first, _joined(paragraphs[first.count("\n\n") + 1 :], None)


def _key(paragraph: str) -> str:
    return " ".join(paragraph.lower().split())


def _joined(paragraphs: Iterable[str], max_bytes: int | None) -> str:
    chosen, size = [], 0
    for paragraph in paragraphs:
        size += len(paragraph.encode()) + 2
        if max_bytes is not None and size > max_bytes:
            break
        chosen.append(paragraph)
    return "\n\n".join(chosen) + "\n"


def _standing_alone(candidates: dict[str, str], others: Iterable[str]) -> dict[str, str]:
    """The candidates (by `_key`) whose words stand neither in a larger block of code nor in one of the others.

    Words are compared without punctuation, so that neither comment signs nor quotes hide a paragraph. A block of code
    that is a candidate itself, word for word, falls into the evaluation part in every version and was never learned.
    """
    words = {key: _words(text) for key, text in candidates.items()}
    anchored: dict[tuple[str, ...], list[str]] = {}
    for key, sequence in words.items():
        anchored.setdefault(tuple(sequence[:_ANCHOR_WORDS]), []).append(key)
    inside = {key for key, sequence in words.items() if len(sequence) < _ANCHOR_WORDS}  # too little to be told apart
    code = (
        b for document in code_documents() for b in document if part_of(b) != "evaluation" or _key(b) not in candidates
    )
    for block in (*code, *others):
        sequence = _words(block)
        for start, anchor in enumerate(zip(*(sequence[n:] for n in range(_ANCHOR_WORDS)), strict=False)):
            for key in anchored.get(anchor, ()):
                if sequence[start : start + len(words[key])] == words[key]:
                    inside.add(key)
    return {key: text for key, text in candidates.items() if key not in inside}


def _words(text: str) -> list[str]:
    # A newline that is written out as backslash and n ends a word too.
    return re.findall(r"\w+", text.replace("\\n", " ").lower())


def _library_sources() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # a few library files are in other encodings on purpose


def _c_paragraphs() -> Iterator[str]:
    """Long paragraphs of the docstrings of modules written in C, of their functions, types and methods."""
    seen: set[int] = set()
    for name in _C_MODULES.split():
        try:
            queue = deque([(importlib.import_module(name), 0)])
        except ImportError:
            continue
        while queue:
            item, depth = queue.popleft()
            if id(item) in seen:
                continue
            seen.add(id(item))
            document = getattr(item, "__doc__", None)
            if isinstance(document, str):
                yield from (p for p in split_paragraphs(inspect.cleandoc(document)) if len(p) >= MIN_PARAGRAPH_CHARS)
            members = vars(item) if depth < 2 and hasattr(item, "__dict__") else {}
            queue.extend((members[key], depth + 1) for key in sorted(members) if _written_in_c(members[key]))


def _written_in_c(item: object) -> bool:
    kinds = (inspect.isclass, inspect.isbuiltin, inspect.ismethoddescriptor, inspect.isgetsetdescriptor)
    return any(is_kind(item) for is_kind in kinds)


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in the order of ast.walk, but without a look at expressions."""
    queue: deque[ast.AST] = deque([tree])
    while queue:
        node = queue.popleft()
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            children = getattr(node, field, ())
            queue.extend(children if isinstance(children, list) else ())
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _comment_blocks(source: str, tree: ast.Module) -> Iterator[str]:
    """Runs of at least three full-line comments."""
    lines = source.split("\n")
    numbers = {number for number, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
    numbers -= _lines_in_strings(tree, numbers)
    run: list[str] = []
    for number in range(1, len(lines) + 2):
        if number in numbers:
            run.append(lines[number - 1].strip().lstrip("#").removeprefix(" "))
        elif run:
            if len(run) >= 3:
                yield "\n".join(run)
            run = []


def _lines_in_strings(tree: ast.Module, numbers: set[int]) -> set[int]:
    """Those of the lines that continue a string: what looks like a comment there is none."""
    inside: set[int] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", None) or 0
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                inside.update(range(first + 1, last + 1))
            elif not first or any(number in numbers for number in range(first + 1, last + 1)):
                stack.append(node)
    return inside & numbers
