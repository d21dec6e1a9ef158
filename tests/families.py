"""Tiny random GGUFs of transformers that llama.cpp loads and runs, of every family that AWQ's scales are folded into.

Their vocabulary is that of the bytes. Weights are large enough that the output depends on every one of them, and norms
far enough from 1 that one that was left out shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

WIDTH, INNER, HEADS, VALUE_HEADS, SIZE, EXPERTS = 64, 96, 4, 2, 32, 3  # heads of 32: wider than WIDTH together
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "mixtral")
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # llama.cpp's kinds of tokens


def make(path: Path, family: str, *, layers: int = 2, dtype: type = np.float32) -> Path:
    """A GGUF of one of `FAMILIES`; its matrices are of `dtype`."""
    random = np.random.default_rng(7)
    writer = GGUFWriter(path, "llama" if family == "mixtral" else family)
    _metadata(writer, family, layers)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            norm = "norm" in name
            writer.add_tensor(name, np.exp(0.5 * values) if norm else values * np.float32(0.3))
        else:
            # Channels of very different sizes, as trained models have them.
            spread = np.exp(random.standard_normal(shape[-1])).astype(np.float32)
            writer.add_tensor(name, (values * spread * np.float32(shape[-1] ** -0.5)).astype(dtype))

    add("token_embd.weight", 259, WIDTH)
    add("output_norm.weight", WIDTH)
    add("output.weight", 259, WIDTH)
    for block in range(layers):
        for name, shape in _block(family).items():
            add(f"blk.{block}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(writer: GGUFWriter, family: str, layers: int) -> None:
    heads, size = HEADS, WIDTH // HEADS if family in ("qwen2", "phi3") else SIZE
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(VALUE_HEADS)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size)
    if family == "mixtral":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
    if family in ("gemma3", "phi3"):
        writer.add_sliding_window(128)
    writer.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _block(family: str) -> dict[str, tuple[int, ...]]:
    """Names within a block, and shapes as numpy has them."""
    size = WIDTH // HEADS if family in ("qwen2", "phi3") else SIZE
    queries, values = HEADS * size, VALUE_HEADS * size
    block: dict[str, tuple[int, ...]] = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
    if family == "phi3":
        block |= {"attn_qkv.weight": (queries + 2 * values, WIDTH), "ffn_up.weight": (2 * INNER, WIDTH)}
    else:
        rows = {"q": queries, "k": values, "v": values}
        block |= {f"attn_{name}.weight": (count, WIDTH) for name, count in rows.items()}
        if family == "qwen2":
            block |= {f"attn_{name}.bias": (count,) for name, count in rows.items()}
    block["attn_output.weight"] = (WIDTH, queries)
    if family in ("qwen3", "gemma3"):
        block |= {"attn_q_norm.weight": (size,), "attn_k_norm.weight": (size,)}
    if family == "gemma3":
        block |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    if family == "mixtral":
        block["ffn_gate_inp.weight"] = (EXPERTS, WIDTH)
        block |= {f"ffn_{name}_exps.weight": (EXPERTS, INNER, WIDTH) for name in ("gate", "up")}
        return block | {"ffn_down_exps.weight": (EXPERTS, WIDTH, INNER)}
    if family != "phi3":
        block |= {f"ffn_{name}.weight": (INNER, WIDTH) for name in ("gate", "up")}
    if family == "llama":
        block |= {"ffn_gate.bias": (INNER,), "ffn_up.bias": (INNER,), "ffn_down.bias": (WIDTH,)}
        block |= {"attn_output.bias": (WIDTH,)}
    return block | {"ffn_down.weight": (WIDTH, INNER)}
