"""Small models with random weights, as the package transformers saves them, and what it predicts with them. A program
of its own, since only the converter's packages have transformers:

    python -m tests.transformers_models FOLDER
    python -m tests.transformers_models FOLDER heads

Each model lies in FOLDER/<family>, with a tokenizer trained here; FOLDER/<family>.npy has the logits of TOKENS. The
second line makes FOLDER/qwen3next alone, with a head for several tokens at once, and no tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "mixtral")
VISION = "gemma3-vision"
VOCAB, CONTEXT, BOS, EOS = 512, 128, 1, 2
HEADS_VOCAB = 50277  # that of GPT-NeoX
TOKENS = [BOS, *((7 * i * i + 13 * i) % (VOCAB - 3) + 3 for i in range(23))]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.2,  # so that predictions differ from token to token
}


def configs() -> dict[str, Any]:
    """By family."""
    import transformers as hf

    gemma = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}
    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**_SIZES, **gemma).to_dict(),
        vision_config=hf.SiglipVisionConfig(**eyes, image_size=56, patch_size=14).to_dict(),
        mm_tokens_per_image=4,
    )
    return {
        "llama": hf.LlamaConfig(**_SIZES),
        "qwen2": hf.Qwen2Config(**_SIZES, tie_word_embeddings=True),
        "qwen3": hf.Qwen3Config(**_SIZES, head_dim=32),
        "gemma3": hf.Gemma3TextConfig(**_SIZES, **gemma),
        "phi3": hf.Phi3Config(
            **_SIZES, pad_token_id=0, sliding_window=CONTEXT, original_max_position_embeddings=CONTEXT
        ),
        "mixtral": hf.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
        VISION: seen,
    }


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece model of English lines, and a chat template."""
    import sentencepiece

    text = Path(__file__).parent.parent / "ggufy/demo/calibration.txt"
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.isascii()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:2000]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["<|endoftext|>"],  # llama.cpp wants it of whatever is called Phi-3
        num_threads=1,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    told = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    told |= {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def _name_as_published(path: Path) -> None:
    """Transformers 5 leaves a word out that all published models have, and the converter expects."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for name, tensor in load_file(path).items():
        whole = "vision_model." in name
        tensors[name if whole else name.replace("vision_tower.", "vision_tower.vision_model.")] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def write_models(out: Path) -> None:
    import torch
    import transformers as hf

    first = out / "llama"
    for family, config in configs().items():
        torch.manual_seed(len(family))
        kind = hf.Gemma3ForConditionalGeneration if family == VISION else hf.AutoModelForCausalLM
        model = (kind(config) if family == VISION else kind.from_config(config, dtype=torch.float32)).eval()
        model.save_pretrained(out / family, max_shard_size="200KB" if family == "qwen3" else "5GB")
        if family == "llama":
            write_tokenizer(first)
        for name in ("tokenizer.model", "tokenizer_config.json"):
            (out / family / name).write_bytes((first / name).read_bytes())
        with torch.inference_mode():
            np.save(out / f"{family}.npy", model(torch.tensor([TOKENS])).logits[0].float().numpy())
    _name_as_published(out / VISION / "model.safetensors")
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 56, "width": 56}}
    (out / VISION / "preprocessor_config.json").write_text(json.dumps(prepared))


def write_heads(out: Path) -> None:
    """A Qwen3-Next, whose head (MTP) transformers leaves out: made of the shapes of its last block."""
    import torch
    import transformers as hf
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    experts |= {"shared_expert_intermediate_size": 64}
    sizes = _SIZES | {"vocab_size": HEADS_VOCAB, "num_hidden_layers": 4, "head_dim": 32}
    model = hf.AutoModelForCausalLM.from_config(
        hf.Qwen3NextConfig(**sizes, **linear, **experts), dtype=torch.float32
    ).eval()
    folder = out / "qwen3next"
    model.save_pretrained(folder)
    tensors, head = load_file(folder / "model.safetensors"), {}
    for name, tensor in tensors.items():
        if name.startswith("model.layers.3."):
            values = torch.randn_like(tensor) * 0.2 if tensor.dim() > 1 else tensor.clone()
            head[f"mtp.layers.0.{name.removeprefix('model.layers.3.')}"] = values
    head["mtp.fc.weight"] = torch.randn(64, 128) * 0.2
    head |= {f"mtp.{name}.weight": torch.zeros(64) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    with torch.inference_mode():
        np.save(out / "qwen3next.npy", model(torch.tensor([TOKENS])).logits[0].float().numpy())


if __name__ == "__main__":
    (write_heads if "heads" in sys.argv[2:] else write_models)(Path(sys.argv[1]))
