"""Pickles from strangers: nothing in them runs, nothing in them hangs, and what is refused is what torch refuses."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.pickled import read_tensors
from ggufy.models.registry import detect
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - fixtures

WEIGHT = torch.ones(4, 4)


class Call:
    """A call that Python's own unpickler would make."""

    def __init__(self, function: Callable[..., Any], *arguments: object):
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def archive(pickled: bytes, *, compressed: bool = False, **records: bytes) -> bytes:
    """A .pth with this pickle, and records of the names given (`_0` is data/0)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            made.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return file.getvalue()


def read(data: bytes) -> dict[str, Any]:
    return read_tensors(io.BytesIO(data), "x.pth")


def tensor(*, offset: int = 0, shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85", count: int = 4) -> bytes:
    """The pickle of {"w": a tensor of f32 in record 0}."""
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpu" + b"J" + struct.pack("<i", count) + b"tQ"
        b"J" + struct.pack("<i", offset) + shape + strides + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


def test_shapes_and_types_are_those_that_torch_reads(tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = collections.OrderedDict(
        {
            "f32": torch.ones(2, 3),
            "bf16": torch.ones(1, 1, 4, dtype=torch.bfloat16),
            "f16, turned": torch.ones(2, 3, dtype=torch.float16).T,
            "f64": torch.ones(5, dtype=torch.float64),
            "f8_e4m3": torch.ones(2, 2).to(torch.float8_e4m3fn),
            "a parameter, f32": torch.nn.Parameter(torch.ones(3)),
            "a scalar, f32": torch.tensor(1.0),
            "nothing, f32": torch.ones(0, 3),
        }
    )
    whole = torch.ones(10, 10)
    state |= {"rows, f32": whole[3:5], "columns, f32": whole[:, 2:4]}
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    path = tmp_path / "x.pth"
    path.write_bytes(saved(state))
    found = read(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        assert {name: entry.shape for name, entry in found.items()} == checkpoint.shapes
    assert all(entry.dtype in name for name, entry in found.items())
    assert read(saved(torch.nn.Linear(3, 5).state_dict()))["weight"].shape == (5, 3)


EVIL = {
    "os.system": lambda proof: Call(os.system, f"touch {proof}"),
    "eval": lambda proof: Call(builtins.eval, f"open({str(proof)!r}, 'w')"),
    "exec": lambda proof: Call(builtins.exec, f"open({str(proof)!r}, 'w')"),
    "open": lambda proof: Call(open, str(proof), "w"),
    "getattr": lambda proof: Call(getattr, os, "system"),
    "nested": lambda proof: {"model": [{"state": (Call(os.system, f"touch {proof}"),)}]},
    "in a state": lambda proof: Call(collections.OrderedDict, [("a", Call(os.system, f"touch {proof}"))]),
}


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_nothing_in_a_pickle_runs(local_hub: LocalHub, tmp_path: Path, kind: str, protocol: int) -> None:
    proof = tmp_path / "proof"
    if kind == "getattr":
        # os itself cannot be pickled: posix.system called by name
        pickled = b"\x80\x02}X\x01\0\0\0wcposix\nsystem\nX\x05\0\0\0touch\x85Rs."
        data = archive(pickled)
    else:
        data = saved({"emb.weight": WEIGHT, "bomb": EVIL[kind](proof)}, pickle_protocol=protocol)
    local_hub.put("alice/evil", "model.pth", data)
    problem = inspect("alice/evil:model.pth", Settings.from_env({}), endpoint=local_hub.endpoint).problem
    assert "model.pth was refused: it holds " in problem
    assert "nothing of it was run" in problem
    assert not proof.exists()
    (tmp_path / "model.pth").write_bytes(data)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "name",
    [
        b"torch.serialization\nload", b"torch\nload", b"torch.hub\nload", b"torch._utils\n_rebuild_sparse_tensor",
        b"builtins\nexec", b"collections\nOrderedDict.fromkeys", b"torch._utils\nimportlib.import_module",
        b"os\\x2esystem\nsystem", b"\nx", "pösix\nsystem".encode(),
    ],
)  # fmt: skip
def test_only_a_few_names_are_known(name: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth (was refused: it holds|has a damaged list)"):
        read(archive(b"\x80\x02c" + name + b"\n)R."))


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02(iposix\nsystem\n.", b"\x80\x02(cposix\nsystem\nX\x02\0\0\0lso.", b"\x80\x02\x82\x01.",
        b"\x80\x02\x8c\x05posix\x8c\x06system\x93.", b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02Pname\n.", b"\x80\x02\x96" + struct.pack("<Q", 1 << 40) + b".", b"\x80\x02S'a'\n.",
        b"\x80\x02(K\x01K\x02d.", b"\x80\x02\x8f.",
    ],
)  # fmt: skip
def test_other_operations_are_refused(pickled: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth (was refused: it holds|has a damaged list)"):
        read(archive(pickled))


@pytest.mark.parametrize(
    "pickled",
    [
        b"", b".", b"\x80\x02", b"\x80\x02}", b"\x80\x02}}.\x80", b"\x80\x02h\x05.", b"\x80\x02q\x05.", b"\x80\x02t.",
        b"\x80\x02\x86.", b"\x80\x02R.", b"\x80\x02K\x01K\x02R.", b"\x80\x02K\x01b.", b"\x80\x02a.", b"\x80\x02]e.",
        b"\x80\x02(K\x01u.", b"\x80\x02}(K\x01u.", b"\x80\x02K\x01Q.", b"\x80\x02s.", b"\x80\x02u.", b"\xff\xff",
        b"\x80\x02X\xff\xff\xff\xffabc.", b"\x80\x02X\x02\0\0\0\xff\xff.", b"\x80\x02]K\x01K\x02s.", b"\x80\x02K\x01.",
    ],
)  # fmt: skip
def test_nonsense_gets_a_sentence(pickled: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.pth "):
        read(archive(pickled))


def test_small_pickles_cannot_take_much_time_or_memory() -> None:
    huge_number = b"\x80\x02}r\xfe\xff\xff\xff."  # memory slot 4,294,967,294
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read(archive(huge_number))
    doubled = b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01s."  # its hash would take 2^60 steps
    with pytest.raises(CheckpointError, match="it holds a tuple as a name"):
        read(archive(doubled))
    with pytest.raises(CheckpointError, match="lists more tensors than any RWKV has"):
        read(archive(b"\x80\x02" + b"N" * 100_000_000, compressed=True))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_list_that_could_swell_in_memory_is_refused(method: int) -> None:
    """400 bytes of bzip2 make 460 MB at once, whatever is asked for, and LZMA reserves what its header wants."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("archive/data.pkl", tensor())
    with pytest.raises(CheckpointError, match=r"x\.pth was compressed"):
        read(file.getvalue())


