"""llama-perplexity and llama-bench: their commands, and readers of what they print.

Quality takes two passes. `logits_command` runs the base over the text and keeps its predictions in a file;
`divergence_command` runs a quant over the tokens in that file and compares. The file's layout, from
tools/perplexity/perplexity.cpp (native byte order):

    "_logits_"  u32 n_ctx  i32 n_vocab  i32 n_chunk  i32 tokens[n_ctx × n_chunk]
    per scored token: f32 scale, f32 lowest, u16 value[n_vocab, made even]     log p = scale × value + lowest

Of each chunk, tokens n_ctx/2 to n_ctx-2 predict their successor and are scored.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ggufy.core.errors import ToolError
from ggufy.core.metrics import Quality, Speed
from ggufy.llama.tools import CONTEXT, ImatrixProgress, ToolRun, run_tool

T = TypeVar("T")
SCORED = CONTEXT - 1 - CONTEXT // 2  # tokens of a chunk that are scored
ATTEMPTS = 5
_PROMPT, _GENERATION, _REPETITIONS = 512, 64, 3
_HEADER = 8 + 3 * 4  # bytes
_NUMBER = r"(-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf))"
# Label of each figure, and the names of its value and (if it has one) its error.
_FIGURES: tuple[tuple[str, str, str], ...] = (
    (r"Mean PPL\(Q\)\s*:", "ppl", "ppl_error"),
    (r"Mean PPL\(base\)\s*:", "base_ppl", "base_ppl_error"),
    (r"Mean PPL\(Q\)/PPL\(base\)\s*:", "ppl_ratio", "ppl_ratio_error"),
    (r"Mean\s+KLD:", "kld", "kld_error"),
    (r"Median\s+KLD:", "kld_median", ""),
    (r"99\.9%\s+KLD:", "kld_999", ""),
    (r"Maximum\s+KLD:", "kld_max", ""),
    (r"Mean\s+Δp:", "delta_p", "delta_p_error"),
    (r"RMS Δp\s*:", "delta_p_rms", "delta_p_rms_error"),
    (r"Same top p:", "same_top", "same_top_error"),
)
_CHUNK = re.compile(r"\[(\d+)\]-?[\d.naif]+,|^ *(\d+) +-?[\d.naif]+ ±.*%", re.MULTILINE)


# ---- build


def logits_command(tool: Path, *, model: Path, text: Path, out: Path, threads: int, chunks: int) -> list[str]:
    """llama-perplexity that writes the base's predictions for at most `chunks` chunks of the text."""
    return [*_perplexity(tool, model, out, threads), "-f", str(text), "--chunks", str(chunks)]


def divergence_command(tool: Path, *, model: Path, logits: Path, threads: int) -> list[str]:
    """llama-perplexity that compares a quant with the predictions in `logits`, which holds the tokens too."""
    return [*_perplexity(tool, model, logits, threads), "--kl-divergence"]


def _perplexity(tool: Path, model: Path, logits: Path, threads: int) -> list[str]:
    size = str(CONTEXT)
    command = [str(tool), "-m", str(model), "-c", size, "-b", size, "-t", str(threads)]
    return [*command, "--kl-divergence-base", str(logits)]


def bench_command(tool: Path, *, model: Path, threads: int) -> list[str]:
    """llama-bench: reading 512 tokens and writing 64, three times each; one JSON object a line."""
    sizes = ["-p", str(_PROMPT), "-n", str(_GENERATION), "-r", str(_REPETITIONS)]
    return [str(tool), "-m", str(model), "-t", str(threads), *sizes, "-o", "jsonl"]


def logits_bytes(vocab: int, chunks: int) -> int:
    """Size of the file that `logits_command` leaves: 33 MB a chunk for a vocabulary of 65536."""
    row = 2 * (2 * ((vocab + 1) // 2) + 4)
    return _HEADER + chunks * (CONTEXT * 4 + SCORED * row)


def logits_chunks(path: Path, vocab: int) -> int:
    """Chunks in a file that `logits_command` left; 0 if it is cut off, or of another vocabulary."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER:
        return 0
    magic, context, its_vocab, chunks = struct.unpack("=8sIii", header)
    right = magic == b"_logits_" and context == CONTEXT and its_vocab == vocab and chunks > 0
    return int(chunks) if right and path.stat().st_size == logits_bytes(vocab, chunks) else 0


# ---- run


def run_for(
    command: list[str], run: ToolRun, *, read: Callable[[str], T | None], feed: Callable[[str], None] | None = None
) -> T:
    """Runs a tool until its figures can be read, at most `ATTEMPTS` times.

    A llama.cpp that is not of our building (see install.py) may end before its own logger does on a busy machine: the
    last lines are lost, with exit code 0 all the same. Raises ToolError when they stay away.
    """
    text = ""
    for _ in range(ATTEMPTS):
        text = run_tool(command, run, feed)
        if (found := read(text)) is not None:
            return found
    name = Path(command[0]).name
    raise ToolError("{tool} ended {count} times without its figures: {AGAIN}.", text, tool=name, count=ATTEMPTS)


# ---- read


class ChunkProgress(ImatrixProgress):
    """Follows llama-perplexity in both passes: chunks done, from `[k]ppl,` or from the rows of its table."""

    finished = _CHUNK


def parse_quality(text: str) -> Quality | None:
    """The figures of a `divergence_command`; None if one is missing. A broken quant's may be nan or infinite."""
    found: dict[str, float] = {}
    for label, value, error in _FIGURES:
        match = re.search(rf"^{label}\s*{_NUMBER}" + (rf"\s*±\s*{_NUMBER}" if error else ""), text, re.MULTILINE)
        if match is None:
            return None
        found[value] = float(match[1])
        if error:
            found[error] = float(match[2])
    return Quality(**found)


def parse_bench(text: str) -> Speed | None:
    """The speeds of a `bench_command`; None if one is missing."""
    tests: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        if line.startswith("{") and line.endswith("}"):
            try:
                test = json.loads(line)
            except ValueError:
                continue
            tests["generation" if test.get("n_gen") else "prompt"] = test
    if len(tests) < 2:
        return None
    prompt, generation = tests["prompt"], tests["generation"]
    return Speed(
        threads=prompt["n_threads"],
        prompt_tps=prompt["avg_ts"],
        prompt_tps_error=prompt["stddev_ts"],
        generation_tps=generation["avg_ts"],
        generation_tps_error=generation["stddev_ts"],
    )
