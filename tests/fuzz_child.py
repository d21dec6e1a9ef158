"""Reads hostile files, one after the other, in a process that may not have much memory nor touch anything.

    python -m tests.fuzz_child gguf --seed 5 --first 17 --count 1 --keep case.gguf

runs one case alone and keeps its file. For each case two lines are printed: its number, before it begins, and how it
ended. A case may be read, if all that the reader states lies inside the file, or refused with one sentence. The
process ends itself when a case hangs; that, or its death, tells which case it was.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import mmap
import os
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ggufy.core.errors import GgufyError
from ggufy.formats import gguf
from ggufy.llama.chat.options import Model
from ggufy.quantize.imatrix import read_imatrix
from ggufy.sources.inspect import inspect
from ggufy.steps.imatrix import check_imatrix
from ggufy.system.settings import Settings
from tests import fuzz_gguf

MEMORY = 512 << 20  # bytes that a case may take
PATIENCE_S = 120  # a case takes some milliseconds
SETTINGS = Settings.from_env()
_FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "pty.", "webbrowser.")
_ALLOWED = ("os.listdir", "os.scandir", "os.fspath", "os.walk", "os.add_dll_directory", "os.putenv", "os.unsetenv")


def read_gguf(path: Path) -> None:
    """The head of a model; what it states must be inside."""
    head = gguf.read_head(path)
    end, size = head.data_start, path.stat().st_size
    assert 24 <= head.metadata_end <= head.data_start
    for tensor in sorted(head.tensors.values(), key=lambda tensor: tensor.offset):
        assert head.data_start + tensor.offset >= end, "tensors overlap"
        end = head.data_start + tensor.offset + tensor.size
        assert tensor.size > 0
        assert tensor.offset % int(head.metadata.get("general.alignment", 32)) == 0
        if tensor.type == "F32":
            assert gguf.read_tensor(path, head, tensor.name).size == tensor.elements
    assert end <= size, "a tensor ends after the file"
    assert head.elements >= 0
    assert head.outtype
    Model.read(path)
    inspect(str(path), SETTINGS)


def take_imatrix(path: Path) -> None:
    """An imatrix for a model of three matrices: checked, then read as the engine reads it."""
    shape = (fuzz_gguf.WIDTH, 8)
    names = [name.decode() for name in fuzz_gguf.NAMES]
    tensors = {name: gguf.TensorInfo(name=name, shape=shape, type="F32", offset=0, size=2048) for name in names}
    base = gguf.GgufHead(metadata={}, tensors=tensors, metadata_end=0, data_start=0, file_size=0)
    check_imatrix(path, base, names, shown_as=path.name)
    weights = read_imatrix(path).weights
    assert all(np.isfinite(weights[name]).all() for name in names)


def read_pickled(path: Path) -> None:
    """The list of tensors, without torch."""
    from ggufy.formats.pickled import read_tensors

    size = path.stat().st_size
    with path.open("rb") as file:
        tensors = read_tensors(file, path.name)
    assert tensors
    looked_at({name: tensor.shape for name, tensor in tensors.items()})
    assert all(tensor.elements <= size for tensor in tensors.values()), "more values than bytes"
    inspect(str(path), SETTINGS)


def read_safetensors(path: Path) -> None:
    """The list of tensors, then their values; what the list states must be inside."""
    from ggufy.formats.mapped_safetensors import open_safetensors
    from ggufy.formats.safetensors import read_header

    size = path.stat().st_size
    with path.open("rb") as file:
        tensors = read_header(file, path.name)
    assert tensors
    assert sum(tensor.stop - tensor.start for tensor in tensors.values()) < size
    assert all(8 < tensor.start <= tensor.stop <= size for tensor in tensors.values())
    looked_at({name: tensor.shape for name, tensor in tensors.items()})
    with open_safetensors([path]) as opened:
        for name, shape in opened.shapes.items():
            assert tuple(opened.tensor(name).clone().shape) == shape
            opened.release(name)
    inspect(str(path), SETTINGS)


def read_rwkvcpp(path: Path) -> None:
    """The head of a file of rwkv.cpp, what its tensors are, and their values; what it states must be inside."""
    from ggufy.formats.mapped_rwkvcpp import MappedRwkvcpp
    from ggufy.formats.rwkvcpp import read_head
    from ggufy.rwkvcpp.tensors import check_file

    head, end = read_head(path), 24
    for record in head.records.values():
        assert end < record.offset and record.size > 0
        end = record.offset + record.size
    assert end == path.stat().st_size
    inspect(str(path), SETTINGS)
    check_file(head, path.name)
    with MappedRwkvcpp(path, head) as opened:
        for name, shape in opened.shapes.items():
            assert tuple(opened.tensor(name).clone().shape) == shape
            opened.release(name)


def read_checkpoint(path: Path) -> None:
    """The tensors themselves, through torch; the list without torch must be the same."""
    from ggufy.formats.checkpoint import open_checkpoint
    from ggufy.formats.pickled import read_tensors

    with open_checkpoint(path) as checkpoint:
        looked_at(checkpoint.shapes)
        with path.open("rb") as file:
            assert {name: t.shape for name, t in read_tensors(file, path.name).items()} == checkpoint.shapes
        for name in checkpoint.shapes:
            before = checkpoint.tensor(name).clone().numpy(force=True) if _plain(checkpoint.dtypes[name]) else None
            checkpoint.release(name)
            if before is not None:
                assert np.array_equal(before, checkpoint.tensor(name).numpy(), equal_nan=True), (
                    "release changes values"
                )
            assert checkpoint.tensor(name).untyped_storage().nbytes() <= path.stat().st_size


def looked_at(shapes: dict[str, tuple[int, ...]]) -> None:
    """The next stage, with whatever names and shapes were read: it finds the architecture, or has a sentence."""
    from ggufy.models.layouts import origins_of
    from ggufy.models.origin import shapes_of
    from ggufy.models.registry import detect

    try:
        detect(shapes_of(origins_of(shapes)))
    except GgufyError as error:
        assert is_sentence(str(error)), f"not a plain sentence: {str(error)[:1000]!r}"


def is_sentence(text: str) -> bool:
    """One line, not too long, and nothing that a terminal would obey."""
    return text.isprintable() and 10 < len(text) < 500


def _plain(dtype: object) -> bool:
    return str(dtype) in ("torch.float32", "torch.float16", "torch.float64")


def _pth(rng: random.Random) -> bytes:
    from tests import fuzz_pth

    return fuzz_pth.mutated(rng)


def _safetensors(rng: random.Random) -> bytes:
    from tests import fuzz_safetensors

    return fuzz_safetensors.mutated(rng)


def _rwkvcpp(rng: random.Random) -> bytes:
    from tests import fuzz_rwkvcpp

    return fuzz_rwkvcpp.mutated(rng)


TARGETS: dict[str, tuple[str, Callable[[random.Random], bytes], Callable[[Path], None]]] = {
    "gguf": ("x.gguf", lambda rng: fuzz_gguf.mutated(rng, fuzz_gguf.model()), read_gguf),
    "imatrix": ("x.gguf", lambda rng: fuzz_gguf.mutated(rng, fuzz_gguf.imatrix()), take_imatrix),
    "pickled": ("x.pth", _pth, read_pickled),
    "checkpoint": ("x.pth", _pth, read_checkpoint),
    "safetensors": ("x.safetensors", _safetensors, read_safetensors),
    "rwkvcpp": ("x.bin", _rwkvcpp, read_rwkvcpp),
}


def case_bytes(target: str, seed: int, case: int) -> bytes:
    """The file of one case, always the same."""
    kind = "pth" if target in ("pickled", "checkpoint") else target
    return TARGETS[target][1](random.Random(f"{kind} {seed} {case}"))


def outcome(read: Callable[[Path], None], path: Path, touched: list[str]) -> tuple[str, str]:
    """How a case ended: read, refused or failed; and what is to be said of it."""
    touched.clear()
    try:
        read(path)
        said = ""
    except GgufyError as error:
        said = str(error)
        if not is_sentence(said):
            return "failed", f"not a plain sentence: {said[:1000]!r}"
    except BaseException:
        return "failed", traceback.format_exc(limit=-6)
    if touched:
        return "failed", f"it did {touched}"
    if left := [other.name for other in path.parent.iterdir() if other != path]:
        return "failed", f"it left {left}"
    return ("refused" if said else "read"), said


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Memory: nothing above what the process has mapped by now and `MEMORY`. Time: `PATIENCE_S`, then it ends."""
    gc.collect()  # what an earlier case left is not this one's
    status, (soft, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if status.exists():
        mapped = int(status.read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    for name in ("--seed", "--first", "--count"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    name, _, read = TARGETS[given.target]
    case_bytes(given.target, given.seed, 0)  # what is imported on the way is no case's doing
    touched: list[str] = []
    keep = given.keep and given.keep.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = Path(folder, name)
        _warm_up(given.target, path, read)
        gc.collect()
        gc.freeze()
        watching = [False]

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            writing = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if watching[0] and (writing or event.startswith(_FORBIDDEN) and event not in _ALLOWED):
                touched.append(f"{event} {arguments}"[:200])

        sys.addaudithook(watch)
        for case in range(given.first, given.first + given.count):
            data = case_bytes(given.target, given.seed, case)
            path.write_bytes(data)
            if keep:
                keep.write_bytes(data)
            del data
            tell(case=case)
            with limited():
                watching[0] = True
                ended, why = outcome(read, path, touched)
                watching[0] = False
            tell(case=case, ended=ended, why=why)
            for left in set(Path(folder).iterdir()) - {path}:
                left.unlink()


def _warm_up(target: str, path: Path, read: Callable[[Path], None]) -> None:
    """Reads one sound file, which must be read: a reader that refuses all would be none. Imports happen now."""
    if target in ("pickled", "checkpoint"):
        import torch

        from tests.fuzz_pth import sound

        torch.set_num_threads(1)
        path.write_bytes(sound()[0])
    elif target == "safetensors":
        from tests.fuzz_safetensors import sound as sound_safetensors

        path.write_bytes(sound_safetensors("plain"))
    elif target == "rwkvcpp":
        import torch

        from tests.fuzz_rwkvcpp import sound as sound_rwkvcpp

        torch.set_num_threads(1)
        path.write_bytes(sound_rwkvcpp("7")[0])
    else:
        path.write_bytes((fuzz_gguf.model() if target == "gguf" else fuzz_gguf.imatrix()).write())
    read(path)


if __name__ == "__main__":
    main()
