"""What conversion writes, what it leaves out, what it refuses, and how much memory it takes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from ggufy.core.errors import Cancelled, CheckpointError, UsageError, VocabError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.models.convert import convert, write_skeleton
from tests import tiny

THREADS = torch.get_num_threads()


def shapes(source: Path) -> dict[str, tuple[int, ...]]:
    with open_checkpoint(source) as checkpoint:
        return checkpoint.shapes


@pytest.mark.parametrize("version", ["6", "7"])
def test_hyper_parameters_come_from_the_shapes(tmp_path: Path, version: str) -> None:
    fields = tiny.fields(tiny.converted(tmp_path, version, width=192, ffn=448))
    ranks = {
        "6": {"time_mix_extra_dim": 24, "time_decay_extra_dim": 40, "rescale_every_n_layers": 6},
        "7": {
            "attention.decay_lora_rank": 24,
            "attention.iclr_lora_rank": 40,
            "attention.value_residual_mix_lora_rank": 16,
            "attention.gate_lora_rank": 56,
        },
    }[version]
    sizes = {"embedding_length": 192, "block_count": 2, "feed_forward_length": 448, "wkv.head_size": 64}
    for name, value in (ranks | sizes).items():
        assert fields[f"rwkv{version}.{name}"] == value
    assert fields["general.name"] == f"tiny-v{version}"
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{tiny.VOCAB_ROWS - 1}]"
    assert fields["tokenizer.ggml.eot_token_id"] == 0  # and not the blank line


@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
def test_skeleton_is_the_same_file_with_a_hole(tmp_path: Path, outtype: str) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "6", width=512)
    convert(source, tmp_path / "made.gguf", outtype=outtype, vocab=vocab, name="A model")
    write_skeleton(shapes(source), tmp_path / "skeleton.gguf", outtype=outtype, vocab=vocab, name="A model")
    made, skeleton = (tmp_path / "made.gguf").read_bytes(), (tmp_path / "skeleton.gguf").read_bytes()
    start = GGUFReader(tmp_path / "made.gguf").data_offset
    assert len(made) == len(skeleton)
    assert made[:start] == skeleton[:start]
    assert not any(skeleton[start:])
    assert (tmp_path / "skeleton.gguf").stat().st_blocks * 512 < start + 65536


def test_skeleton_reads_no_weights(tmp_path: Path) -> None:
    state = tiny.weights("7")
    state["emb.weight"][:] = float("nan")
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    write_skeleton(shapes(source), tmp_path / "skeleton.gguf", outtype="f16", vocab=vocab, name="x")
    assert tiny.fields(tmp_path / "skeleton.gguf")["general.name"] == "x"


def test_the_way_a_tensor_was_saved_does_not_matter(tmp_path: Path) -> None:
    """Vectors of one dimension, transposed and spread-out strides, a storage shared by all, F64."""
    state = tiny.weights("7")
    shared = torch.cat([tensor.flatten() for tensor in state.values()])
    other, start = {}, 0
    for number, (name, tensor) in enumerate(state.items()):
        if number % 3 == 0:
            other[name] = shared[start : start + tensor.numel()].view(tensor.shape)
        elif number % 3 == 1:
            other[name] = tensor.squeeze().double()
        else:
            other[name] = torch.stack([tensor.t() if tensor.ndim == 2 else tensor] * 2)[0]
            other[name] = other[name].t() if tensor.ndim == 2 else other[name]
        start += tensor.numel()
    vocab = tiny.write_vocab(tmp_path / "vocab.txt")
    for name, content in (("plain", state), ("other", other)):
        convert(tiny.save(tmp_path / f"{name}.pth", content), tmp_path / f"{name}.gguf", vocab=vocab, name="x")
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_first_block_value_residual_is_ignored(tmp_path: Path) -> None:
    state, vocab = tiny.weights("7"), tiny.write_vocab(tmp_path / "vocab.txt")
    extra = {f"blocks.0.att.{name}": torch.full((3,), float("nan")) for name in ("v0", "v1", "v2")}
    for name, content in (("without", state), ("with", state | extra)):
        convert(tiny.save(tmp_path / f"{name}.pth", content), tmp_path / f"{name}.gguf", vocab=vocab, name="x")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


def test_a_single_block_of_version_7_has_all_keys(tmp_path: Path) -> None:
    assert (
        tiny.fields(tiny.converted(tmp_path, layers=1))["rwkv7.attention.value_residual_mix_lora_rank"]
        == tiny.RANKS_7["iclr"]
    )


def test_rescaling_can_be_left_out(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "6", layers=7)
    found = {}
    for every in (0, 3):
        target = tmp_path / f"{every}.gguf"
        convert(source, target, outtype="f32", vocab=vocab, rescale_every=every)
        assert tiny.fields(target)["rwkv6.rescale_every_n_layers"] == every
        tensors = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(target).tensors}
        found[every] = tensors["blk.6.channel_mix_value.weight"]
    assert torch.equal(found[0], tiny.weights("6", layers=7)["blocks.6.ffn.value.weight"])
    assert torch.equal(found[3], found[0] / 4)


def test_leftovers_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tiny.weights("7") | {
        "blocks.0.att.time_state": torch.ones(2, 64, 64),
        "blocks.0.att.time_shift.weight": torch.ones(0),
        "loss.scale": torch.ones(1),
    }
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    with caplog.at_level(logging.WARNING, "ggufy"):
        convert(source, tmp_path / "x.gguf", vocab=vocab)
    assert "att.time_state is a tuned state, not a weight: left out" in caplog.text
    assert "RWKV-7 has no tensors blocks.0.att.time_shift.weight, loss.scale: left out" in caplog.text
    assert len(caplog.records) == 2


def test_a_tensor_in_a_block_that_is_not_known_makes_it_another_model(tmp_path: Path) -> None:
    state = tiny.weights("7") | {"blocks.1.att.extra": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.extra belongs to no RWKV-7: .* a variety of RWKV"):
        convert(tiny.save(tmp_path / "x.pth", state), tmp_path / "x.gguf", vocab=tiny.write_vocab(tmp_path / "v.txt"))


def test_progress_counts_every_byte_of_the_weights(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7", width=512, ffn=2048)
    calls: list[tuple[int, int]] = []
    convert(source, tmp_path / "x.gguf", vocab=vocab, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert (
        {call[1] for call in calls} == {sum(t.n_bytes for t in GGUFReader(tmp_path / "x.gguf").tensors)} == {done[-1]}
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_grows_with_the_largest_tensor_not_with_the_file(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7", width=256, ffn=16384, layers=5)
    resident: list[int] = []

    def progress(done: int, total: int) -> None:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    convert(source, tmp_path / "x.gguf", outtype="f16", vocab=vocab, progress=progress)
    assert source.stat().st_size > 160e6
    assert max(resident) - resident[0] < 50e6


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb.weight": float("nan")}, r"emb\.weight holds NaN values"),
        ({"blocks.1.att.k_a": float("inf")}, r"blocks\.1\.att\.k_a holds infinite values"),
        ({"blocks.0.att.x_v": float("-inf")}, r"blocks\.0\.att\.x_v holds infinite values"),
        ({"blocks.1.ffn.key.weight": -65520.0}, r"blocks\.1\.ffn\.key\.weight holds 65520, .*F16.*--outtype bf16"),
    ],
)
def test_values_that_would_be_lost(tmp_path: Path, change: dict[str, float], message: str) -> None:
    state = tiny.weights("7")
    for name, value in change.items():
        state[name].flatten()[-1] = value
    source, vocab = tiny.save(tmp_path / "x.pth", state), tiny.write_vocab(tmp_path / "vocab.txt")
    target = tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    with pytest.raises(CheckpointError, match=message):
        convert(source, target, outtype="f16", vocab=vocab)
    assert not list(target.parent.iterdir())


def test_the_largest_values_that_fit(tmp_path: Path) -> None:
    state, vocab = tiny.weights("7"), tiny.write_vocab(tmp_path / "vocab.txt")
    state["emb.weight"][0, 0] = 65519.0  # Rounds to 65504, the largest F16.
    state["blocks.0.att.k_k"].flatten()[0] = 1e30  # F32 in the GGUF.
    source = tiny.save(tmp_path / "x.pth", state)
    convert(source, tmp_path / "x.gguf", outtype="f16", vocab=vocab)
    state["emb.weight"][0, 0] = 1e30
    convert(tiny.save(tmp_path / "y.pth", state), tmp_path / "y.gguf", outtype="bf16", vocab=vocab)
    state["emb.weight"][0, 0] = 3.4e38
    with pytest.raises(CheckpointError, match="too large for BF16: convert with --outtype f32"):
        convert(tiny.save(tmp_path / "z.pth", state), tmp_path / "z.gguf", outtype="bf16", vocab=vocab)


def test_nothing_is_left_after_a_cancel_and_an_older_file_stays(tmp_path: Path) -> None:
    source, vocab = tiny.checkpoint(tmp_path, "7")
    target = tmp_path / "out" / "x.gguf"
    target.parent.mkdir()
    target.write_bytes(b"older")

    def progress(done: int, total: int) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        convert(source, target, vocab=vocab, progress=progress)
    assert [path.name for path in target.parent.iterdir()] == ["x.gguf"]
    assert target.read_bytes() == b"older"
    assert torch.get_num_threads() == THREADS


def test_wrong_requests(tmp_path: Path) -> None:
    source, _ = tiny.checkpoint(tmp_path, "7")
    with pytest.raises(UsageError, match="unknown outtype 'f8': choose one of f16, bf16, f32"):
        convert(source, tmp_path / "x.gguf", outtype="f8")
    with pytest.raises(VocabError, match="has 320 rows, but the World vocabulary"):
        convert(source, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
