"""Opening .pth files: what is in them, what is refused, and that memory is given back."""

from __future__ import annotations

import mmap
import os
import zipfile
from pathlib import Path

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


def test_parameters_are_tensors_without_gradient(tmp_path: Path) -> None:
    with open_checkpoint(_save(tmp_path / "x.pth", {"w": torch.nn.Parameter(torch.ones(3))})) as checkpoint:
        assert not checkpoint.tensor("w").requires_grad


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
    with pytest.raises(
        CheckpointError, match="posix.system.*nothing of it was run" if new_format else "before version"
    ):
        open_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a dict"),
        (torch.ones(2), "holds a tensor, not a dict"),
        ({}, "holds no tensors"),
        ({"model": {"emb.weight": torch.ones(2, 2)}}, "holds a dict under 'model'"),
        ({"emb.weight": torch.ones(2, 2), "epoch": 3}, "holds a int under 'epoch'"),
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
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    path = _save(tmp_path / "x.pth", {f"w{i}": torch.ones(1000) for i in range(5)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"x\.pth is (empty|cut short)"):
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
    [("DATA.PKL", b"\x80\x02}.", "two of its records"), ("byteorder", b"big", "not saved on a little-endian")],
)
def test_what_torch_would_read_in_another_way(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    source = _save(tmp_path / "x.pth", {"w": torch.ones(2, 2)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
        kept = [entry for entry in old.infolist() if not entry.filename.endswith(name)]
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
