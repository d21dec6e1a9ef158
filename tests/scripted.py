"""Tiny RWKVs that say one thing, whatever they are asked: each token is followed by the next one of a chain.

Its blocks add nothing to the embedding, so the head alone decides: the row of a token looks for the token before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ggufy.formats.checkpoint import open_checkpoint
from ggufy.models.convert import convert
from ggufy.models.layouts import origins_of
from ggufy.models.vocab import load_vocab, world_vocab_path
from ggufy.rwkvcpp.convert import convert_tensors
from tests import tiny

# Two paragraphs. The second ends with a full-width stop, so that another token than the blank line's comes before the
# next question, which the model goes on to invent, for ever.
REPLY = "One.\n\nTwo。"
_CHAIN = [b":", b" One.", b"\n\n", b"Two", "。\n".encode(), b"\n", b"User", b":"]
_SINGLES = [bytes([byte]) for byte in range(256)]

# What one of the newer models says, which thinks, ends its turn by a token, and would go on if nobody heeded that.
THOUGHT, ANSWER = "Hmm.", "Hello!"
_FLOWER = "✿".encode()
_THINKING = [b"<think>", b" Hmm.", b"</think>", b"\n", b"Hello!", _FLOWER, b" Bot", b" again"]


def _tokens(chain: list[bytes]) -> list[bytes]:
    words = [b"User", b"Assistant", b"Bot", _FLOWER, *chain]
    return [*_SINGLES, *dict.fromkeys(word for word in words if word not in _SINGLES)]


BLANK_LINE = 1 + _tokens(_CHAIN).index(b"\n\n")  # its id


def checkpoint(
    folder: Path,
    chain: list[bytes] = _CHAIN,
    name: str = "scripted",
    version: str = "7",
    layers: int = 1,
    sure: float = 1.0,
) -> tuple[Path, Path]:
    """Writes the checkpoint and its vocabulary; gives both paths. `version` is as for tiny.weights; more `layers` are
    slower, and what is `sure` is said whatever penalties and chance say."""
    tokens = [b"", *_tokens(chain)]
    source = tiny.save(folder / f"{name}.pth", _weights(chain, tokens, len(tokens), version, layers, sure))
    return source, tiny.write_vocab(folder / "scripted-vocab.txt", tokens[1:])


def _weights(
    chain: list[bytes], tokens: Sequence[bytes], rows: int, version: str = "7", layers: int = 1, sure: float = 1.0
) -> dict[str, torch.Tensor]:
    width = 64
    state = tiny.weights(version, width=width, layers=layers, vocab=rows)
    silent = [f"blocks.{n}.{part}.weight" for n in range(layers) for part in ("att.output", "ffn.value")]
    for part in (*silent, "head.weight"):
        state[part].zero_()
    for part in ("blocks.0.ln0", "ln_out"):
        state[f"{part}.weight"].fill_(1.0)
        state[f"{part}.bias"].zero_()
    for place, (token, following) in enumerate(zip(chain, chain[1:], strict=False)):
        one = torch.nn.functional.one_hot(torch.tensor(place), width).float()
        state["emb.weight"][tokens.index(token)] = one
        state["head.weight"][tokens.index(following)] += sure * one
    return state


NAME = "rwkv7-g1k-0.1b-20260930-ctx4096"


def thinker(folder: Path) -> tuple[Path, Path]:
    """The same of one that thinks."""
    return checkpoint(folder, _THINKING, NAME, sure=50.0)


def ponderer(folder: Path) -> tuple[Path, Path]:
    """The same of one that comes to no end with it, and is not quick about it."""
    chain = [b"<think>", b" Hmm.", b" Well.", b" Hmm."]
    return checkpoint(folder, chain, "rwkv7-g1j-0.1b-20260831-ctx4096", layers=40, sure=50.0)


def worldly(folder: Path) -> Path:
    """Writes the checkpoint of one with World's vocabulary, which says Hi, whatever it thought."""
    world = load_vocab(world_vocab_path())
    chain = [b">", b"Hi", _FLOWER, b"\n", b"User", b"?"]
    return tiny.save(folder / f"{NAME}.pth", _weights(chain, world, 65536))


def converted(folder: Path) -> Path:
    """Writes the GGUF of the first."""
    source, vocab = checkpoint(folder)
    target = folder / "scripted-F32.gguf"
    convert(source, target, outtype="f32", vocab=vocab)
    return target


def in_rwkvcpp(folder: Path, version: str, chain: list[bytes] = _CHAIN) -> Path:
    """Writes the file of rwkv.cpp of the first, in this version of RWKV, with its vocabulary beside it."""
    tokens = [b"", *_tokens(chain)]
    tiny.write_vocab(folder / "scripted-vocab.txt", tokens[1:])
    return converted_bin(folder, _weights(chain, tokens, len(tokens), version))


def converted_bin(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Writes a checkpoint and its FP32 file of rwkv.cpp; gives the latter's path."""
    source, target = tiny.save(folder / "made.pth", state), folder / "made-FP32.bin"
    with open_checkpoint(source) as file:
        convert_tensors(file, origins_of(file.shapes), target, type_name="FP32")
    return target


def converted_thinker(folder: Path, chat_format: str = "g1h") -> Path:
    """Writes the GGUF of the one that thinks."""
    source, vocab = thinker(folder)
    target = folder / f"{source.stem}-F32.gguf"
    convert(source, target, outtype="f32", vocab=vocab, chat_format=chat_format)
    return target
