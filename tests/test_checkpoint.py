"""Opening .pth files: what is in them, what is refused, and that memory is given back."""

from __future__ import annotations

import collections
import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.checkpoint import open_checkpoint


def _save(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def test_names_shapes_types_and_values(tmp_path: Path) -> None:
    state = {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(1, 1, 4, dtype=torch.bfloat16),
        "turned": torch.arange(6, dtype=torch.float16).reshape(2, 3).T,
    }
    with open_checkpoint(_save(tmp_path / "x.pth", state)) as checkpoint:
        assert checkpoint.shapes == {"a.weight": (2, 3), "b": (1, 1, 4), "turned": (3, 2)}
        assert checkpoint.dtypes == {"a.weight": torch.float32, "b": torch.bfloat16, "turned": torch.float16}
        for name, tensor in state.items():
            assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor("turned").stride() == (1, 3)


def test_views_outlive_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_save(tmp_path / "x.pth", {"w": torch.arange(3.0), "other": torch.ones(2)}))
    values = checkpoint.tensor("w")
    checkpoint.close()
    checkpoint.close()
    del checkpoint
    assert values.tolist() == [0, 1, 2]


def test_parameters_are_tensors_without_gradient(tmp_path: Path) -> None:
    with open_checkpoint(_save(tmp_path / "x.pth", {"w": torch.nn.Parameter(torch.ones(3))})) as checkpoint:
        assert not checkpoint.tensor("w").requires_grad


OLD = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 3}, {"pickle_protocol": 4}, {"pickle_protocol": 5}, OLD])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_way_of_saving(tmp_path: Path, options: dict[str, Any]) -> None:
    """Views of a larger storage, turned ones, other types beside each other, and records that lie anywhere."""
    whole = torch.arange(35, dtype=torch.float64).reshape(5, 7)
    state = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "rows": whole[1:3],
        "columns": whole[:, 2:5],
        "turned": whole.T,
        "after": torch.arange(5, dtype=torch.float32),
        "scalar": torch.tensor(2.5),
        "none": torch.ones(0, 3),
    }
    with open_checkpoint(_save(tmp_path / "x.pth", state, **options)) as checkpoint:
        assert list(checkpoint.shapes) == list(state)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.tensor(name), tensor) and checkpoint.dtypes[name] == tensor.dtype
            checkpoint.release(name)
            assert torch.equal(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3, "pytorch-lightning_version": "1.9.5", "loops": {"fit": [None, True]}},
        lambda w: {"model": w, "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": w["a"] * 2}}}},
        lambda w: {"module": w, "buffer_names": [], "ds_version": "0.15.0", "lr": 1e-4, "dtype": torch.bfloat16},
        lambda w: {"step": torch.tensor(4), "model": {"state_dict": w, "best": 0.5}},
        lambda w: {**w, "_version": 0.7, "step": torch.tensor(1200), "module": {"x": torch.ones(2)}},
        lambda w: collections.OrderedDict(w),
    ],
)
@pytest.mark.parametrize("options", [{}, OLD])
def test_what_trainers_save_beside_the_weights(tmp_path: Path, wrap: Any, options: dict[str, Any]) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    with open_checkpoint(_save(tmp_path / "x.pth", wrap(state), **options)) as checkpoint:
        assert checkpoint.shapes == {"a": (2, 3), "b": (4,)}
        assert torch.equal(checkpoint.tensor("a"), state["a"])