def test_names_from_a_file_stay_short_and_on_one_line() -> None:
    name = "\n\x1b[2J" * 1000
    for content in ({name: WEIGHT.to(torch.int8)}, {name: 1}, {"w": WEIGHT, name: WEIGHT[None]}):
        with pytest.raises(CheckpointError) as caught:
            detect({name: tensor.shape for name, tensor in read(saved(content)).items()})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_tensors_must_lie_in_their_records() -> None:
    data = bytes(16)
    assert read(archive(tensor(), _0=data))["w"].shape == (4,)
    assert read(archive(tensor(offset=1, shape=b"K\x03\x85"), _0=data))["w"].shape == (3,)
    huge = b"\x8a\x09" + b"\xff" * 8 + b"\0\x85"
    for bad in (
        tensor(offset=1), tensor(offset=-1), tensor(shape=b"K\x05\x85"), tensor(strides=b"K\x02\x85"), tensor(count=3),
        tensor(count=-4), tensor(shape=b"K\x02K\x02\x86"), tensor(shape=huge), tensor(shape=b")", strides=huge),
        tensor(shape=b"N\x85"), tensor(shape=b"]"), tensor(shape=b"J\0\0\0\x40\x85", strides=b"K\0\x85"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"x\.pth (has a damaged list|is damaged \(its record 0)"):
            read(archive(bad, _0=data))
    with pytest.raises(CheckpointError, match=r"its record 0 is missing or of another size"):
        read(archive(tensor(), _1=data))
    with pytest.raises(CheckpointError, match=r"its record 0 is missing or of another size"):
        read(archive(tensor(), _0=data[:-1]))
    with pytest.raises(CheckpointError, match=r"x\.pth was compressed"):
        read(archive(tensor(), compressed=True, _0=data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([WEIGHT], "holds a list, not a dict"),
        (WEIGHT, "holds a tensor, not a dict"),
        ({}, "holds no tensors"),
        ({"model": {"epoch": 3}}, "holds no tensors"),
        ({0: WEIGHT}, "under '0'"),
        ({"emb.weight": WEIGHT.to(torch.int8)}, r"emb.weight in x\.pth is int8"),
        ({"emb.weight": torch.eye(2).to_sparse()}, r"it holds torch\._utils\._rebuild_sparse_tensor"),
    ],
)
def test_what_torch_may_load_but_is_no_checkpoint(content: object, message: str, tmp_path: Path) -> None:
    data = saved(content)
    with pytest.raises(CheckpointError, match=message):
        read(data)
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_protocol_is_read_and_a_future_one_named() -> None:
    for protocol in (2, 3, 4, 5):
        assert len(read(saved({"w": WEIGHT}, pickle_protocol=protocol))) == 1
    with pytest.raises(CheckpointError, match="saved with pickle protocol 6"):
        read(archive(b"\x80\x06}."))


def test_other_archives_and_formats() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="a zip archive but not a PyTorch checkpoint"):
        read(file.getvalue())
    with pytest.raises(CheckpointError, match="is a pickle, but not of torch.save"):
        read(pickle.dumps({}, protocol=2))
    with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint"):
        read(pickle.dumps({}, protocol=0))
    scripted = io.BytesIO(archive(b"\x80\x02c__torch__.Model\nModel\n)\x81."))
    with pytest.raises(CheckpointError, match=r"it holds __torch__\.Model\.Model"):
        read_tensors(scripted, "x.pth")


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_damaged_byte_never_gives_anything_but_a_sentence(place: int) -> None:
    data = bytearray(saved({"emb.weight": WEIGHT, "w": WEIGHT.to(torch.bfloat16)}))
    for position in range(place, len(data), 100):
        for value in (0, 0xFF, data[position] ^ 1):
            changed = data[:]
            changed[position] = value
            try:
                read(bytes(changed))
            except CheckpointError as error:
                assert str(error).startswith(("x.pth", "emb.weight", "w in")) or "in x.pth is" in str(error)
