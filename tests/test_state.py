"""Tuned states: what is one, which model it fits, and that llama.cpp computes with it what NumPy and others do."""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggufy.core.errors import CheckpointError, SourceError, ToolError
from ggufy.formats.session import SUFFIX, Session, read_session, write_session
from ggufy.llama.install import Llama
from ggufy.llama.states import check_state, read_layout, save_state, shape_of
from ggufy.models.convert import convert
from ggufy.models.tuned_state import TunedState, read_tuned_state
from tests import recurrence, tiny
from tests.conftest import ROOT, Ggufy
from tests.reference import reference_file

MODELS = {"6": "6v0-1m", "7": "7v0-834K"}  # of the reference data
# The largest difference over all logits. llama.cpp's own RWKV-6, without a state, differs as much on this model; a
# state that was wrongly transposed gives 3.6 and 0.028.
REACHED = {"6": 2e-3, "7": 5e-6}
TOKENS = (3, 65, 32, 200, 17, 99, 5, 280, 64, 64, 12, 150)
SESSION = Session(
    magic=0x6767736E, version=10, tokens=0, architecture="rwkv7", shifts=(1024, 1024), states=(32768, 32768)
)


def states_of(version: str, layers: int = 2, heads: int = 2, size: int = 64) -> dict[str, torch.Tensor]:
    """A random tuned state."""
    generator = torch.Generator().manual_seed(int(version))
    return {
        f"blocks.{block}.att.time_state": torch.randn((heads, size, size), generator=generator)
        for block in range(layers)
    }


def safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes tensors as safetensors does."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    listed, data = {}, b""
    for name, tensor in tensors.items():
        values = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        listed[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    head = json.dumps(listed).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def llama_logits(llama: Llama, model: Path, session: Path | None, tokens: Sequence[int], folder: Path) -> Any:
    """What llama.cpp's library computes, in a process of its own."""
    (library,) = list(llama.bin.glob("libllama.so")) or list(llama.bin.glob("libllama.dylib"))
    out = folder / "logits.npy"
    command = [sys.executable, "-m", "tests.llama_logits", library, model, session or "-", out, *tokens]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out)


def exchanged(state: TunedState) -> TunedState:
    """The state with rows and columns of each head exchanged: a wrong one."""
    return TunedState(tuple(np.ascontiguousarray(block.swapaxes(1, 2)) for block in state.blocks))


# ---- what a state is


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_file_of_a_state_gives_the_same_values(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in states_of("7").items()}
    expected = [tensor.float().numpy() for tensor in tensors.values()]
    files = [
        tiny.save(tmp_path / "plain.pth", tensors),
        tiny.save(tmp_path / "merged.pth", tiny.weights("7", dtype=dtype) | tensors),
        tiny.save(tmp_path / "prefixed.pth", {f"model.{name}": tensor for name, tensor in tensors.items()}),
        tiny.save(tmp_path / "batch.pth", {name: tensor[None] for name, tensor in tensors.items()}),
        safetensors(tmp_path / "web.st", {name: tensor.transpose(1, 2) for name, tensor in tensors.items()}),
    ]
    for file in files:
        state = read_tuned_state(file)
        assert state.shape == (2, 2, 64)
        assert all(np.array_equal(found, known) for found, known in zip(state.blocks, expected, strict=True)), file


