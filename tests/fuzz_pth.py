"""Hostile .pth files: other pickles in a sound archive, and archives that contradict themselves."""

from __future__ import annotations

import collections
import io
import itertools
import pickletools
import random
import re
import struct
import warnings
import zipfile
from functools import cache

import torch

from tests import tiny
from tests.fuzz_bytes import BOUNDARIES, Field, number, poke, scramble

Entry = tuple[str, bytes, int]  # name, content, method of compression
_PROTO = b"\x80\x02"
NAMES = (
    b"", b"\0", b"\x1b[31m\r\n", b"\xff", b"\xed\xa0\x80", "\u202e\u2028".encode(), b"x" * 100_000, b"../../x",
    b"blocks.99999999999999999999.att.w1", b"blocks.-1.x", b"blocks.0.ffn.s_emb.weight", "blocks.\u0663.x".encode(),
    b"emb.weight", b"head.weight", b"0", b"1", b"cuda:0", b"meta",
)  # fmt: skip
# The numbers in each structure of a zip archive, from its signature.
_STRUCTURES: dict[bytes, tuple[Field, ...]] = {
    b"PK\3\4": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\1\2": (
        (4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4),
        (46, 4), (50, 4), (54, 8),
    ),
    b"PK\5\6": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\6\6": ((4, 8), (12, 2), (14, 2), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\6\7": ((4, 4), (8, 8), (16, 4)),
}  # fmt: skip


@cache
def sound() -> tuple[bytes, ...]:
    """What torch.save writes: plain weights, parameters with turned and shared ones, and a whole RWKV-7."""
    torch.manual_seed(0)
    shared = torch.randn(8, 4)
    weights = {f"blocks.{i}.w": torch.randn(4, 4).to(torch.bfloat16) for i in range(4)} | {"emb.weight": shared}
    module = torch.nn.ParameterDict({"a": shared.T, "b": shared[2:], "c": torch.ones(3, dtype=torch.float64)})
    files = []
    rwkv = tiny.weights("7", width=64, layers=1, ffn=64, vocab=8, dtype=torch.bfloat16)
    for content in (weights, module.state_dict(), {"w": torch.nn.Parameter(shared)}, rwkv):
        torch.save(content, file := io.BytesIO())
        files.append(file.getvalue())
    return tuple(files)


@cache
def old() -> tuple[bytes, ...]:
    """The same as torch saved it before 1.6."""
    files = []
    for whole in sound():
        content = torch.load(io.BytesIO(whole), weights_only=True)
        torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=False)
        files.append(file.getvalue())
    return tuple(files)


def mutated(rng: random.Random) -> bytes:
    """A .pth with at least one thing wrong with it."""
    if rng.random() < 0.25:
        return _old_mutated(rng, rng.choice(old()))
    whole = rng.choice(sound())
    ways = rng.choice(((1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)))
    data = bytearray(_rebuilt(rng, whole) if ways[0] else whole)
    if ways[1]:
        poke(rng, data, _numbers(data))
    if ways[2]:
        scramble(rng, data)
    return bytes(data)


# ---- pickles in a row


def _old_mutated(rng: random.Random, whole: bytes) -> bytes:
    """One of the five pickles edited or replaced, or numbers before the storages, or any bytes."""
    file, ends = io.BytesIO(whole), [0]
    for _ in range(5):
        collections.deque(pickletools.genops(file), maxlen=0)
        ends.append(file.tell())
    pickles = [whole[start:end] for start, end in itertools.pairwise(ends)]
    storages = bytearray(whole[ends[-1] :])
    match rng.randrange(5):
        case 0 | 1:
            place = rng.choice((0, 1, 2, 3, 3, 3, 4, 4))
            pickles[place] = _edited(rng, pickles[place]) if rng.random() < 0.7 else _hostile(rng)
        case 2:
            poke(rng, storages, [(0, 8)])
        case 3:
            del storages[rng.randrange(len(storages)) :]
        case 4:
            data = bytearray(whole)
            scramble(rng, data)
            return bytes(data)
    return b"".join(pickles) + storages


# ---- archives


