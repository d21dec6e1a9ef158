"""A tiny RWKV-7 that says one thing, whatever it is asked: each token is followed by the next one of a chain.

Its blocks add nothing to the embedding, so the head alone decides: the row of a token looks for the token before it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ggufy.models.convert import convert
from tests import tiny

# Two paragraphs. The second ends with a full-width stop, so that another token than the blank line's comes before the
# next question, which the model goes on to invent, for ever.
REPLY = "One.\n\nTwo。"
_CHAIN = [b":", b" One.", b"\n\n", b"Two", "。\n".encode(), b"\n", b"User", b":"]
_SINGLES = [bytes([byte]) for byte in range(256)]
_TOKENS = [*_SINGLES, b"Assistant", *(token for token in _CHAIN if token not in _SINGLES)]
BLANK_LINE = 1 + _TOKENS.index(b"\n\n")  # its id


def checkpoint(folder: Path) -> tuple[Path, Path]:
    """Writes the checkpoint and its vocabulary; gives both paths."""
    width, rows = 64, len(_TOKENS) + 1
    state = tiny.weights("7", width=width, layers=1, vocab=rows)
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight", "head.weight"):
        state[name].zero_()
    for name in ("blocks.0.ln0", "ln_out"):
        state[f"{name}.weight"].fill_(1.0)
        state[f"{name}.bias"].zero_()
    for place, (token, following) in enumerate(zip(_CHAIN, _CHAIN[1:], strict=False)):
        one = torch.nn.functional.one_hot(torch.tensor(place), width).float()
        state["emb.weight"][1 + _TOKENS.index(token)] = one
        state["head.weight"][1 + _TOKENS.index(following)] += one
    return tiny.save(folder / "scripted.pth", state), tiny.write_vocab(folder / "scripted-vocab.txt", _TOKENS)


def converted(folder: Path) -> Path:
    """Writes its GGUF."""
    source, vocab = checkpoint(folder)
    target = folder / "scripted-F32.gguf"
    convert(source, target, outtype="f32", vocab=vocab)
    return target
