"""Tiny checkpoints of every RWKV and vocabularies for the tests, in BlinkDL's names and shapes.

All ranks differ from each other, so that a mix-up shows; weights are random, but large enough that the output depends
on every one of them: the logits spread over several nats, as a trained model's do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFReader

from ggufy.models.architecture import Hyperparameters
from ggufy.models.convert import convert
from ggufy.models.registry import named

HEAD_SIZE = 64
VOCAB_ROWS = 320
RANKS_6 = {"mix": 24, "decay": 40}
RANKS_7 = {"decay": 24, "iclr": 40, "value": 16, "gate": 56}
LARGE_RANKS_6 = {"mix": 32, "decay": 64}
LARGE_RANKS_7 = {"decay": 96, "iclr": 96, "value": 64, "gate": 256}
_WORDS = [
    b"\n\n", b"\n", b"  ", b" the", b" of", b" and", b"ing", b"User", b"Assistant", b"System", b": ", b"e ", b"th",
    b"it's", b'say "', b"'\"", b"\\n", b"\\", b"\t\t", b"\r\n", b"\x00\xff", b"\xe4\xb8", "中文".encode(),
    "é".encode(),
]  # fmt: skip


def vocab_tokens() -> list[bytes]:
    """Every single byte and some longer tokens, ids from 1; among them quotes, backslashes and half characters."""
    singles = [bytes([byte]) for byte in range(256)]
    return singles + [word for word in _WORDS if word not in singles]


def write_vocab(path: Path, tokens: list[bytes] | None = None) -> Path:
    """Writes tokens in RWKV's vocabulary format, one `id repr length` a line."""
    lines = []
    for number, token in enumerate(vocab_tokens() if tokens is None else tokens, start=1):
        try:
            text = repr(token.decode("utf-8"))
        except UnicodeDecodeError:
            text = repr(token)
        lines.append(f"{number} {text} {len(token)}\n")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def weights(
    version: str,
    *,
    width: int = 128,
    layers: int = 2,
    ffn: int | None = None,
    vocab: int = VOCAB_ROWS,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The state dict of a random checkpoint; `version` is "4", "5", "5.1", "5.2", "6" or "7" as the package `rwkv`
    counts, `ffn` is 3 x width unless given."""
    if version[0] in "45":
        state = weights("6", width=width, layers=layers, ffn=ffn, vocab=vocab, dtype=dtype, seed=seed)
        older = _as_5(state, one_a_head=version in ("5", "5.1"))
        return older if "." in version else _without_gate(older, head_norm=version == "5")
    random = torch.Generator().manual_seed(seed)
    ffn = 3 * width if ffn is None else ffn

    def normal(*shape: int, std: float = 0.5, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(shape, generator=random) * std + mean).to(dtype)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return normal(rows, columns, std=columns**-0.5)

    state = {"emb.weight": normal(vocab, width)}
    for name in ("blocks.0.ln0", "ln_out"):
        state |= {f"{name}.weight": normal(width, std=0.1, mean=1), f"{name}.bias": normal(width, std=0.1)}
    block = _block_6 if version == "6" else _block_7
    for i in range(layers):
        for name in ("ln1", "ln2", "att.ln_x"):
            state[f"blocks.{i}.{name}.weight"] = normal(width, std=0.1, mean=1)
            state[f"blocks.{i}.{name}.bias"] = normal(width, std=0.1)
        for name in ("receptance", "key", "value", "output"):
            state[f"blocks.{i}.att.{name}.weight"] = matrix(width, width)
        state[f"blocks.{i}.ffn.key.weight"] = matrix(ffn, width)
        state[f"blocks.{i}.ffn.value.weight"] = matrix(width, ffn)
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in block(width, normal, matrix).items()}
        if version == "7" and i == 0:
            for name in ("v0", "v1", "v2"):
                del state[f"blocks.0.att.{name}"]
    state["head.weight"] = matrix(vocab, width) * 2
    return state


def hyperparameters(version: str, **sizes: int) -> Hyperparameters:
    """Of a model with heads of 64 values: `layers`, and C, V, F and the ranks, unless as below."""
    architecture = named(f"rwkv{version}")
    assert architecture is not None
    layers = sizes.pop("layers")
    usual = {"C": 2048, "V": 65536, "N": HEAD_SIZE} | (LARGE_RANKS_6 if version == "6" else LARGE_RANKS_7) | sizes
    derived = {"H": usual["C"] // HEAD_SIZE, "5mix": 5 * usual.get("mix", 0)}
    return Hyperparameters(architecture, layers, usual | derived)


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Saves a state dict as a .pth."""
    torch.save(state, path)
    return path


def checkpoint(folder: Path, version: str, **options: object) -> tuple[Path, Path]:
    """Writes a checkpoint and its vocabulary; gives both paths. Options are those of `weights`."""
    state = weights(version, **options)  # type: ignore[arg-type]
    return save(folder / f"tiny-v{version}.pth", state), write_vocab(folder / "vocab.txt")


def converted(folder: Path, version: str = "7", *, outtype: str = "f32", **options: object) -> Path:
    """Writes a checkpoint and its GGUF; gives the latter's path. The other options are those of `weights`."""
    source, vocab = checkpoint(folder, version, **options)
    target = folder / "made.gguf"
    convert(source, target, outtype=outtype, vocab=vocab)
    return target


def fields(path: Path) -> dict[str, object]:
    """All metadata of a GGUF."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def _block_6(width, normal, matrix) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    mix, decay = RANKS_6["mix"], RANKS_6["decay"]
    block = {f"att.time_maa_{name}": normal(1, 1, width, std=0.3, mean=0.5) for name in "xwkvrg"}
    return block | {
        "att.time_maa_w1": matrix(width, 5 * mix),
        "att.time_maa_w2": normal(5, mix, width, std=mix**-0.5 / 2),
        "att.time_decay": normal(1, 1, width, std=1.5, mean=-2),
        "att.time_decay_w1": matrix(width, decay),
        "att.time_decay_w2": normal(decay, width, std=decay**-0.5),
        "att.time_faaaa": normal(width // HEAD_SIZE, HEAD_SIZE),
        "att.gate.weight": matrix(width, width),
        "ffn.time_maa_k": normal(1, 1, width, std=0.3, mean=0.5),
        "ffn.time_maa_r": normal(1, 1, width, std=0.3, mean=0.5),
        "ffn.receptance.weight": matrix(width, width),
    }


def _as_5(state: dict[str, torch.Tensor], *, one_a_head: bool) -> dict[str, torch.Tensor]:
    """An RWKV-5 of the matrices of an RWKV-6, with a decay and a bonus for each channel or for each head."""
    older: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((".time_faaaa", ".time_decay")):
            heads = tensor.reshape(-1, HEAD_SIZE).contiguous()
            new = name.replace("time_faaaa", "time_first") if one_a_head else name
            older[new] = heads[:, 0].clone() if one_a_head else heads
        elif ".time_maa_" in name and name[-1] in "kvrg":
            older[name.replace("time_maa", "time_mix")] = tensor
        elif ".time_maa_" not in name and "_decay_w" not in name:
            older[name] = tensor
    return older


def _without_gate(state: dict[str, torch.Tensor], *, head_norm: bool) -> dict[str, torch.Tensor]:
    """An RWKV-5 without a gate, or an RWKV-4, whose decay and bonus are those of each channel."""
    older: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".ln_x." in name and not head_norm:
            continue
        if name.endswith((".time_faaaa", ".time_decay")) and not head_norm:
            older[name.replace("time_faaaa", "time_first")] = tensor.reshape(-1).clone()
        elif ".gate." not in name and not name.endswith(".att.time_mix_g"):
            older[name] = tensor
    return older


def _block_7(width, normal, matrix) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    block = {f"att.x_{name}": normal(1, 1, width, std=0.3, mean=0.5) for name in "rwkvag"}
    for letter, rank in zip("wavg", RANKS_7.values(), strict=True):
        if letter != "g":
            block[f"att.{letter}0"] = normal(1, 1, width, std=1)
        block[f"att.{letter}1"] = normal(width, rank, std=width**-0.5)
        block[f"att.{letter}2"] = normal(rank, width, std=rank**-0.5)
    return block | {
        "att.k_k": normal(1, 1, width, std=0.3, mean=0.8),
        "att.k_a": normal(1, 1, width, std=0.3, mean=1),
        "att.r_k": normal(width // HEAD_SIZE, HEAD_SIZE),
        "ffn.x_k": normal(1, 1, width, std=0.3, mean=0.5),
    }
