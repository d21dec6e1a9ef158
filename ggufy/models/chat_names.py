"""What the name of an RWKV says: how it was taught to talk, and, of the official G1 checkpoints, what they are. Pure.

BlinkDL names a checkpoint after its architecture, data, size, date and context, `rwkv7-g1k-2.9b-20260930-ctx25600`:
the letter of the data says which conversations it has read. Fine-tunes, folders and GGUFs of others mostly keep it, in
either case, and a fine-tune keeps the conversations of its base. What says nothing is taken for a World model, whose
plain form all RWKVs understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ggufy.core.source import Source

# The data of G1 begin with g1, those of its forerunner G0 with g0; a digit counts versions of a letter.
_LETTER = re.compile(r"(?<![a-z0-9])g[01](?:([a-z])\d?)?(?![a-z0-9])")
_OLDER = re.compile(r"(?<![a-z0-9])(?:rwkv-?[456]|x0[456]0)(?![0-9])")
_WORLD = re.compile(r"(?<![a-z])world(?![a-z])")
# Repos that name the size and the date alone: `RWKV7-1.5B-20260805`. Elsewhere a date may be that of a fine-tune.
_DATED = re.compile(r"(?<![a-z0-9])rwkv-?7[ab]?-\d{1,2}\.\db-(20\d{6})(?!\d)")
_SINCE = (("20260710", "g1h"), ("20251231", "g1c"))  # the first day of a generation, newest first
_OFFICIAL = re.compile(
    r"(?:blinkdl-)?(rwkv7-g[01](?:[a-z]\d?)?-(?:0\.1|0\.4|1\.5|2\.9|7\.2|13\.3)b-20\d{6}-ctx(\d{3,7}))"
)


@dataclass(frozen=True, kw_only=True)
class Official:
    """What is known of every G1 checkpoint that BlinkDL publishes (huggingface.co/BlinkDL/rwkv7-g1)."""

    name: str  # of the checkpoint
    context: int  # tokens of the texts that it was trained on
    organization: str = "BlinkDL"
    repo_id: str = "BlinkDL/rwkv7-g1"
    license: str = "apache-2.0"
    languages: tuple[str, ...] = ("en", "zh", "fr", "es", "de", "pt", "ru", "it", "ja", "ko", "vi", "ar")

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo_id}"


def official(name: str) -> Official | None:
    """The official checkpoint that is called so, without its ending; None for every other name: nothing is guessed."""
    match = _OFFICIAL.fullmatch(name.lower())
    return Official(name=match[1], context=int(match[2])) if match else None


def format_named(names: Iterable[str]) -> str:
    """Name of the chat format that these names speak for, the first that says anything; else world.

    `names` are those of a file, its repo, and what the file calls itself: the nearest to the weights first. A file's
    ending and folders do not matter.
    """
    plain = [name.lower() for name in names if name]
    for name in plain:
        for part in reversed(PurePosixPath(name).parts):
            if _OLDER.search(part):
                return "world"
            if letter := _LETTER.search(part):
                data = letter[1] or "a"
                return "g1" if data < "c" else "g1c" if data < "h" else "g1h"
            if _WORLD.search(part):
                return "world"
    for name in plain:
        if dated := _DATED.search(name):
            return next((chat for day, chat in _SINCE if dated[1] >= day), "world")
    return "world"


def names_of(source: Source) -> list[str]:
    """What a source is called: its file, and its repo. Of a local one the folder counts where the file has the name
    that all models of that kind have, `model.safetensors`."""
    path = PurePosixPath(source.path)
    if source.model_id:
        return [source.path, source.model_id]
    return [f"{path.parent.name}/{path.name}" if path.stem.startswith("model") else path.name]
