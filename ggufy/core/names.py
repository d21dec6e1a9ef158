"""What a model, its files and its repo are called, and what those names must not say. Pure.

A model's name stands in `<Model>-<label>.gguf`, and whoever fetches one by its label goes by file names alone:

- llama.cpp (`-hf repo:label`, common/download.cpp) leaves out every file with `mmproj`, `imatrix`, `mtp-`, `eagle3-`,
  `dflash-` or `dspark-` in its name, and takes the first one left in which the label stands before a `-` or `.`.
- Disks allow 255 bytes in a name, and labels and `.journal.part` come behind the model's.
- The Hub allows 96 ASCII letters, without `--` and `..`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePath
from typing import Literal

from ggufy.core.catalog import BY_NAME, OUTTYPES
from ggufy.core.errors import UsageError
from ggufy.core.outputs import GGUF, OUTPUT_NAMES, names_of_output
from ggufy.core.words import brief

MOST_BYTES = 120  # of a model's name
_MOST_REPO = 96  # letters of a repo's name
_OUTTYPE_SUFFIX = re.compile(r"[-._](bf16|f16|f32|fp16|fp32)$", re.IGNORECASE)
_TOOL_WORD = re.compile(r"(i)(matrix)|(m)(mproj)|(?:(m)(tp)|(e)(agle3)|(d)(flash|spark))(?=-|$)", re.IGNORECASE)
_LABEL = re.compile(
    rf"[-._]*(?:{'|'.join([*BY_NAME, *OUTTYPES])})(?:_FIT)?(?=[-.]|$)", re.IGNORECASE
)  # `_FIT`: quantize/target.py
_REPO = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII)
_INDEX = ".index.json"
_ANONYMOUS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_CARD_TITLE = re.compile(r"^# (.+)-([^-\n]+)$", re.MULTILINE)


def is_anonymous(path: str) -> bool:
    """True for a file that is called as every model's is, by the programs that write it."""
    return PurePath(path).name in _ANONYMOUS


def stem_of(path: str, model_id: str = "") -> str:
    """What a model is named after: its file, or if that is called as all are, its folder or the name of its repo."""
    file = PurePath(path)
    if is_anonymous(path) and (name := file.parent.name or model_id.rpartition("/")[2]):
        return name
    return PurePath(file.name.removesuffix(_INDEX)).stem


def model_name(stem: str) -> str:
    """A file name's stem as the model's name: what is unusual in file names replaced, what has a meaning to tools
    taken out (labels) or parted (`i_matrix`), and no longer than MOST_BYTES. Raises UsageError if nothing is left."""
    name, last = re.sub(r"[^\w.+-]+", "-", _bare(stem)[: 4 * MOST_BYTES]), ""
    while name != last:
        last = name
        name = _LABEL.sub("", _TOOL_WORD.sub(lambda found: "_".join(filter(None, found.groups())), name))
        name = name.encode()[:MOST_BYTES].decode(errors="ignore").strip("-.")
    if not name:
        raise UsageError("no name can be made from {text}: give one with {NAME}.", text=repr(brief(stem)))
    return name


def repo_name(stem: str, output: str = GGUF) -> str:
    """`<Model>-GGUF`, or with the ending of another format, as the Hub allows it. Where that is not the stem as it
    is, a digest of the stem is part of it, so that two models never come to one repo because both lost what told them
    apart."""
    bare, folder_name = _bare(stem), names_of_output(output).folder
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name(stem))
    plain = re.sub(r"\.+", ".", re.sub(r"[-.]*-[-.]*", "-", plain)).lstrip("-._").rstrip("-.")
    if plain == bare and len(folder_name(plain)) <= _MOST_REPO:
        return folder_name(plain)
    tail = folder_name("-" + hashlib.sha256(bare.encode(errors="surrogateescape")).hexdigest()[:8])
    return (plain[: _MOST_REPO - len(tail)].rstrip("-.") or "model") + tail


def is_repo_id(text: str) -> bool:
    """True for `owner/name` as the Hub allows it."""
    name = text.rpartition("/")[2]
    lost = "--" in text or ".." in text or name.endswith((".git", ".ipynb"))
    return _REPO.fullmatch(text) is not None and not lost and len(name) <= _MOST_REPO


def check_card(card: str, *, repo_id: str, name: str, output: str = GGUF) -> None:
    """Raises UsageError if `card`, the README.md of a repo, is one that ggufy wrote for another model than `name`, or
    for its files of another format."""
    endings = {row.ending: row.name for row in OUTPUT_NAMES.values()}
    titles = [title for title in _CARD_TITLE.findall(card) if title[1] in endings]
    if not titles or not re.search(r"^quantized_by: ggufy$", card, re.MULTILINE):
        return
    ending = names_of_output(output).ending
    if any(title == (name, ending) for title in titles):
        return
    if any(title[0] == name for title in titles):
        raise UsageError(
            "{repo} holds files of this model in another format, {format}: give this run another {REPO}.",
            repo=repo_id,
            format=endings[titles[0][1]],
        )
    raise UsageError(
        "{repo} holds the files of another model, {name}: give this run another {REPO}.",
        repo=repo_id,
        name=repr(brief(titles[0][0])),
    )


def _bare(stem: str) -> str:
    return _OUTTYPE_SUFFIX.sub("", unicodedata.normalize("NFC", stem))


RepoKind = Literal["model", "dataset"]
