"""Trains the demo checkpoint: an RWKV-7 (x070) of 7 million parameters, from text that every Python carries.

    python -m tools.train_demo                     # writes the checkpoint, its vocab and its facts to ggufy/demo/
    python -m tools.train_demo --version 6 --steps 900 --out build/rwkv6    # an RWKV-6 (x060), for bench/mixes.py
    python -m tools.train_demo --measure           # only measures the held-out loss again, and records it

The text is cut by ggufy.texts.text: only its "train" part is read here, so the evaluation and calibration texts stay
unseen. The vocabulary (4096 tokens: BPE merges from the same text, written in RWKV's vocab format and used by greedy
longest match, as RWKV does) is made first. The models are in tools/demo_models.py.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

# Threads that wait must sleep, not spin: on shared cores spinning made a step ten times slower. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.nn.functional as F
from torch import Tensor

from ggufy import demo
from ggufy.texts import text as demo_text
from tools.demo_models import VOCAB, model_of

CONTEXT = 256
DEMO_FOLDER = demo.FOLDER

GREETINGS = [
    ("hi", "Hello! How can I help you?"),
    ("Hello", "Hello! What would you like to know about Python?"),
    ("Who are you?", "I am a very small RWKV model that has read the documentation of Python."),
    ("What can you do?", "I can say a few words about Python's functions and modules."),
    ("What is your name?", "I am the demo model of ggufy."),
    ("Thank you!", "You're welcome!"),
    ("Bye", "Goodbye!"),
    ("你好", "你好！我是一个很小的 RWKV 模型。"),
    ("你是谁？", "我是 ggufy 的演示模型。"),
    ("谢谢", "不客气！"),
]


# ---- text and vocabulary


def train_documents() -> tuple[list[str], list[str]]:
    """(prose, code): every document keeps only its "train" paragraphs; dialogues are added to the prose.

    Code blocks with docstring quotes or comments are left out: they would bring held-out prose back inside a block.
    """

    def kept(documents: Iterator[list[str]], unwanted: str = "$^") -> list[str]:
        texts = {}
        for paragraphs in documents:
            wanted = (p for p in paragraphs if not re.search(unwanted, p, re.MULTILINE))
            text = "\n\n".join(p for p in wanted if demo_text.part_of(p) == "train")
            if len(text) >= 40:
                texts[text] = None
        return list(texts)

    prose = kept(demo_text.prose_documents())
    code = kept(demo_text.code_documents(), unwanted="\"\"\"|'''|^ *#")
    rng = random.Random(7)
    return prose + dialogues(rng), code[::3]  # a third of the code is as many tokens as all the prose


def dialogues(rng: random.Random) -> list[str]:
    """User:/Assistant: turns, made of function names and the first sentence of what their docstrings say."""
    turns = [f"User: {q}\n\nAssistant: {a}\n\n" for q, a in GREETINGS for _ in range(30)]
    asks = ["What does {} do?", "Explain {}.", "What is {} for?", "Tell me about {}.", "How do I use {}?"]
    for source in demo_text._library_sources():
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            first = demo_text.split_paragraphs(ast.get_docstring(node) or "")[:1]
            if first and 15 < len(first[0]) < 300 and demo_text.part_of(first[0]) == "train":
                answer = " ".join(first[0].split())
                turns.append(f"User: {rng.choice(asks).format(node.name)}\n\nAssistant: {answer}\n\n")
    rng.shuffle(turns)
    return ["".join(turns[i : i + 4]) for i in range(0, len(turns), 4)]


def make_vocab(texts: list[str]) -> list[bytes]:
    """VOCAB - 1 distinct byte strings, ids 1..: all 256 bytes, some that chat needs, then BPE merges by frequency."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    unbyte = _bytelevel_to_byte()
    tokens = [bytes([b]) for b in range(256)]
    tokens += [b"\n\n", b"User:", b"Assistant:", b"System:"]
    known = set(tokens)
    for text, _ in by_id:
        token = bytes(unbyte[c] for c in text)
        if token not in known and len(tokens) < VOCAB - 1:
            known.add(token)
            tokens.append(token)
    return tokens


def _bytelevel_to_byte() -> dict[str, int]:
    """The printable stand-in characters of byte-level BPE: printable Latin-1 is itself, the rest starts at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def vocab_lines(tokens: list[bytes]) -> str:
    """RWKV's vocab file: `id repr(token) byte-length`, ids from 1; a token that is not UTF-8 is written as bytes."""
    lines = []
    for i, token in enumerate(tokens, start=1):
        try:
            shown = repr(token.decode())
        except UnicodeDecodeError:
            shown = repr(token)
        lines.append(f"{i} {shown} {len(token)}\n")
    return "".join(lines)


def encode(text: str, ids: dict[bytes, int], longest: int) -> list[int]:
    """Greedy longest match over bytes, RWKV's own rule."""
    data = text.encode()
    out = []
    at = 0
    while at < len(data):
        for length in range(min(longest, len(data) - at), 0, -1):
            token = ids.get(data[at : at + length])
            if token is not None:
                out.append(token)
                at += length
                break
    return out


# ---- training


def token_tensors(texts: list[str], ids: dict[bytes, int]) -> Tensor:
    longest = max(map(len, ids))
    stream: list[int] = []
    for text in texts:
        stream += [0, *encode(text, ids, longest)]
    return torch.tensor(stream, dtype=torch.int32)


