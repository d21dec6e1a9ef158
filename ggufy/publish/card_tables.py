"""The card's tables: files with what was measured of them, as Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from ggufy.core.job import Job, Making, Request, Status, first_with_the_same
from ggufy.core.metrics import Evaluation, Speed, TextFigures, comparable
from ggufy.core.plan import base_type, quant_name
from ggufy.core.words import human_size
from ggufy.core.writing import NAMES
from ggufy.steps import files_made
from ggufy.steps.outputs import output_of
from ggufy.steps.outputs.output_format import OutputFormat

# How a text is called in public: these names and Hub references are; of anything else, the last part of its name.
_HUB_TEXT = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*:[\w./ -]+")


def tables(job: Job, uploaded: Mapping[str, int], making: Mapping[str, Making], *, plot: str) -> list[str]:
    """The files, smallest first, with figures that can be compared; figures over another text or over fewer tokens
    have tables of their own. `uploaded` are bytes by name of what is there, `making` says how files were made; `plot`
    is its line, or empty."""
    request = job.request
    output = output_of(request)
    rows, same_as = {}, _same_tensors(job, making)
    for step in files_made(request):
        if not step.quant_type:
            rows[step.product] = (_base(request) if step.is_model else step.product_name, step.advice)
            continue
        same = same_as.get(step.quant_type)
        advice = f"Same tensors as {same}." if same else output.advice(step.quant_type)
        rows[step.product] = (step.quant_type, advice)
    bpw = {e.quant: e.bpw for e in job.evaluations}
    bpw |= {name: made.bpw for name, made in making.items() if made.bpw is not None}
    groups = comparable(job.evaluations)
    first = _Figures(groups[0] if groups else [], output)
    head = ["file", "type", "size", "bpw", *first.head]
    lines = [f"| {' | '.join(head)} | |", "|---" * (len(head) + 1) + "|"]
    absent = "to come" if job.status in (Status.RUNNING, Status.QUEUED, Status.PAUSED) else "not made"
    for name in sorted(rows, key=lambda n: (n not in uploaded, uploaded.get(n, 0))):
        kind, advice = rows[name]
        here = name in uploaded
        cells = [f"[{name}]({name})" if here else name, kind, human_size(uploaded[name]) if here else ""]
        cells.append(f"{bpw[name]:.2f}" if name in bpw else "")
        lines.append("| " + " | ".join([*cells, *first.of(name), advice if here else absent]) + " |")
    lines += first.explained()
    lines += ["", plot] if plot else []
    lines += _text_tables(first.found, output)
    told = {found.quant for found in first.found}
    for group in groups[1:]:
        shown = [one.evolve(speed=None) if one.quant in told else one for one in group]
        lines += _other_table(_Figures(shown, output))
        told |= {found.quant for found in group}
    return lines


def _base(request: Request) -> str:
    """What the table calls the base."""
    return f"base{' GGUF' if output_of(request).names.base_suffix == 'gguf' else ''}, {base_type(request)}"


def _same_tensors(job: Job, making: Mapping[str, Making]) -> dict[str, str]:
    made = {quant: making.get(quant_name(job.request, quant), Making()) for quant in job.request.quant_types}
    return first_with_the_same({quant: one.recipe for quant, one in made.items()})


class _Figures:
    """Columns with what was measured over one text."""

    def __init__(self, found: Sequence[Evaluation], output: OutputFormat):
        self.found, self._output = found, output
        self._of = {one.quant: one for one in found}
        speeds = [one.speed for one in found if one.speed]
        self._threads = {speed.threads for speed in speeds}
        self._disturbed = any(not speed.undisturbed for speed in speeds)
        self.head = ["KLD", "PPL", "PPL ratio", "same top p"] if found else []
        self.head += [output.speed_unit] if speeds else []

    def of(self, name: str) -> list[str]:
        """The cells of a file."""
        one = self._of.get(name)
        if one is None:
            return [""] * len(self.head)
        quality, speed = one.quality, one.shown_speed
        threads = f" ({_threads(speed.threads)})" if speed and len(self._threads) > 1 else ""
        cells = [
            f"{quality.kld:.4f} ± {quality.kld_error:.4f}",
            f"{quality.ppl:.3f}",
            f"{quality.ppl_ratio:.4f} ± {quality.ppl_ratio_error:.4f}",
            f"{quality.same_top:.1f} ± {quality.same_top_error:.1f} %",
            f"{_speed(speed, self._output.speed_unit)}{threads}" if speed else "",
        ]
        return cells[: len(self.head)]

    def explained(self) -> list[str]:
        """What the columns are, and over which text."""
        if not self.found:
            return []
        first = self.found[0]
        commits = ", ".join(dict.fromkeys(one.llama[:9] for one in self.found))
        told = (
            f"Measured with {self._output.measured_with} {commits} against the base over {first.tokens:,} tokens of "
            f"{public_name(first.text)} text (sha256 `{first.text_sha256}`), none of it used for calibration; ± is "
            f"one standard error. Perplexity of the base: {first.quality.base_ppl:.3f}. KLD: how far the predictions "
            "are from the base's, in nats a token; same top p: how often both expect the same next token"
        )
        if self._threads:
            used = f"{_threads(self._threads.copy().pop())} of " if len(self._threads) == 1 else ""
            what = "t/s: tokens that llama-bench wrote in a second"
            if self._output.speed_unit == "ms":
                what = "ms: latency, the milliseconds that a token took when one was written after the other"
            told += f"; {what}, with {used}the machine at work, ± the standard deviation between its runs"
            told += ", left out where the machine had other work" if self._disturbed else ""
        return ["", told + "."]


def _other_table(figures: _Figures) -> list[str]:
    lines = ["", "Figures over other text or fewer tokens, which cannot be compared with those above:", ""]
    lines += [f"| {' | '.join(['file', *figures.head])} |", "|---" * (1 + len(figures.head)) + "|"]
    lines += [f"| {' | '.join([one.quant, *figures.of(one.quant)])} |" for one in figures.found]
    return [*lines, *figures.explained()]


def _text_tables(found: Sequence[Evaluation], output: OutputFormat) -> list[str]:
    """A table for each further text that files of the first table were measured over."""
    texts: dict[tuple[str, int], list[tuple[Evaluation, TextFigures]]] = {}
    for one in found:
        for other in one.others:
            texts.setdefault((other.text_sha256, other.tokens), []).append((one, other))
    lines = []
    for pairs in texts.values():
        text = pairs[0][1]
        writing = f", which is mostly {NAMES[text.writing]}" if text.writing else ""
        lines += [
            "",
            f"The same over {text.tokens:,} tokens of {public_name(text.text)} text{writing} (sha256 "
            f"`{text.text_sha256}`). Perplexity of the base: {text.quality.base_ppl:.3f}.",
            "",
        ]
        figures = _Figures([one.evolve(quality=other.quality, speed=None) for one, other in pairs], output)
        lines += [f"| {' | '.join(['file', *figures.head])} |", "|---" * (1 + len(figures.head)) + "|"]
        lines += [f"| {' | '.join([one.quant, *figures.of(one.quant)])} |" for one in figures.found]
    return lines


def _speed(speed: Speed, unit: str) -> str:
    return speed.latency if unit == "ms" else speed.writing


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def public_name(text: str) -> str:
    """How a calibration or evaluation text is called in public."""
    if _HUB_TEXT.fullmatch(text):
        return text
    if text.startswith(("http://", "https://")):
        address = urlsplit(text)  # a password or a query may be a key
        return f"{address.scheme}://{address.hostname or ''}{address.path}"
    return last_part(text)


def last_part(path: str) -> str:
    """Of a path of any system."""
    return re.split(r"[\\/]", path)[-1]