def replaced(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A state with another tensor in the place of one, or with one too few."""
    tensors = states_of("7", layers=3)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    return tensors


@pytest.mark.fast
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (tiny.weights("7"), "has no tuned state .*: give a file that state tuning has left"),
        ({"blocks.0.att.key.lora_A": torch.ones(2, 4)}, "is an adapter, not a tuned state: "),
        ({"base_model.model.blocks.0.att.key.lora_A.weight": torch.ones(2, 4)}, "is an adapter"),
        ({"blocks.0.att.key.miss_block": torch.ones(2, 4)}, "is an adapter"),
        (replaced("blocks.1.att.time_state", None), "has no state for block 1"),
        (replaced("blocks.0.att.time_state", None), "has no state for block 0"),
        (replaced("blocks.1.att.time_state", torch.ones(2, 64, 32)), "has the shape 2 x (64 x 32|32 x 64),"),
        (replaced("blocks.1.att.time_state", torch.ones(1, 64, 64)), "has the shape 1 x 64 x 64"),
        (replaced("blocks.0.att.time_state", torch.ones(64, 64)), "has the shape 64 x 64"),
        (replaced("blocks.0.att.time_state", torch.ones(64)), "has the shape 64,"),
        (replaced("blocks.2.att.time_state", torch.full((2, 64, 64), torch.nan)), "values that are not finite"),
    ],
)
def test_what_is_no_state_is_told(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    for file in (tiny.save(tmp_path / "x.pth", tensors), safetensors(tmp_path / "x.st", tensors)):
        with pytest.raises(CheckpointError, match=said):
            read_tuned_state(file)


@pytest.mark.fast
def test_what_is_no_file_of_tensors_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut.st").write_bytes(struct.pack("<Q", 1 << 60) + b"{")
    for path in (tmp_path, tmp_path / "gone", tmp_path / "text", tmp_path / "cut.st"):
        with pytest.raises(CheckpointError):
            read_tuned_state(path)


# ---- session files


@pytest.mark.fast
def test_a_session_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = [np.full((2, 64, 64), value, dtype=np.float32) for value in (1.5, -2.5)]
    write_session(tmp_path / "s.bin", SESSION, state)
    assert read_session(tmp_path / "s.bin") == SESSION
    assert (tmp_path / "s.bin").read_bytes().endswith(state[1].tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["s.bin"]


@pytest.mark.fast
def test_a_session_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "s.bin").write_bytes(b"before")
    with pytest.raises(ValueError, match="zip"):
        write_session(tmp_path / "s.bin", SESSION, [np.zeros((2, 64, 64), dtype=np.float32)])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.fast
def test_a_hostile_session_is_refused(tmp_path: Path) -> None:
    """Every cut, and every number of the head replaced by one that lies; nothing is allocated for it."""
    path = tmp_path / "s.bin"
    write_session(path, SESSION, [np.ones((2, 64, 64), dtype=np.float32)] * 2)
    whole = path.read_bytes()
    for cut in (*range(60), 1000, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="no state that llama.cpp can begin from"):
            read_session(path)
    refused = 0
    for place, lie in itertools.product(range(8, 60), (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80")):
        path.write_bytes(whole[:place] + lie + whole[place + 4 :])
        try:
            found = read_session(path)
        except SourceError:
            refused += 1
        else:  # the position and the number of the sequence are of no account
            assert found.shifts == SESSION.shifts and found.states == SESSION.states
    assert refused > 100
    path.write_bytes(whole + b"\0")
    with pytest.raises(SourceError, match="goes on where it should end"):
        read_session(path)
    noise = random.Random(6)
    for _ in range(300):
        path.write_bytes(whole[: noise.randrange(12)] + noise.randbytes(noise.randrange(200)))
        with pytest.raises(SourceError):
            read_session(path)


@pytest.mark.fast
@pytest.mark.parametrize("version", ["6", "7"])
def test_only_a_state_of_the_model_is_taken(tmp_path: Path, version: str) -> None:
    model = tiny.converted(tmp_path, version)
    right = replace(SESSION, architecture=f"rwkv{version}")
    state = [np.zeros((2, 64, 64), dtype=np.float32)] * 2
    path = tmp_path / "s.bin"
    write_session(path, right, state)
    check_state(path, model)
    others = [
        replace(right, architecture="rwkv6" if version == "7" else "rwkv7"),
        replace(right, shifts=(512, 512)),
        replace(right, states=(16384, 16384)),
    ]
    for other in others:
        blocks = [np.zeros(size // 4, dtype=np.float32) for size in other.states]
        write_session(path, other, blocks)
        with pytest.raises(SourceError, match=f"state of another model than made.gguf, which is rwkv{version} with 2"):
            check_state(path, model)
    write_session(path, right, state)
    data = path.read_bytes()
    path.write_bytes(data[:8] + struct.pack("<Ii", 1, 7) + data[12:])
    with pytest.raises(SourceError, match="stands behind a text of 1 tokens"):
        check_state(path, model)


@pytest.mark.fast
def test_a_state_of_another_shape_is_refused_before_anything_runs(tmp_path: Path) -> None:
    model = tiny.converted(tmp_path, "7")
    nothing = Llama(bin=tmp_path / "nowhere", source=None, version="", commit="")
    for shape in ({"layers": 3}, {"heads": 1}, {"heads": 4, "size": 32}):
        file = tiny.save(tmp_path / "x.pth", states_of("7", **shape))
        with pytest.raises(SourceError, match="x.pth is the state of another model than made.gguf"):
            save_state(read_tuned_state(file), file.name, model, tmp_path / "out.bin", nothing)
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.fast
def test_a_model_without_such_a_state_is_told(tmp_path: Path) -> None:
    from tests import chatty

    with pytest.raises(SourceError, match=r"other.gguf is no RWKV-6 or RWKV-7"):
        shape_of(chatty.write(tmp_path / "other.gguf"))


# ---- what llama.cpp computes


@pytest.mark.tools
@pytest.mark.parametrize("version", ["6", "7"])
def test_llama_computes_from_a_state_what_the_formulas_say(llama: Llama, tmp_path: Path, version: str) -> None:
    weights = tiny.weights(version)
    model, tensors = tiny.converted(tmp_path, version), states_of(version)
    state = read_tuned_state(tiny.save(tmp_path / "state.pth", tensors))
    arrays = {name: tensor.double().numpy() for name, tensor in weights.items()}
    expected = recurrence.logits(arrays, version, TOKENS, state.blocks)
    session = tmp_path / "state.bin"
    save_state(state, "state.pth", model, session, llama)
    check_state(session, model)
    found = llama_logits(llama, model, session, TOKENS, tmp_path)
    assert np.abs(found - expected).max() < 2e-3
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    without = recurrence.logits(arrays, version, TOKENS)
    assert np.abs(llama_logits(llama, model, None, TOKENS, tmp_path) - without).max() < 2e-3
    save_state(exchanged(state), "state.pth", model, session, llama)
    assert np.abs(llama_logits(llama, model, session, TOKENS, tmp_path) - expected).max() > 0.1


@pytest.mark.tools
@pytest.mark.parametrize("version", ["6", "7"])
def test_llama_computes_from_a_state_what_others_do(llama: Llama, tmp_path: Path, version: str) -> None:
    """48 steps of rwkv.cpp from the same state, in the reference data."""
    name = MODELS[version]
    checkpoint = reference_file(f"rwkvcpp/derived/tiny-rwkv-{name}.pth")
    model, session = tmp_path / "model.gguf", tmp_path / "state.bin"
    convert(checkpoint, model, outtype="f32", vocab=reference_file("rwkvcpp/derived/byte.vocab.txt"))
    state = read_tuned_state(reference_file(f"rwkvcpp/derived/state-{name}.pth"))
    expected = np.load(reference_file(f"rwkvcpp/reference/state-{version}v0.npz"))[f"{name}/state/logits48"]
    text = json.loads(reference_file("rwkvcpp/reference/reference.json").read_text(encoding="utf-8"))["text"]
    tokens = (text[:128].encode("utf-16-le") if version == "6" else text.encode())[: len(expected)]
    save_state(state, "state.pth", model, session, llama)
    found = llama_logits(llama, model, session, list(tokens), tmp_path)
    assert np.abs(found - expected).max() < REACHED[version]
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    save_state(exchanged(state), "state.pth", model, session, llama)
    assert np.abs(llama_logits(llama, model, session, list(tokens), tmp_path) - expected).max() > 5 * REACHED[version]


@pytest.mark.tools
def test_the_layout_is_the_installed_program_s(llama: Llama, tmp_path: Path) -> None:
    """Its magic and version, whatever they are; another layout is told."""
    model = tiny.converted(tmp_path, "7")
    layout = read_layout(model, shape_of(model), llama)
    assert replace(layout, tokens=0) == replace(SESSION, magic=layout.magic, version=layout.version)
    assert layout.tokens > 1
    other = tmp_path / "bin"
    other.mkdir()
    program = other / "llama-completion"
    for body in ("exit 0", 'while [ "$1" != --prompt-cache ]; do shift; done; echo other > "$2"'):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        with pytest.raises(ToolError, match="in a layout that ggufy does not know"):
            read_layout(model, shape_of(model), replace(llama, bin=other))


@pytest.mark.tools
def test_the_command(ggufy: Ggufy, tmp_path: Path) -> None:
    model, state = tiny.converted(tmp_path, "6"), tiny.save(tmp_path / "poet.pth", states_of("6"))
    done = ggufy("state", state, model)
    assert done.code == 0, done.err
    made = tmp_path / f"poet{SUFFIX}"
    assert done.out.startswith(str(made))
    check_state(made, model)
    merged = tiny.save(tmp_path / "merged.pth", tiny.weights("6") | states_of("6"))
    assert ggufy("state", merged, model, tmp_path / "other.bin").code == 0
    assert (tmp_path / "other.bin").read_bytes() == made.read_bytes()
    kept = model.read_bytes()
    for arguments, said in [
        ((state, model, model), "would be written over"),
        ((state, model, state), "would be written over"),
        ((model, model), "is not a PyTorch checkpoint"),
        ((state, state), "is not a sound GGUF file"),
    ]:
        refused = ggufy("state", *arguments)
        assert refused.code in (1, 2) and said in refused.err and len(refused.err.splitlines()) == 1, refused.err
    assert model.read_bytes() == kept


# ---- texts that begin with one


@pytest.fixture(scope="module")
def tuned(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a session file of its tuned state."""
    folder = tmp_path_factory.mktemp("tuned")
    model, session = tiny.converted(folder, "7"), folder / f"poet{SUFFIX}"
    tiny.save(folder / "poet.pth", states_of("7"))
    save_state(read_tuned_state(folder / "poet.pth"), "poet.pth", model, session, llama)
    return model, session


@pytest.mark.tools
def test_a_completion_begins_from_the_state(ggufy: Ggufy, tuned: tuple[Path, Path]) -> None:
    """The likeliest tokens are those of the formulas, from the session file and from what it was made of."""
    model, session = tuned
    before = session.stat().st_mtime_ns, session.read_bytes()
    tokens = tiny.vocab_tokens()
    arrays = {name: tensor.double().numpy() for name, tensor in tiny.weights("7").items()}
    states = read_tuned_state(session.with_name("poet.pth")).blocks
    ids = [1 + tokens.index(b"a"), 1 + tokens.index(b"b")]
    written = b""
    for _ in range(8):
        ids.append(int(recurrence.logits(arrays, "7", ids, states)[-1].argmax()))
        written += tokens[ids[-1] - 1] if ids[-1] <= len(tokens) else f"[PAD{ids[-1]}]".encode()
    expected = written.decode("utf-8", errors="replace")

    def complete(*arguments: object) -> str:
        done = ggufy("complete", model, "-p", "ab", "-n", 8, "--temp", 0, "--json", *arguments)
        assert done.code == 0, done.err
        return str(json.loads(done.out)["text"])

    assert complete("--state", session) == complete("--state", session.with_name("poet.pth"))
    assert complete("--state", session).rstrip("\ufffd") == expected.rstrip("\ufffd") != ""
    assert complete() != complete("--state", session)
    assert (session.stat().st_mtime_ns, session.read_bytes()) == before


@pytest.mark.tools
def test_a_state_of_another_model_begins_nothing(ggufy: Ggufy, tuned: tuple[Path, Path], tmp_path: Path) -> None:
    _, session = tuned
    other = tiny.converted(tmp_path, "7", layers=1)
    for command in (("complete", other, "-p", "x"), ("chat", other)):
        done = ggufy(*command, "--state", session)
        assert done.code == 1 and "is the state of another model than" in done.err
