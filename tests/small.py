"""Small base GGUFs of other kinds than RWKV, and imatrix files, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from ggufy.formats.gguf import read_head

EXPERTS = 3


def mixture(path: Path, *, width: int = 96, ffn: int = 256, vocab: int = 96, runs: bool = False) -> Path:
    """A Llama with experts (3-D tensors), whose width is no multiple of 256 and whose inner width is one; if it
    `runs`, its tokens are bytes."""
    random = np.random.default_rng(3)
    writer = GGUFWriter(path, "llama")
    writer.add_name("mixture 混合")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    if runs:
        vocab = 259
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
        writer.add_token_scores([0.0] * vocab)
        writer.add_token_types([2, 3, 3, *[6] * 256])  # unknown, control, byte
    else:
        writer.add_array("tokenizer.ggml.tokens", [f"t{number}" for number in range(vocab)])

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32) * np.float32(0.05)
        writer.add_tensor(f"{name}.weight", values if len(shape) == 1 else values.astype(np.float16))

    add("output", vocab, width)
    add("token_embd", vocab, width)
    add("output_norm", width)
    for layer in (1, 0):  # not in their order
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            add(f"{block}.{norm}", width)
        for name, rows in (("attn_q", width), ("attn_k", width // 2), ("attn_v", width // 2), ("attn_output", width)):
            add(f"{block}.{name}", rows, width)
        add(f"{block}.ffn_gate_inp", EXPERTS, width)
        add(f"{block}.ffn_gate_exps", EXPERTS, ffn, width)
        add(f"{block}.ffn_up_exps", EXPERTS, ffn, width)
        add(f"{block}.ffn_down_exps", EXPERTS, width, ffn)
    return _written(writer, path)


def dense(path: Path, *, width: int, ffn: int, dtype: type = np.float16) -> Path:
    """A Llama of one block and 320 tokens, its embedding the head as well."""
    random = np.random.default_rng(6)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (320, width), "output_norm": (width,)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {f"blk.0.attn_{x}": (width, width) for x in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (ffn, width), "blk.0.ffn_up": (ffn, width), "blk.0.ffn_down": (width, ffn)}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32) * np.float32(0.05)
        writer.add_tensor(f"{name}.weight", values if len(shape) == 1 else values.astype(dtype))
    return _written(writer, path)


def matrices(path: Path, shapes: dict[str, tuple[int, ...]], *, scale: float = 1.0, dtype: type = np.float32) -> Path:
    """A GGUF with random tensors of these names and shapes (slowest dimension first)."""
    random = np.random.default_rng(4)
    writer = GGUFWriter(path, "llama")
    for name, shape in shapes.items():
        writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(dtype))
    return _written(writer, path)


def imatrix(path: Path, base: Path, *, without: Iterable[str] = (), seed: int = 5, **values: float) -> Path:
    """An imatrix for every matrix of a base but its embedding, as llama-imatrix writes it; in `values` one tensor, its
    dots as underscores, is given one value everywhere. One expert of every four saw no token."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "none")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt", "more.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, tensor in read_head(base).tensors.items():
        if len(tensor.shape) < 2 or name in ("token_embd.weight", *without):
            continue
        columns, matrices = tensor.shape[0], tensor.shape[2] if len(tensor.shape) > 2 else 1
        sums = random.chisquare(1, (matrices, columns)).astype(np.float32) * np.float32(3584)
        if (value := values.get(name.replace(".", "_"))) is not None:
            sums[:] = value
        counts = np.full((matrices, 1), 3584, dtype=np.float32)
        counts[2::4] = 0
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    return _written(writer, path)


def _written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
