"""README.md of an output repo, which ggufy shares with the people whose repo it is. Pure.

    ---
    license: mit                        front matter: what people changed or added stays, the rest is the card's
    ---
    …                                   what people wrote stays
    <!-- ggufy:begin {…} … -->
    # Model-GGUF …                      the card, rewritten with every upload
    <!-- ggufy:end -->
    …                                   what people wrote stays

The mark at the beginning holds the front matter that ggufy wrote last, as JSON: a value that differs from it was
changed by people. Cards of older versions have no marks. They are known by `quantized_by: ggufy`, and of their text
every paragraph that is not one of the card's own stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ggufy.core.errors import UsageError

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BEGIN = re.compile(r"<!-- ggufy:begin (\{[^\n]*\}) [^\n]*-->")
_END = "<!-- ggufy:end -->"
_ADVICE = "Written anew with every upload: put your own text above or below."
_OURS = re.compile(r"^quantized_by:[ \t]*[\"']?ggufy[\"']?[ \t]*\r?$", re.MULTILINE)
_PLAIN = re.compile("[A-Za-z][A-Za-z0-9]*([._/-][A-Za-z0-9]+)*")  # mit, apache-2.0, BlinkDL/rwkv-7-world
_NO_TEXT = {"y", "yes", "n", "no", "on", "off", "true", "false", "null"}  # to one version of YAML or the other
_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")  # YAML takes them as \uXXXX only
# How the paragraphs of a card begin, in every version so far.
_PARAGRAPHS = re.compile(
    r"# \S+-GGUF$|GGUF files of .*Made by ggufy|\*\*(In progress: )?\d+ of \d+ files|\*\*All files are here|"
    r"\| file \||!\[Size of the quants|Measured with llama-perplexity|Figures over other text|"
    r"## How (it was made|to run one)$|Converted to (F16|BF16|F32) and quantized|The recipes are ggufy's|"
    r"In the base, as in most|Files with `_FIT`|- (`[^`\n]+`(, )?)+: (by the error|expected)|"
    r"With \[(llama\.cpp|Ollama)\]|As a server for everything|## How to talk with it$|The model was trained on texts|"
    r"Its chat format is `|```text\n|\| (thinking|sampling) \||With llama\.cpp, `--reasoning|What it thought is left|"
    r"A reply ends with|Advised sampling: |`chat_template\.jinja` is|"
    r"```sh\n(llama-cli|llama-server|curl http://127\.0\.0\.1:8080|ollama run hf\.co)|`-r "
)


def check_readme(existing: str | None, repo_id: str = "the repo") -> None:
    """Raises UsageError if a repo has a README.md (None: it has none) that ggufy did not write."""
    if existing is None or not existing.strip() or _BEGIN.search(existing) or _OURS.search(_split(existing)[0]):
        return
    raise UsageError(
        "{repo} already has a README.md that ggufy did not write: choose another {REPO}, or add {KEEP_CARD} to "
        "publish files only.",
        repo=repo_id,
    )


def merge_readme(existing: str | None, card: str) -> str:
    """The README.md with this card in it, and with what people made of the existing one."""
    front, body = _split(card)
    body = body.strip().replace("<!-- ggufy:", "&lt;!-- ggufy:")  # a file's name may hold a mark
    block = f"{_begin(_values(front))}\n{body}\n{_END}"
    if existing is None or not existing.strip():
        return f"---\n{front}---\n\n{block}\n"
    theirs, around = _split(existing)
    written, before, after = _around(around)
    return f"---\n{_merged(theirs, front, written)}---\n{before}{block}{after}"


def yaml_text(text: str) -> str:
    """The text as a string of YAML on one line, whatever it is: it comes from strangers' cards. YAML reads JSON's."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT:
        return text
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _split(text: str) -> tuple[str, str]:
    """(front matter without its lines of dashes, the rest)."""
    match = _FRONT.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)


def _begin(values: Mapping[str, Any]) -> str:
    told = json.dumps(values).replace("--", "\\u002d\\u002d")  # two dashes would end the comment
    return f"<!-- ggufy:begin {told} {_ADVICE} -->"


def _around(text: str) -> tuple[dict[str, Any] | None, str, str]:
    """(front matter as ggufy wrote it, what stands before its card, what stands behind)."""
    begin = _BEGIN.search(text)
    end = text.find(_END, begin.end()) if begin else -1
    if begin is None or end < 0:  # an older card, or one whose marks were taken away
        paragraphs = re.split(r"\n\s*\n", _BEGIN.sub("", text).replace(_END, "").replace("\r\n", "\n"))
        own = [part for part in paragraphs if part.strip() and not _PARAGRAPHS.match(part.strip())]
        return None, "\n", "\n" + "".join(f"\n{part.strip(chr(10))}\n" for part in own)
    try:
        written = json.loads(begin[1])
    except ValueError:
        written = None
    return written if isinstance(written, dict) else None, text[: begin.start()], text[end + len(_END) :]


def _values(front: str) -> dict[str, Any]:
    """The front matter as a mapping; empty if it is none."""
    try:
        found = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2026-02-30
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _merged(theirs: str, ours: str, written: dict[str, Any] | None) -> str:
    """Front matter of both: what people changed, added or took away since ggufy wrote it is as they want it, and not
    touched; where it cannot be read, all of it."""
    segments = _segments(theirs)
    if segments is None:
        return theirs
    known, wanted, before = _values(theirs), _values(ours), written or {}
    text = ""
    for key, lines in segments:
        value = known.get(key)
        if isinstance(value, list):
            new: Any = _merged_list(value, wanted.get(key), before.get(key))
        else:
            new = wanted.get(key) if written is not None and key in before and value == before[key] else value
        text += lines if key == "" or new == value else _lines(key, new)
    added = {key: value for key, value in wanted.items() if key not in known and key not in before}
    return text + "".join(_lines(key, value) for key, value in added.items())


def _merged_list(theirs: list[Any], ours: Any, written: Any) -> list[Any]:
    ours, written = (value if isinstance(value, list) else [] for value in (ours, written))
    kept = [item for item in theirs if item in ours or item not in written]
    return kept + [item for item in ours if item not in theirs and item not in written]


def _lines(key: str, value: Any) -> str:
    """One of the card's own entries, a text or a list of texts; nothing for None."""
    if isinstance(value, list):
        return f"{key}:\n" + "".join(f"- {_item(item)}\n" for item in value)
    return "" if value is None else f"{key}: {_item(value)}\n"


def _item(value: Any) -> str:
    return yaml_text(value) if isinstance(value, str) else json.dumps(value, default=str)


def _segments(front: str) -> list[tuple[str, str]] | None:
    """The front matter's text cut where its keys begin: (key, lines), with an empty key for what stands before them.
    None if it is no mapping of one key a line."""
    try:
        node = yaml.compose(front, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    lines = front.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += "\n"
    if node is None:
        return [("", "".join(lines))]
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not _values(front):
        return None
    keys = [(str(key.value), key.start_mark.line) for key, _ in node.value]
    ends = [line for _, line in keys[1:]] + [len(lines)]
    found = [("", "".join(lines[: keys[0][1]]))]
    return found + [(key, "".join(lines[line:end])) for (key, line), end in zip(keys, ends, strict=True)]