def test_an_old_file_whose_storage_has_another_size_than_it_lists(tmp_path: Path) -> None:
    path = _save(tmp_path / "x.pth", {"w": torch.ones(1000)}, **OLD)
    content = path.read_bytes()
    path.write_bytes(content.replace((1000).to_bytes(8, "little"), (999).to_bytes(8, "little")))
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="a record's header makes no sense"):
        checkpoint.tensor("w")


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system cannot drop pages")
def test_released_pages_leave_memory_and_come_back(tmp_path: Path) -> None:
    values = torch.arange(8 << 20, dtype=torch.float32)
    path = _save(tmp_path / "x.pth", {"small": torch.ones(3), "large": values})
    with open_checkpoint(path) as checkpoint:
        before = _resident()
        assert checkpoint.tensor("large").sum() > 0
        read = _resident()
        checkpoint.release("large")
        released = _resident()
        assert read - before > 30e6
        assert released - before < 8e6
        assert torch.equal(checkpoint.tensor("large"), values)
        checkpoint.release("small")  # Less than a page: nothing to give back, and nothing lost.
        assert torch.equal(checkpoint.tensor("small"), torch.ones(3))


class Bomb:
    """Runs a command when unpickled freely."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, new_format: bool) -> None:
    proof = tmp_path / "proof"
    content = {"emb.weight": torch.ones(2, 2), "bomb": Bomb(f"touch {proof}")}
    path = _save(tmp_path / "bomb.pth", content, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="posix.system.*nothing of it was run"):
        open_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a dict"),
        (torch.ones(2), "holds a tensor, not a dict"),
        ({}, "holds no tensors"),
        ({"model": {"epoch": 3}}, "holds no tensors"),
        ({"emb.weight": torch.ones(2, 2), "_strategy": "cpu fp32"}, "converted for a strategy of the package rwkv"),
        ({0: torch.ones(2)}, "under '0'"),
        ({"emb.weight": torch.ones(2, 2, dtype=torch.int8)}, "emb.weight in x.pth is int8"),
        ({"emb.weight": torch.eye(2).to_sparse()}, r"it holds torch\._utils\._rebuild_sparse_tensor"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(_save(tmp_path / "x.pth", content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing.pth does not exist"):
        open_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("options", [{}, OLD])
def test_truncated_file(tmp_path: Path, kept: float, options: dict[str, Any]) -> None:
    path = _save(tmp_path / "x.pth", {f"w{i}": torch.ones(1000) for i in range(5)}, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"x\.pth (is (empty|cut short)|has a damaged)"):
        open_checkpoint(path)


def test_damaged_pickle(tmp_path: Path) -> None:
    path = _save(tmp_path / "x.pth", {"emb.weight": torch.ones(2, 2)})
    content = path.read_bytes()
    start = content.index(b"emb.weight")
    path.write_bytes(content[:start] + b"\xff" * 20 + content[start + 20 :])
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        open_checkpoint(path)


@pytest.mark.parametrize("listing", [b"\x80\x02K\x01Q.", b"\x80\x02X\x01", b"\x80\x02}q", b""])
def test_nonsense_instead_of_a_list(tmp_path: Path, listing: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", listing)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data/0", bytes(64))
    with pytest.raises(CheckpointError, match=r"^x\.pth has a damaged list of tensors"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "listing",
    [
        b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",  # its hash would take 2^60 steps
        b"\x80\x02" + b"(" * 1_900_000 + b".",  # torch keeps a list for each mark
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.",
    ],
)
def test_a_list_that_would_keep_torch_busy_never_reaches_it(tmp_path: Path, listing: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", listing)
    with pytest.raises(CheckpointError, match=r"^x\.pth (has a damaged|was refused|holds)"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("data/0", bytes(16), "two of its records"), ("byteorder", b"big", "not saved on a little-endian")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_could_be_read_in_another_way(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    source = _save(tmp_path / "x.pth", {"w": torch.ones(2, 2)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
        kept = [entry for entry in old.infolist() if not entry.filename.endswith("byteorder")]
        for entry in kept:
            new.writestr(entry.filename, old.read(entry))
        new.writestr(f"x/{name}", content)
    with pytest.raises(CheckpointError, match=rf"^y\.pth .*{message}"):
        open_checkpoint(tmp_path / "y.pth")


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="a zip archive but not a PyTorch checkpoint"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"GGUF\x03\0\0\0", b"<html>404</html>", b"\x28\0\0\0\0\0\0\0{}"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint"):
        open_checkpoint(tmp_path / "x.pth")


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