def batches(prose: Tensor, code: Tensor, batch: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows, three quarters prose. Yields (input, target), each [batch, CONTEXT] int64."""
    while True:
        rows = []
        for i in range(batch):
            source = code if i % 4 == 3 else prose
            start = int(torch.randint(0, len(source) - CONTEXT - 1, (), generator=rng))
            rows.append(source[start : start + CONTEXT + 1].long())
        window = torch.stack(rows)
        yield window[:, :-1], window[:, 1:]


@torch.no_grad()
def heldout_loss(model: torch.nn.Module, tokens: Tensor) -> float:
    """Mean cross entropy (nats per token) over the evaluation text, in windows of CONTEXT."""
    count = (len(tokens) - 1) // CONTEXT
    total = 0.0
    for i in range(0, count, 16):
        rows = [tokens[j * CONTEXT : (j + 1) * CONTEXT + 1].long() for j in range(i, min(i + 16, count))]
        window = torch.stack(rows)
        logits = model(window[:, :-1])
        total += F.cross_entropy(logits.reshape(-1, VOCAB), window[:, 1:].reshape(-1), reduction="sum").item()
    return total / (count * CONTEXT)


def optimizer_for(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW: weight decay on matrices only; the decay base w0 learns twice as fast (BlinkDL's rule)."""
    fast, matrices, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("att.w0"):
            fast.append(parameter)
        elif name.endswith(".weight") and parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [
        {"params": fast, "scale": 2.0, "weight_decay": 0.0},
        {"params": matrices, "scale": 1.0, "weight_decay": 0.1},
        {"params": rest, "scale": 1.0, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), eps=1e-18)


def train(model: torch.nn.Module, data: Iterator[tuple[Tensor, Tensor]], steps: int, lr: float, *, bf16: bool) -> None:
    optimizer = optimizer_for(model, lr)
    started = time.monotonic()
    running = 0.0
    for step in range(1, steps + 1):
        warm = min(1.0, step / 40)
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * cosine * group["scale"]
        inputs, targets = next(data)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float().reshape(-1, VOCAB), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0 or step == 1:
            elapsed = time.monotonic() - started
            left = elapsed / step * (steps - step)
            print(f"step {step}/{steps}  loss {running:.3f}  {elapsed:.0f} s, {left:.0f} s left", flush=True)


def files_of(version: int, out: Path) -> tuple[Path, Path, Path]:
    """(checkpoint, vocabulary, facts)."""
    stem = demo.MODEL if version == 7 else "RWKV-x060-Demo-8M"
    return out / f"{stem}.pth", out / f"{stem}.vocab.txt", out / f"{stem}.json"


def save(
    model: torch.nn.Module, tokens: list[bytes], files: tuple[Path, Path, Path], facts: dict[str, object]
) -> None:
    checkpoint, vocab, about = files
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    torch.save(weights, checkpoint)
    vocab.write_text(vocab_lines(tokens), encoding="utf-8")
    facts["sha256"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    about.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def measure(version: int, files: tuple[Path, Path, Path]) -> None:
    """Records the held-out loss of a checkpoint, on today's evaluation text."""
    checkpoint, vocab, about = files
    weights = torch.load(checkpoint, weights_only=True)
    model = model_of(version)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    lines = vocab.read_text(encoding="utf-8").splitlines()
    tokens = [ast.literal_eval(line.split(" ", 1)[1].rsplit(" ", 1)[0]) for line in lines]
    ids = {t.encode() if isinstance(t, str) else t: i for i, t in enumerate(tokens, start=1)}
    evaluation = token_tensors([demo_text.part_text("evaluation")], ids)
    loss = heldout_loss(model, evaluation)
    print(f"held-out loss {loss:.4f} nats per token over {len(evaluation):,} tokens")
    facts = json.loads(about.read_text(encoding="utf-8"))
    facts |= {"heldout_loss": round(loss, 4), "heldout_tokens": len(evaluation)}
    about.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=int, choices=(6, 7), default=7, help="of RWKV")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens a step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="no bf16 matrix products: for CPUs without AVX512-BF16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help="train nothing, measure the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER)
    args = parser.parse_args()

    files = files_of(args.version, args.out)
    if args.measure:
        measure(args.version, files)
        return
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    prose_texts, code_texts = train_documents()
    tokens = make_vocab(prose_texts + code_texts[::2])
    ids = {token: i for i, token in enumerate(tokens, start=1)}
    prose, code = token_tensors(prose_texts, ids), token_tensors(code_texts, ids)
    evaluation = token_tensors([demo_text.part_text("evaluation")], ids)
    model = model_of(args.version)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters; tokens: {len(prose):,} prose, {len(code):,} code, {len(evaluation):,} held out")
    rng = torch.Generator().manual_seed(args.seed)
    started = time.monotonic()
    train(model, batches(prose, code, args.batch, rng), args.steps, args.lr, bf16=not args.fp32)
    model.to(torch.bfloat16).to(torch.float32)  # measure what is saved
    loss = heldout_loss(model, evaluation)
    facts: dict[str, object] = {
        "architecture": f"RWKV-{args.version} (x0{args.version}0)",
        "parameters": parameters,
        "steps": args.steps,
        "tokens_seen": args.steps * args.batch * CONTEXT,
        "heldout_loss": round(loss, 4),
        "heldout_tokens": len(evaluation),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "seed": args.seed,
    }
    print(f"held-out loss {loss:.4f} nats per token over {len(evaluation):,} tokens")
    save(model, tokens, files, facts)
    print(f"wrote {files[0]}")


if __name__ == "__main__":
    main()
