"""Adapters as trainers save them, of random numbers: `.pth` files, and folders by Hugging Face's PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

LAYERS = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 12,
    "bias": "none",
    "use_rslora": False,
    "init_lora_weights": True,
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Of a size that shows in what it is merged into."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.1


def lora(state: Mapping[str, torch.Tensor], *, r: int = 4, seed: int = 0, end: str = "") -> dict[str, torch.Tensor]:
    """A and B for every large matrix of a model's blocks; `end` follows their names."""
    found = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if layer.endswith(LAYERS):
            out, columns = tensor.shape
            found[f"{layer}.lora_A{end}"] = random(r, columns, seed=seed)
            found[f"{layer}.lora_B{end}"] = random(out, r, seed=seed + 1)
    return found


def merged(
    state: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """The model as torch merges a LoRA into it, in F32."""
    found = dict(state)
    for name, a in adapter.items():
        if name.endswith("lora_A"):
            layer, b = name.removesuffix(".lora_A"), adapter[f"{name[:-1]}B"]
            found[f"{layer}.weight"] = state[f"{layer}.weight"].float() + (b.float() @ a.float()) * scale
        elif "lora_" not in name:
            found[name] = adapter[name]
    return found


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A file of F32 tensors (https://github.com/huggingface/safetensors, "Format")."""
    listed, values = {}, b""
    for name, tensor in tensors.items():
        data = tensor.float().contiguous().numpy().tobytes()
        offsets = [len(values), len(values) + len(data)]
        listed[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        values += data
    head = json.dumps(listed).encode()
    return len(head).to_bytes(8, "little") + head + values


def save_folder(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """As PEFT saves it; gives the folder."""
    folder.mkdir(parents=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(named))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder
