"""The pickle of a .pth, carried out by a machine of our own, so that nothing in it can run.

`pickletools` splits the pickle into its operations, and `Machine` carries out the few that torch.save writes, with
stand-ins that only note what they are given: no name in the pickle is ever imported, and no value is hashed but texts
and whole numbers.
"""

from __future__ import annotations

import itertools
import math
import operator
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from ggufy.core.errors import CheckpointError
from ggufy.core.messages import Message

# What torch calls them, their short name, and bytes of one value.
_DTYPES = {
    "float64": ("f64", 8),
    "float32": ("f32", 4),
    "float16": ("f16", 2),
    "bfloat16": ("bf16", 2),
    "float8_e4m3fn": ("f8_e4m3", 1),
    "float8_e5m2": ("f8_e5m2", 1),
    "int64": ("int64", 8),
    "int32": ("int32", 4),
    "int16": ("int16", 2),
    "int8": ("int8", 1),
    "uint8": ("uint8", 1),
    "bool": ("bool", 1),
}
_WIDTHS = dict(_DTYPES.values())
_STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch.storage UntypedStorage": "uint8",
}
_OTHERS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
_KNOWN = _OTHERS | set(_STORAGES) | {f"torch {name}" for name in _DTYPES}
_PLAIN = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"
)  # fmt: skip
_MOST_VALUES = 1 << 48
AGAIN = Message("download or copy it again")
# What the standard library raises when a pickle makes no sense.
_NONSENSE = (struct.error, ValueError, LookupError, NotImplementedError, EOFError)


@dataclass(frozen=True)
class PickledTensor:
    """One tensor as the pickle describes it."""

    shape: tuple[int, ...]  # torch's order
    dtype: str  # f32, f16, bf16, … or torch's own name of a type that is no weight's
    key: str = ""  # of the record that holds its values
    offset: int = 0  # values of the record before its first
    strides: tuple[int, ...] = ()  # values, one for each axis

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of one value."""
        return _WIDTHS[self.dtype]

    @property
    def contiguous(self) -> bool:
        """True if its values lie in the record one after the other, in the order of its shape."""
        steps = itertools.accumulate(reversed(self.shape[1:]), operator.mul, initial=1)
        rows = zip(self.shape, self.strides, reversed(list(steps)), strict=True) if self.shape else ()
        return all(size <= 1 or stride == step for size, stride, step in rows)


@dataclass(frozen=True)
class Storage:
    """A record of the archive: its name and type, and how many values it holds."""

    key: str
    dtype: str
    count: int

    @property
    def size(self) -> int:
        return self.count * _DTYPES[self.dtype][1]


@dataclass(frozen=True)
class _Global:
    """A name that the pickle wants imported, which is never done."""

    name: str


def shown(text: str) -> str:
    """A stranger's text for a sentence: on one line and not long."""
    return repr(text[:80])[1:-1]


def kind_of(value: object) -> str:
    """What a value is, in a word."""
    return "tensor" if isinstance(value, PickledTensor) else type(value).__name__.strip("_").lower()


