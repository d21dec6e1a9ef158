"""Somebody's own librwkv in a process of its own: libraries of three ages whose arithmetic can be checked by hand, and
the one of April 2023 in the package rwkv-cpp-python, where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggufy.core.errors import SourceError, ToolError, UsageError
from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.library import LibraryEngine
from tests.rwkvcpp_files import Written, write
from tests.rwkvcpp_models import file_of

AGES = {"today": [], "2023-06": ["-DMIDDLE"], "2023-04": ["-DOLD"]}


@pytest.fixture(scope="module", params=AGES)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("library"), *AGES[request.param])


def compiled(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, to make a librwkv")
    made = folder / f"librwkv{'-'.join(flags)}.so"
    source = Path(__file__).with_name("librwkv.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, "-o", made, source], check=True)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A head of five tokens; these libraries look at nothing else."""
    return write(tmp_path / "m.bin", [Written(b"emb.weight", 0, [64, 5], bytes(1280))])


@pytest.fixture
def today(library: Path, model: Path) -> Iterator[LibraryEngine]:
    engine = LibraryEngine(library, model, threads=3, gpu_layers=2)
    yield engine
    engine.close()


def test_a_token_and_more(today: LibraryEngine, library: Path) -> None:
    sequences = 0 if "OLD" in library.name else 1
    layers = 0 if "OLD" in library.name else 2
    assert (today.n_vocab, today.n_embed, today.n_layer) == (5, 64, 1)
    assert (today.state_len, today.logits_len) == (3, 5)
    logits, state = today.eval([2], None)
    assert logits.tolist() == [72, 1, 300 + layers, 0, 2] and state.tolist() == [72, 1, 300 + layers]
    logits, new = today.eval([1, 2, 0], state)
    assert logits.tolist() == [72120, 4, 300 + layers, sequences, 0] and new.tolist() == [72120, 4, 300 + layers]
    assert state.tolist() == [72, 1, 300 + layers], "what is given stays as it is"
    every, end = today.eval([1, 2, 0], state, every=True)
    assert every[:, 0].tolist() == [721, 7212, 72120] and np.array_equal(end, new)
    _, end = today.eval([0] * 40, np.zeros(3, dtype=np.float32))  # more than go through at once
    assert end.tolist() == [0, 40, 300 + layers]


def test_a_token_that_the_library_cannot_evaluate(today: LibraryEngine) -> None:
    with pytest.raises(UsageError, match="token 5 is none of the model's 5"):
        today.eval([5], None)
    assert today.eval([1], None)[0][4] == 1, "the process was not asked"
    with pytest.raises(ToolError, match=r"librwkv.*failed \(the library could not evaluate a token"):
        today.eval([3], None)


def test_an_assertion_ends_the_library_s_process_only(today: LibraryEngine) -> None:
    with pytest.raises(ToolError, match=r"failed \(exit code -6: GGML_ASSERT: rwkv.cpp:1: token != 4\): use another"):
        today.eval([1, 4], None)
    with pytest.raises(ToolError, match="failed"):
        today.eval([1], None)
    today.close()
    today.close()


def test_what_cannot_be_loaded(tmp_path: Path, model: Path, library: Path) -> None:
    other = model.rename(tmp_path / "m.binx")
    with pytest.raises(ToolError, match=r"cannot load the model: rwkv.cpp: the name ends in x\): use another"):
        LibraryEngine(library, other, threads=1)
    with pytest.raises(SourceError, match="is not a sound file of rwkv.cpp"):
        LibraryEngine(library, library, threads=1)
    with pytest.raises(UsageError, match="no.so does not exist: give the path of a librwkv"):
        LibraryEngine(tmp_path / "no.so", other, threads=1)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ToolError, match=r"text.so failed \(.*(invalid|too short).*\): use another"):
        LibraryEngine(tmp_path / "text.so", other, threads=1)


def test_a_library_of_another_project(tmp_path: Path, model: Path) -> None:
    (tmp_path / "other.c").write_text("int zero(void) { return 0; }\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, to make a library")
    subprocess.run([compiler, "-shared", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    with pytest.raises(ToolError, match="the library has no rwkv_init_from_file, as one of another project"):
        LibraryEngine(tmp_path / "other.so", model, threads=1)


def test_a_model_of_other_sizes(tmp_path: Path, library: Path) -> None:
    path = write(tmp_path / "m.bin", [Written(b"emb.weight", 0, [64, 6], bytes(1536))], tokens=6)
    with pytest.raises(ToolError, match="it has 5 logits for 6 tokens"):
        LibraryEngine(library, path, threads=1)


def test_the_library_sees_nothing_of_our_environment(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    engine = LibraryEngine(compiled(tmp_path), model, threads=1)
    seen = Path(f"/proc/{engine._process.pid}/environ")
    if not seen.exists():
        pytest.skip("this system does not show the environment of a process")
    engine.eval([1], None)  # so that the launcher has become what it starts
    text = seen.read_bytes()
    engine.close()
    assert b"OMP_NUM_THREADS=1" in text and b"hf_secret" not in text


def test_the_library_of_april_2023(tmp_path: Path) -> None:
    """It reads version 100 only; FP32 is the same there."""
    package = importlib.util.find_spec("rwkv_cpp")
    folder = Path(next(iter(package.submodule_search_locations or ()))) if package else None
    if folder is None or not (folder / "librwkv.so").is_file():
        pytest.skip("the package rwkv-cpp-python 0.0.1 is not installed")
    path = file_of(tmp_path, "4")
    data = bytearray(path.read_bytes())
    data[4:8] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    theirs, ours = LibraryEngine(folder / "librwkv.so", path, threads=1), Engine(path, threads=1)
    tokens = list(range(1, 40))
    (logits, state), (wanted, end) = (one.eval(tokens, None, every=True) for one in (theirs, ours))
    assert np.abs(logits - wanted).max() < 1e-4 and np.abs(state - end).max() < 1e-4
    assert np.array_equal(theirs.eval(tokens, theirs.initial_state())[1], state)
    theirs.close()
