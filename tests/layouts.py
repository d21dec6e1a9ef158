"""The same RWKV in the names and layouts of others: from a state dict of BlinkDL's to theirs, and safetensors files.

Each function is written from what that family's own converter does (they are named in ggufy/models/names/), so that
the way back is checked against another's description of the way there.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import torch

State = dict[str, torch.Tensor]
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def save(path: Path, state: State) -> Path:
    """Writes a safetensors file."""
    path.write_bytes(packed(state))
    return path


def packed(state: State, *, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file, the largest types first and then by name, as the PyPI package orders them."""
    names = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    head: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    values, end = [], 0
    for name in names:
        raw = state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        entry = {"dtype": _DTYPES[state[name].dtype], "shape": list(state[name].shape)}
        head[name] = entry | {"data_offsets": [end, end + len(raw)]}
        values.append(raw)
        end += len(raw)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(values)


def save_shards(folder: Path, state: State, count: int) -> Path:
    """A model of several files; gives the path of its index."""
    names, places = list(state), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number::count]
        save(folder / file, {name: state[name] for name in part})
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    size = sum(tensor.nbytes for tensor in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return index


def plain(state: State) -> State:
    return dict(state)


def prefixed(prefix: str) -> Callable[[State], State]:
    """Before every name but the head's, as transformers' `Rwkv7ForCausalLM` and TRA have it."""
    return lambda state: {name if name == "head.weight" else prefix + name: one for name, one in state.items()}


def compiled(state: State) -> State:
    """As torch.compile leaves it, inside Lightning."""
    return {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}


def spelt_out(prefix: str, *, blocks: str = "blocks", norm: str = "blocks.0.pre_ln.") -> Callable[[State], State]:
    """Finch, SmerkyG's and chinoll's: attention, feed_forward, embeddings."""

    def export(state: State) -> State:
        made = {}
        for name, tensor in state.items():
            new = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
            new = new.replace("emb.", "embeddings.").replace("blocks.0.ln0.", norm)
            for letter, word in (("k", "key"), ("v", "value"), ("r", "receptance"), ("g", "gate")):
                new = re.sub(rf"\.time_mix_{letter}$", f".time_mix_{word}", new)
            new = re.sub(r"^blocks\.", f"{blocks}.", new)
            made[new if new == "head.weight" else prefix + new] = tensor
        return made

    return export


def web_rwkv(state: State) -> State:
    """F16; the last two dimensions of low-rank matrices are exchanged."""
    made = {}
    for name, tensor in state.items():
        new = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix").lower()
        last = new.rpartition(".")[2]
        if re.fullmatch(r"[wagv][12]|time_mix_w[12]|time_decay_w[12]|time_state", last):
            tensor = tensor.transpose(-1, -2)
        made[new] = tensor.half()
    return made


def fla_7(state: State) -> State:
    """flash-linear-attention's convert_from_rwkv7.py."""
    made = {}
    for name, tensor in state.items():
        new = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}.get(name, name)
        new = re.sub(r"^ln_out\.", "model.norm.", new)
        new = re.sub(r"^blocks\.(\d+)\.", r"model.layers.\1.", new)
        for ours, theirs in ((".ln0.", ".pre_norm."), (".ln1.", ".attn_norm."), (".ln2.", ".ffn_norm.")):
            new = new.replace(ours, theirs)
        for ours, theirs in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")):
            new = new.replace(f".att.{ours}.", f".attn.{theirs}_proj.")
        new = new.replace(".att.ln_x.", ".attn.g_norm.").replace(".att.", ".attn.")
        if low_rank := re.fullmatch(r"(.+\.attn\.)([wavg])([012])", new):
            part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[low_rank[3]]
            new = f"{low_rank[1]}{low_rank[2]}_lora.lora.{part}"
            tensor = tensor.reshape(-1) if low_rank[3] == "0" else tensor.t()
        elif re.search(r"\.(?:k_k|k_a|x_k)$", new) and ".x_" not in new.replace(".ffn.x_k", ""):
            tensor = tensor.reshape(-1)
        made[new] = tensor.contiguous()
    return made


def fla_7_fused(state: State) -> State:
    """As of early 2025: one `x_x`, and a value residual in block 0 that nobody reads."""
    made = fla_7(state)
    for layer in {name.split(".")[2] for name in made if name.startswith("model.layers.")}:
        stem = f"model.layers.{layer}.attn.x_"
        made[f"{stem}x"] = torch.cat([made.pop(stem + letter).reshape(1, -1) for letter in "rwkvag"])
    width = state["emb.weight"].shape[1]
    made["model.layers.0.attn.v_lora.lora.0.weight"] = torch.full((8, width), 9.0)
    made["model.layers.0.attn.v_lora.lora.2.weight"] = torch.full((width, 8), 9.0)
    made["model.layers.0.attn.v_lora.lora.2.bias"] = torch.full((width,), 9.0)
    return made