def _rebuilt(rng: random.Random, whole: bytes) -> bytes:
    """The archive written anew, with another pickle, other entries, or both."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries: list[Entry] = [(info.filename, archive.read(info), 0) for info in archive.infolist()]
    place = next(i for i, entry in enumerate(entries) if entry[0].endswith("/data.pkl"))
    name, pickled, _ = entries[place]
    kind = rng.random()
    if kind < 0.35:
        entries[place] = (name, _edited(rng, pickled), 0)
    elif kind < 0.6:
        entries[place] = (name, _hostile(rng), rng.choice((0, 8)))
    elif kind < 0.75:
        root, data = name.partition("/")[0], rng.randbytes(64)
        entries = [(name, _listed(rng), 0), (f"{root}/data/0", data, 0), (f"{root}/version", b"3\n", 0)]
    if kind >= 0.75 or rng.random() < 0.2:
        _rearrange(rng, entries)
    return _zipped(entries)


def _rearrange(rng: random.Random, entries: list[Entry]) -> None:
    """Entries that are missing, doubled, renamed, compressed, of other content or in another order."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(entries))
        name, data, method = entries[place]
        root, _, rest = name.partition("/")
        match rng.randrange(9):
            case 0 if len(entries) > 1:
                del entries[place]
            case 1:
                entries.insert(rng.randrange(len(entries) + 1), (rng.choice((name, name.upper())), b"other", method))
            case 2:
                absurd = (
                    "",
                    "/",
                    "\n\x1b[2J",
                    "../../x",
                    rest,
                    name.upper(),
                    f"{root}//{rest}",
                    "x" * 60_000,
                    "\u202e",
                )
                entries[place] = (rng.choice(absurd), data, method)
            case 3:
                entries[place] = (name, data, rng.choice((8, 12, 14)))
            case 4:
                entries[place] = (name, rng.choice((b"", data[:-1], data + b"\0", bytes(3_000_000), b"big")), 8)
            case 5:
                rng.shuffle(entries)
            case 6:
                extra = ("byteorder", "version", "constants.pkl", ".format_version", ".storage_alignment", "data/0")
                content = rng.choice((b"big", b"little", b"\xff", b"", b"1", b"99999999999", b"-1", data))
                entries.append((f"{root}/{rng.choice(extra)}", content, 0))
            case 7:
                entries.extend((f"{root}/data/x{i}", b"", 0) for i in range(rng.choice((10, 3000))))
            case 8:
                entries.append((f"{root}/data.pkl", _hostile(rng), rng.choice((0, 8))))


def _zipped(entries: list[Entry]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # it warns of two entries of one name
        for name, data, method in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, data, compress_type=method)
    return file.getvalue()


def _numbers(data: bytes | bytearray) -> list[Field]:
    """Where the archive's structures keep their numbers."""
    places = [
        (found.start(), bytes(found[0]))
        for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)", data)
    ]
    return [(start + place, width) for start, kind in places for place, width in _STRUCTURES[kind]]


# ---- pickles


