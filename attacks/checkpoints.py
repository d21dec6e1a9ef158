"""Hostile .pth files: a zip with a pickle in it, or pickles and storages in a row, all written by hand."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from attacks import attack

CALLED = "ggufy-attack-was-here"  # a file that a pickle which is executed would make, in the folder that is current


def archive(path: Path, pickle: bytes, records: dict[str, bytes] | None = None, *, method: int = 0) -> None:
    """As torch.save lays it out."""
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("m/data.pkl", pickle)
        for name, data in (records or {}).items():
            out.writestr(f"m/data/{name}", data)
        out.writestr("m/version", "3\n")


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """LONG1: any whole number."""
    data = value.to_bytes((value.bit_length() + 8) // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(key: str, shape: tuple[int, ...], *, stride: tuple[int, ...], offset: int, numel: int) -> bytes:
    """A call of torch's own function that makes a tensor of a storage."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    steps = b"(" + b"".join(map(number, stride)) + b"t"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + steps + b"\x89" + hooks + b"tR"


def state(**tensors: bytes) -> bytes:
    """A dict of tensors."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in tensors.items()) + b"u."


@attack("os-system.pth", "holds posix.system, which may run code")
def os_system(path: Path) -> None:
    """Runs a shell command while it is loaded, as every pickle can."""
    archive(path, b"\x80\x02cposix\nsystem\n(" + text(f"touch {CALLED}") + b"tR.")


@attack("eval.pth", "holds builtins.eval, which may run code")
def builtins_eval(path: Path) -> None:
    """Evaluates Python: a list of forbidden modules would have to name every one that can."""
    archive(path, b"\x80\x02cbuiltins\neval\n(" + text(f"open('{CALLED}', 'w')") + b"tR.")


@attack("build.pth", "holds codecs.StreamReader, which may run code")
def build_with_state(path: Path) -> None:
    """Calls nothing, but sets attributes of an object with BUILD, whose __setstate__ runs."""
    archive(path, b"\x80\x02ccodecs\nStreamReader\n)\x81}(" + text("stream") + text(CALLED) + b"ub.")


@attack("attribute.pth", r"holds collections\.OrderedDict\.__init__\.__globals__, which may run code")
def dotted_name(path: Path) -> None:
    """Reaches a function through an allowed class: protocol 4 takes dotted names."""
    name = "OrderedDict.__init__.__globals__"
    data = b"\x80\x04" + text("collections") + text(name) + b"\x93" + b")R."
    archive(path, data)


@attack("bomb.pth", "lists more tensors than any RWKV has")
def zip_bomb(path: Path) -> None:
    """Is a few hundred kB, and its list of tensors unpacks to 300 MB."""
    archive(path, b"\x80\x02" + b"N0" * 150_000_000 + b"}.", method=zipfile.ZIP_DEFLATED)


@attack("nested.pth", "lists more tensors than any RWKV has")
def nested(path: Path) -> None:
    """A list in a list, a million times: whoever walks it by recursion falls."""
    archive(path, b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")


@attack("memo.pth", "holds a tuple, not a dict of tensors")
def doubling(path: Path) -> None:
    """A text that is doubled by tuples of itself, 60 times: a quintillion letters for whoever prints it."""
    step = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    archive(path, b"\x80\x02" + text("x") + b"q\x00" + step + b".")


@attack("huge-shape.pth", "damaged list of tensors")
def huge_shape(path: Path) -> None:
    """A tensor of 2^62 values whose storage is four bytes."""
    shape = (1 << 31, 1 << 31)
    made = tensor("0", shape, stride=(1 << 31, 1), offset=0, numel=1 << 62)
    archive(path, state(**{"emb.weight": made}), {"0": bytes(4)})


@attack("outside.pth", "damaged list of tensors")
def outside(path: Path) -> None:
    """A tensor that begins before its storage and ends behind it: memory that is not its own."""
    made = tensor("0", (64, 64), stride=(64, 1), offset=-4096, numel=64)
    archive(path, state(**{"emb.weight": made}), {"0": bytes(256)})


@attack("stride.pth", "damaged list of tensors")
def stride(path: Path) -> None:
    """Steps of 2^61 values from row to row: an index that overflows."""
    made = tensor("0", (4, 4), stride=(1 << 61, 1), offset=0, numel=16)
    archive(path, state(**{"emb.weight": made}), {"0": bytes(64)})


@attack("storage-name.pth", "not an RWKV checkpoint")
def storage_name(path: Path) -> None:
    """A storage that is a file elsewhere, for whoever makes a path of its name."""
    made = tensor("../../../../etc/passwd", (4, 4), stride=(4, 1), offset=0, numel=16)
    archive(path, state(**{"emb.weight": made}), {"../../../../etc/passwd": bytes(64)})


@attack("names.pth", r"not an RWKV checkpoint .*\\x1b")
def terminal_names(path: Path) -> None:
    """Names of tensors that clear a terminal, and are HTML for a page."""
    made = tensor("0", (4, 4), stride=(4, 1), offset=0, numel=16)
    archive(path, state(**{"\x1b[2J<img src=x onerror=alert(1)>": made}), {"0": bytes(64)})


@attack("cut.pth", "cut short or damaged")
def cut(path: Path) -> None:
    """Half of a file, as a download leaves it that broke off."""
    made = tensor("0", (4, 4), stride=(4, 1), offset=0, numel=16)
    archive(path, state(**{"emb.weight": made}), {"0": bytes(64)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# ---- as PyTorch saved before 1.6: five pickles in a row, then the storages


def old(path: Path, listing: bytes, keys: tuple[str, ...], storages: bytes, *, machine: bytes = b"\x88") -> None:
    """A file of that format; `machine` is whether the numbers are little endian."""
    magic = b"\x80\x02" + number(0x1950A86A20F9469CFC6C) + b"."
    version = b"\x80\x02" + number(1001) + b"."
    made_on = b"\x80\x02}" + text("little_endian") + machine + b"s."
    named = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    path.write_bytes(magic + version + made_on + listing + named + storages)


def storage(count: int) -> bytes:
    """A storage of zeros."""
    return struct.pack("<q", count) + bytes(4 * count)


_PLAIN = state(**{"emb.weight": tensor("0", (4, 4), stride=(4, 1), offset=0, numel=16)})


@attack("old-system.pth", "holds posix.system, which may run code")
def old_system(path: Path) -> None:
    """Runs a shell command, in the format that torch unpickles without a second look."""
    old(path, b"\x80\x02cposix\nsystem\n(" + text(f"touch {CALLED}") + b"tR.", (), b"")


@attack("old-keys.pth", "holds posix.system, which may run code")
def old_system_in_keys(path: Path) -> None:
    """Runs it from the last of the five pickles, after a sound list."""
    old(path, _PLAIN[:-1] + b"." + b"\x80\x02cposix\nsystem\n(" + text(f"touch {CALLED}") + b"tR.", (), b"")


@attack("old-view.pth", "damaged list of tensors")
def old_view(path: Path) -> None:
    """A storage that is a part of another one, beginning before it."""
    plain = b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(16)
    view = b"(" + text("1") + number(-4096) + number(16) + b"t"
    old(path, _PLAIN.replace(plain, plain + view), ("0",), storage(16))


@attack("old-doubled.pth", "damaged list of tensors")
def old_doubled(path: Path) -> None:
    """A storage that is listed a hundred thousand times, and is there once."""
    old(path, _PLAIN, ("0",) * 100_000, storage(16))


@attack("old-other.pth", "damaged list of tensors")
def old_other(path: Path) -> None:
    """The keys are those of other storages."""
    old(path, _PLAIN, ("1",), storage(16))


@attack("old-cut.pth", "cut short or damaged")
def old_cut(path: Path) -> None:
    """Half of its storages."""
    old(path, _PLAIN, ("0",), storage(16)[:40])


@attack("old-big.pth", "not saved on a little-endian machine")
def old_big_endian(path: Path) -> None:
    """Numbers the other way round, which would be read as other ones."""
    old(path, _PLAIN, ("0",), storage(16), machine=b"\x89")


@attack("pickle.pth", "is a pickle, but not of torch.save")
def plain_pickle(path: Path) -> None:
    """A pickle of Python's own."""
    path.write_bytes(_PLAIN)


@attack("wrapped.pth", "holds no tensors")
def wrapped(path: Path) -> None:
    """A dict that is the model in itself: whoever looks into it looks for ever."""
    archive(path, b"\x80\x02}q\x00" + text("model") + b"h\x00s.")


@attack("optimizer.pth", "holds collections.deque, which may run code")
def optimizer(path: Path) -> None:
    """Sound weights beside something that has to be called to be read."""
    inner = _PLAIN[2:-1]
    archive(path, b"\x80\x02}(" + text("model") + inner + text("optimizer") + b"ccollections\ndeque\n)Ru.")