class PickleMachine:
    """Carries out one pickle: a stack, the places marked in it, and a memory of numbered values."""

    def __init__(self, name: str):
        self.name = name
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "PROTO": self.start,
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "TUPLE": lambda _: self.stack.append(tuple(self.above_mark())),
            "TUPLE1": lambda _: self.tuple_of(1),
            "TUPLE2": lambda _: self.tuple_of(2),
            "TUPLE3": lambda _: self.tuple_of(3),
            "GLOBAL": self.find,
            "BINPERSID": lambda _: self.stack.append(self.storage(self.stack.pop())),
            "REDUCE": lambda _: self.call(self.stack.pop(), self.stack.pop()),
            "BUILD": lambda _: self.build(),
            "APPEND": lambda _: self.append([self.stack.pop()]),
            "APPENDS": lambda _: self.append(self.above_mark()),
            "SETITEM": lambda _: self.update([self.stack.pop(), self.stack.pop()][::-1]),
            "SETITEMS": lambda _: self.update(self.above_mark()),
        }
        # Protocols 4 and 5 say the same in other operations. A frame only tells how much of the file to read at once.
        self.actions |= {
            "FRAME": lambda _: None,
            "MEMOIZE": lambda _: self.memory.update({len(self.memory): self.stack[-1]}),
            "STACK_GLOBAL": lambda _: self.find_named(self.stack.pop(), self.stack.pop()),
        }
        for put in ("BINPUT", "LONG_BINPUT"):
            self.actions[put] = lambda number: self.memory.update({number: self.stack[-1]})
        for get in ("BINGET", "LONG_BINGET"):
            self.actions[get] = lambda number: self.stack.append(self.memory[number])
        for plain in _PLAIN:
            self.actions[plain] = self.stack.append

    def run(self, pickled: bytes | BinaryIO) -> Any:
        """What the pickle describes, of a file the one that begins where it stands; raises CheckpointError if that is
        more than containers and tensors."""
        for left in (self.stack, self.marks, self.memory):
            left.clear()
        try:
            for operation, argument, _ in pickletools.genops(pickled):
                if operation.name == "STOP":
                    break
                if (action := self.actions.get(operation.name)) is None:
                    self.refuse(Message("the operation {name}", name=operation.name))
                action(argument)
            return self.stack.pop()
        except _NONSENSE as error:
            self.damaged(error)

    def start(self, protocol: int) -> None:
        if protocol > 5:
            raise CheckpointError(
                "{name} was saved with pickle protocol {protocol}: if you trust it, load it and save it again "
                "with torch.save as it comes.",
                name=self.name,
                protocol=protocol,
            )

    def find_named(self, name: Any, module: Any) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            self.damaged()
        self.find(f"{module} {name}")

    def find(self, name: str) -> None:
        if name not in _KNOWN:
            self.refuse(shown(name.replace(" ", ".")))
        self.stack.append(_Global(name))

    def call(self, arguments: Any, function: Any) -> None:
        match function, arguments:
            case _Global("collections OrderedDict"), ():
                self.stack.append({})
            case _Global("torch._utils _rebuild_parameter"), (PickledTensor() as tensor, bool(), dict()):
                self.stack.append(tensor)
            case (
                _Global("torch._utils _rebuild_tensor_v2"),
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), *_),
            ):
                self.stack.append(self.tensor(storage, storage.dtype, offset, shape, strides))
            case (
                _Global("torch._utils _rebuild_tensor_v3"),
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), _Global(dtype), *_),
            ) if dtype.removeprefix("torch ") in _DTYPES:
                self.stack.append(self.tensor(storage, dtype.removeprefix("torch "), offset, shape, strides))
            case _:
                self.damaged()

    def storage(self, identity: Any) -> Storage:
        match identity:
            # Before PyTorch 1.6 a sixth entry told the part of another storage that this one is; since 0.4 it is None.
            case ("storage", _Global(kind), str(key), str(), int(count), *view) if (
                kind in _STORAGES and 0 <= count < _MOST_VALUES and view in ([], [None])
            ):
                storage = Storage(key, _STORAGES[kind], count)
            case _:
                self.damaged()
        if len(key) > 80 or not key.isprintable():
            self.damaged()
        if self.storages.setdefault(key, storage) != storage:
            self.damaged()
        return storage

    def tensor(
        self, storage: Storage, dtype: str, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> PickledTensor:
        sizes = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 8:
            self.damaged()
        if not all(isinstance(size, int) and 0 <= size < _MOST_VALUES for size in sizes):
            self.damaged()
        name, width = _DTYPES[dtype]
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * width > storage.size:
            self.damaged()
        if math.prod(shape) * width > storage.size:  # one value repeated (stride 0) would fill any memory
            self.damaged()
        return PickledTensor(shape, name, storage.key, offset, strides)

    def build(self) -> None:
        """What state_dict() notes beside its tensors (`_metadata`) is dropped."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, dict) or not isinstance(target, dict):
            self.damaged()

    def append(self, items: list[Any]) -> None:
        if not isinstance(target := self.stack[-1], list):
            self.damaged()
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(target := self.stack[-1], dict) or len(items) % 2:
            self.damaged()
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # a tuple of tuples of … takes for ever to hash
                self.refuse(Message("a {kind} as a name", kind=kind_of(key)))
            target[key] = value

    def above_mark(self) -> list[Any]:
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            self.damaged()
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            "{name} was refused: it holds {what}, which may run code when loaded, and nothing of it was run; use "
            "a .pth that holds tensors only.",
            name=self.name,
            what=what,
        )

    def damaged(self, error: Exception | None = None) -> NoReturn:
        raise CheckpointError(
            "{name} has a damaged list of tensors: {advice}.", name=self.name, advice=AGAIN
        ) from error
