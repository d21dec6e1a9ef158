"""`python -m ggufy.rwkvcpp.measuring`: what measure.py runs in a process of its own, as it runs llama.cpp's programs.

    quality BASE QUANT…   reads a text with all of them at once, so that nothing has to be kept
    speed MODEL           reads tokens at once, and then one after the other

It prints lines of JSON: `{"done": fraction}` meanwhile, and last `{"tokens": scored, "qualities": [Quality]}` in the
order of the quants, or `{"speed": {prompt_tps, …}}`, or `{"error": message}`.

The text is read from an empty state, once, as rwkv.cpp's measure_pexplexity.py does: with n tokens ignored, the loss
of token i counts if n is 0 or i is at least n.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import CalibrationError, GgufyError
from ggufy.core.messages import Message
from ggufy.rwkvcpp.comparing import Comparison, log_probabilities
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.rwkvcpp.opened import opened
from ggufy.rwkvcpp.reading import CHUNK
from ggufy.rwkvcpp.tokenizer import tokenizer_of

_PROMPT, _GENERATION, _REPETITIONS = 512, 64, 3  # tokens, as llama-bench


def compare(
    base: Evaluator,
    quants: Sequence[Evaluator],
    tokens: Sequence[int],
    ignore_first: int = 0,
    report: Callable[[float], None] = lambda fraction: None,
) -> list[Comparison]:
    """Reads `tokens` with every model. Raises CalibrationError unless two are left after those that are ignored."""
    check_length(len(tokens), ignore_first)
    models: list[Evaluator] = list({id(model): model for model in (base, *quants)}.values())
    states: dict[int, Any] = {}
    found = [Comparison() for _ in quants]
    for start in range(0, len(tokens) - 1, CHUNK):
        ids, following = tokens[start : start + CHUNK], np.array(tokens[start + 1 : start + 1 + CHUNK])
        first = max(0, ignore_first - start - 1)  # of those whose prediction counts
        logs = {}
        for model in models:
            logits, states[id(model)] = model.eval(ids[: len(following)], states.get(id(model)), every=True)
            logs[id(model)] = log_probabilities(logits[first:])
        for comparison, quant in zip(found, quants, strict=True):
            if first < len(following):
                comparison.add(logs[id(base)], logs[id(quant)], following[first:])
        report(min(1.0, (start + CHUNK) / (len(tokens) - 1)))
    return found


def check_length(count: int, ignore_first: int) -> None:
    """Raises CalibrationError for a text of too few tokens."""
    if count - ignore_first < 2:
        raise CalibrationError(
            "the text has {count} tokens, and {ignored} are to be ignored: give a longer one with --text.",
            count=count,
            ignored=ignore_first,
        )


def speed_of(model: Evaluator) -> dict[str, float]:
    """Tokens a second of reading many at once and of one after the other, with their deviations."""
    ids = [int(token) for token in np.random.default_rng(0).integers(model.n_vocab, size=_PROMPT)]

    def at_once() -> None:
        model.eval(ids, None)

    def one_by_one() -> None:
        state = None
        for token in ids[:_GENERATION]:
            _, state = model.eval([token], state)

    model.eval(ids[:1], None)  # what is read from the disk for the first time is not the model's speed
    found: dict[str, float] = {}
    for name, count, work in (("prompt_tps", _PROMPT, at_once), ("generation_tps", _GENERATION, one_by_one)):
        rates = []
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            work()
            rates.append(count / (time.perf_counter() - start))
        found |= {name: float(np.mean(rates)), f"{name}_error": float(np.std(rates, ddof=1))}
    return found


def _quality(args: argparse.Namespace) -> None:
    tokenizer = tokenizer_of(args.base, _open(args, args.base).n_vocab, args.tokenizer)
    tokens = tokenizer.encode(args.text.read_text(encoding="utf-8"))
    tokens = tokens[: args.limit] if args.limit else tokens
    check_length(len(tokens), args.ignore_first)
    engines = {path: _open(args, path) for path in dict.fromkeys((args.base, *args.quants))}
    quants = [engines[path] for path in args.quants]
    found = compare(engines[args.base], quants, tokens, args.ignore_first, lambda done: _say(done=done))
    _say(tokens=found[0].tokens, qualities=[dataclasses.asdict(one.quality()) for one in found])


def _speed(args: argparse.Namespace) -> None:
    _say(speed=speed_of(_open(args, args.model)))


def _open(args: argparse.Namespace, path: Path) -> Evaluator:
    return opened(path, threads=args.threads, ggml_folder=args.ggml, library=args.library)


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ggufy.rwkvcpp.measuring")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--library", type=Path)
    commands = parser.add_subparsers(required=True)
    quality = commands.add_parser("quality")
    quality.set_defaults(run=_quality)
    for option in ("--ignore-first", "--limit"):
        quality.add_argument(option, type=int, default=0)
    quality.add_argument("--tokenizer", required=True)
    quality.add_argument("--text", type=Path, required=True)
    quality.add_argument("base", type=Path)
    quality.add_argument("quants", type=Path, nargs="+")
    speed = commands.add_parser("speed")
    speed.set_defaults(run=_speed)
    speed.add_argument("model", type=Path)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except GgufyError as error:
        message = error.message
        _say(error=(message if isinstance(message, Message) else Message(message)).to_record())
    return 0


if __name__ == "__main__":
    sys.exit(main())