def _text(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<I", len(data)) + data


def _edited(rng: random.Random, pickled: bytes) -> bytes:
    """The same operations with some of them removed, doubled, swapped, replaced, or of other numbers."""
    steps = list(pickletools.genops(pickled))
    ends = [place or 0 for _, _, place in steps[1:]] + [len(pickled)]
    pieces = [pickled[place or 0 : end] for (_, _, place), end in zip(steps, ends, strict=True)]
    texts = [i for i, (operation, _, _) in enumerate(steps) if operation.name == "BINUNICODE"]
    numbers = [i for i, (_, argument, _) in enumerate(steps) if isinstance(argument, int) and i > 0]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, other = rng.randrange(1, len(pieces)), rng.randrange(1, len(pieces))
        match rng.choice(("number", "number", "text", "delete", "double", "swap", "replace", "insert", "insert")):
            case "number" if numbers:
                place = rng.choice(numbers)
                old = steps[place][1]
                assert isinstance(old, int)
                pieces[place] = _integer(number(rng, old, len(pickled)))
            case "text" if texts:
                pieces[rng.choice(texts)] = rng.choice((_text(rng.choice(NAMES)), pieces[rng.choice(texts)]))
            case "delete":
                pieces[place] = b""
            case "double":
                pieces[place] *= rng.choice((2, 2, 1000))
            case "swap":
                pieces[place], pieces[other] = pieces[other], pieces[place]
            case "replace":
                pieces[place] = bytes([rng.randrange(256)]) + rng.randbytes(rng.choice((0, 1, 4)))
            case "insert":
                pieces[place] = _attack(rng) + pieces[place]
    return b"".join(pieces)


def _hostile(rng: random.Random) -> bytes:
    """A pickle that is nothing but an attack, in one of the places that an unpickler may treat differently."""
    attack = _attack(rng)
    return _PROTO + rng.choice(
        (attack + b".", b"}" + attack + b"K\x01s.", b"}" + _text(b"w") + attack + b"s.", b"]" + attack + b"a.",
         b"(" + attack + b"t.", b"}" + attack + b"b.", attack + b"Q.", attack)
    )  # fmt: skip


def _attack(rng: random.Random) -> bytes:
    """Operations that run code, or want much time or memory, if they are obeyed."""
    n = rng.choice((10, 3000, 300_000, 1_900_000))
    match rng.randrange(6):
        case 0:
            return _call(rng)
        case 1:  # many values, many marks
            return rng.choice((b"(", b"]", b"}", b")", b"N", b"0", b"1", b"2", b"\x8f")) * n
        case 2:  # values in values: deep, or doubled 60 times by the memory; the last one holds itself
            n = min(n, 900_000)
            deep = (
                b")" + b"\x85" * n,
                b"]" * n + b"a" * n,
                b"(" * n + b"t" * n,
                b"]q\x00h\x00a",
                b"}q\x00K\x01h\x00s",
            )
            return rng.choice((*deep, b"K\x01\x85" + b"q\x00h\x00\x86" * 60, b"]" + b"q\x00]h\x00ah\x00a" * 60))
        case 3:  # numbers
            ends = (
                b"\x8a\xff" + b"\xff" * 254 + b"\x7f",
                b"I" + b"9" * 100_000 + b"\n",
                b"L-1" + b"0" * 5000 + b"L\n",
            )
            return rng.choice(
                (*ends, _integer(1 << 4_000_000), b"F1e999\n", b"G\x7f\xf8" + bytes(6), b"I-\n", b"J\0\0\0\x80")
            )
        case 4:  # lengths and places that are not there
            length = rng.choice(BOUNDARIES)
            small, large = struct.pack("<I", length % 2**32), struct.pack("<Q", length % 2**64)
            return rng.choice(
                (b"X" + small, b"T" + small, b"B" + small, b"\x8b" + small, b"r" + small, b"j" + small,
                 b"\x8d" + large, b"\x8e" + large, b"\x96" + large, b"\x95" + large,
                 b"p%d\n" % length, b"g%d\n" % length, b"\x84" + small, b"\x80" + small[:1])
            )  # fmt: skip
        case _:  # names, and the rarer operations
            name = rng.choice((b"\x1b[31m\r", "\u2028\u202e".encode(), b"\xff", b"x" * 100_000, b"a b\tc", b"'\"{}%s"))
            return rng.choice(
                (b"c" + name + b"\nx\n", b"ctorch\n" + name + b"\n", _text(name), b"P" + name + b"\n",
                 b"V" + name + b"\n", b"S'" + name + b"'\n", b"i" + name + b"\nx\n", _text(name) + b"K\x01s")
            )  # fmt: skip


def _call(rng: random.Random) -> bytes:
    """A function, arguments for it, and one of the operations that call."""
    function = rng.choice(
        (b"posix\nsystem", b"os\nsystem", b"subprocess\nPopen", b"builtins\nexec", b"builtins\neval", b"torch\nload",
         b"builtins\nbytearray", b"__builtin__\nbytearray", b"torch\nSize", b"torch\nzeros", b"collections\nCounter",
         b"collections\nOrderedDict", b"_codecs\nencode", b"torch\nTensor", b"torch.nn.parameter\nParameter",
         b"torch\ndevice", b"torch._utils\n_rebuild_sparse_tensor", b"torch._utils\n_rebuild_tensor_v2",
         b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._tensor\n_rebuild_from_type_v2",
         b"torch\nFloatStorage")
    )  # fmt: skip
    argument = rng.choice(
        (_text(b"touch proof"), _integer(1 << 40), _integer(1 << 70), b"K\x05", b"N", b"}", b"]K\x01a")
    )
    named, made = b"c" + function + b"\n", argument + rng.choice((b"\x85", b"K\x01\x86", b"K\x01K\x01\x87"))
    module, _, attribute = function.partition(b"\n")
    return rng.choice(
        (named + made + b"R", named + made + b"R", named + made + b"\x81", named + b")R" + argument + b"b",
         _text(module) + _text(attribute) + b"\x93" + made + b"R", b"(" + argument + b"i" + function + b"\n",
         b"(" + named + argument + b"o", named + made + b"}\x92")
    )  # fmt: skip


def _listed(rng: random.Random) -> bytes:
    """A dict of tensors of any shape, strides and place, over one record of 64 bytes."""

    def size(usual: int) -> bytes:
        return _integer(usual if rng.random() < 0.6 else number(rng, usual, 16))

    pickled = _PROTO + b"}("
    for i in range(rng.choice((1, 1, 2, 500))):
        kind = rng.choice((b"Float", b"Float", b"Half", b"Double", b"Byte", b"Bool", b"Untyped", b"ComplexFloat"))
        storage = b"(" + _text(b"storage") + b"ctorch\n" + kind + b"Storage\n" + _text(b"0") + _text(b"cpu") + size(16)
        dimensions = rng.choice((0, 1, 1, 2, 2, 3, 9, 300))
        shape, strides = (b"(" + b"".join(size(2) for _ in range(dimensions)) + b"t" for _ in range(2))
        shape = b"(" + size(1 << 30) + b"t" if rng.random() < 0.1 else shape
        pickled += _text(b"w%d" % i) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + size(0)
        pickled += shape + strides + rng.choice((b"\x89", b"\x88", b"N")) + b"ccollections\nOrderedDict\n)RtR"
    return pickled + b"u."