def fla_6(state: State) -> State:
    """flash-linear-attention's convert_from_rwkv6.py: its order is r w k v g, the source's w k v r g."""
    ours, theirs = "wkvrg", "rwkvg"
    made: State = {}
    words = {"receptance.weight": "r_proj.linear.weight", "key.weight": "k_proj.linear.weight"}
    words |= {"value.weight": "v_proj.linear.weight", "gate.weight": "g_proj.linear.weight"}
    words |= {"output.weight": "o_proj.weight", "time_faaaa": "bonus", "ln_x.weight": "g_norm.weight"}
    words |= {"ln_x.bias": "g_norm.bias"}
    ffn = {"key.weight": "key.linear.weight", "receptance.weight": "receptance.linear.weight"}
    ffn |= {"time_maa_k": "key.mu", "time_maa_r": "receptance.mu", "value.weight": "value.weight"}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(att|ffn)\.(.+)", name)
        if match is None:
            outer = fla_7({name: tensor})
            made |= outer
            continue
        stem = f"model.layers.{match[1]}."
        if match[2] == "ffn":
            made[f"{stem}ffn.{ffn[match[3]]}"] = tensor.reshape(-1) if "maa" in name else tensor
        elif match[3] in words:
            made[f"{stem}attn.{words[match[3]]}"] = tensor
        elif match[3] == "time_maa_x":
            made[f"{stem}attn.x_proj.0.mu"] = tensor.reshape(-1)
        elif match[3] == "time_maa_w1":
            groups = dict(zip(ours, tensor.t().chunk(5, 0), strict=True))  # [R, C] each
            made[f"{stem}attn.x_proj.0.linear.weight"] = torch.cat([groups[letter] for letter in theirs])
        elif match[3] == "time_maa_w2":
            groups = {letter: tensor[number].t() for number, letter in enumerate(ours)}  # [C, R] each
            made[f"{stem}attn.x_proj.2.weight"] = torch.cat([groups[letter] for letter in theirs], 1)
        elif match[3] == "time_maa_r":
            made[f"{stem}attn.x_bias"] = torch.stack(
                [state[f"blocks.{match[1]}.att.time_maa_{letter}"].reshape(-1) for letter in theirs]
            )
        elif match[3] == "time_decay":
            made[f"{stem}attn.w_proj.linear.lora.2.bias"] = tensor.reshape(-1)
        elif match[3] in ("time_decay_w1", "time_decay_w2"):
            made[f"{stem}attn.w_proj.linear.lora.{'0' if name.endswith('1') else '2'}.weight"] = tensor.t()
    return made


def rwkv_rs(state: State) -> State:
    """rwkv-rs since August 2026: nothing turned, ones squeezed, block 0 without v0, v1, v2."""
    made = {}
    words = {"emb.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    for name, tensor in state.items():
        if re.fullmatch(r"blocks\.0\.att\.v[012]", name):
            continue
        new = words.get(name, name).replace("blocks.0.ln0.", "model.embedding_norm.").replace("ln_out.", "model.norm.")
        new = re.sub(r"^blocks\.", "model.layers.", new).replace(".ln1.", ".input_layernorm.")
        new = new.replace(".ln2.", ".post_attention_layernorm.").replace(".att.ln_x.", ".att.g_norm.")
        for word in ("receptance", "key", "value", "output"):
            new = new.replace(f".att.{word}.weight", f".att.{word[0]}_proj.weight")
        made[new.replace(".att.", ".linear_attn.").replace(".ffn.", ".mlp.")] = tensor.squeeze()
    return made


#: Every layout, its RWKV, and what `inspect` calls it.
LAYOUTS: dict[str, tuple[str, Callable[[State], State], str]] = {
    "plain": ("7", plain, "BlinkDL"),
    "plain 6": ("6", plain, "BlinkDL"),
    "compiled": ("7", compiled, "BlinkDL"),
    "transformers": ("7", prefixed("rwkv7."), "BlinkDL"),
    "rwkv-rs, older": ("7", prefixed("model."), "BlinkDL"),
    "embeddings": ("7", lambda s: {n.replace("model.emb.", "model.embeddings."): t
                                   for n, t in prefixed("model.")(s).items()}, "BlinkDL"),
    "smerkyg": ("7", spelt_out("model.", norm="pre_ln."), "Hugging Face (attention, feed_forward)"),
    "mollysama": ("7", spelt_out("model.", blocks="layers"), "Hugging Face (attention, feed_forward)"),
    "chinoll": ("7", spelt_out("rwkv7."), "Hugging Face (attention, feed_forward)"),
    "finch": ("6", spelt_out("rwkv."), "Hugging Face (attention, feed_forward)"),
    "web-rwkv 7": ("7", web_rwkv, "web-rwkv"),
    "web-rwkv 6": ("6", web_rwkv, "web-rwkv"),
    "fla 7": ("7", fla_7, "fla RWKV-7"),
    "fla 7 fused": ("7", fla_7_fused, "fla RWKV-7"),
    "fla 6": ("6", fla_6, "fla RWKV-6"),
    "rwkv-rs": ("7", rwkv_rs, "rwkv-rs (linear_attn)"),
}  # fmt: skip
