"""Texts: the project's own for calibration and evaluation, and the calibration text that a job is pinned to.

`ensure_texts` builds the project's own two texts once per Python. `pin_text` copies or fetches whatever text the user
named into the cache under its digest, where `pinned` finds it again, so that a resumed job reads the same bytes even
if the user's file or the page at that address has changed since:

    <cache>/texts/own-<key>/calibration.txt, evaluation.txt
    <cache>/texts/<first 16 digits of the sha256>/<name>.txt
    <cache>/texts/fetched.json                                  what was fetched before: choice -> sha256
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ggufy.core.errors import CalibrationError, SourceError
from ggufy.core.names import MOST_BYTES
from ggufy.core.words import brief, human_size
from ggufy.demo import CALIBRATION
from ggufy.net.download import fetch_small
from ggufy.net.http_get import Address, hub_address
from ggufy.net.hub_api import repo_files
from ggufy.net.session import Reference
from ggufy.sources.addresses import split_address
from ggufy.sources.hub import choose_file, is_reference, parse_reference
from ggufy.system.files import partial, sha256, write_text
from ggufy.system.locks import lock
from ggufy.system.user_paths import user_file, user_text
from ggufy.texts import text as demo_text
from ggufy.texts.dataset import SUFFIXES, is_dataset, split_column, text_of

BUNDLED = "bundled"
# Texts that are often used, by the name that --calibration takes.
NAMED = {
    "calibration_datav3": "https://gist.github.com/bartowski1182/eb213dccb3571f863da82e99418f81e8/raw/"
    "b2869d80f5c16fd7082594248e80144677736635/calibration_datav3.txt",
    "wikitext": "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3:"  # wikitext-2, raw, its test part
    "wikitext-2-raw-v1/test-00000-of-00001.parquet",
}
MIN_BYTES, MAX_BYTES = 2_000, 100_000_000
MIN_EVALUATION_BYTES = 100_000
_ADDED_BYTES = 40_000  # of the standard library's text, for the bundled calibration text
_SECTION_CHARS = 2_000  # least length of what stays together when the two are mixed
_GENERATOR = 1  # to be raised when the texts would come out differently
_WAIT_S = 120.0  # for another process that builds or fetches the same


@dataclass(frozen=True, kw_only=True)
class PinnedTexts:
    """The project's own texts."""

    calibration: Path
    evaluation: Path
    probe: Path  # to find mixes with: shares no paragraph with the others


@dataclass(frozen=True, kw_only=True)
class PinnedText:
    """A calibration text that stays as it is."""

    path: Path
    sha256: str  # hex digest of the file
    name: str  # as people know it; the file is called `<name>.txt`


def ensure_texts(cache: Path, *, stopped: Callable[[], bool] = lambda: False) -> PinnedTexts:
    """The project's own calibration and evaluation text, built in some seconds when this Python has none yet.

    No paragraph of the evaluation text stands in the calibration text, or trained the demo (see ggufy.texts.text). The
    probe text is what the calibration text leaves of its part.
    Raises SourceError if this Python carries too little text.
    """
    own = CALIBRATION.read_text(encoding="utf-8")
    key = hashlib.sha256(f"{_GENERATOR}\n{sys.version}\n{own}".encode()).hexdigest()[:16]
    folder = cache / "texts" / f"own-{key}"
    texts = PinnedTexts(
        calibration=folder / "calibration.txt", evaluation=folder / "evaluation.txt", probe=folder / "probe.txt"
    )
    with lock(cache / "texts" / ".lock", _WAIT_S, stopped=stopped):
        if not (texts.calibration.exists() and texts.evaluation.exists() and texts.probe.exists()):
            parts = demo_text.parts_texts({"calibration": None, "evaluation": None})
            added, left = demo_text.cut(parts["calibration"], _ADDED_BYTES)
            size = len(parts["evaluation"].encode())
            if size < MIN_EVALUATION_BYTES:
                raise SourceError(
                    "this Python carries {found} of text to evaluate on, {needed} are needed: use one with the "
                    "sources of its standard library.",
                    found=human_size(size),
                    needed=human_size(MIN_EVALUATION_BYTES),
                )
            write_text(texts.calibration, _interleaved(own, added))
            write_text(texts.evaluation, parts["evaluation"])
            write_text(texts.probe, left)
    return texts


def find_again(
    choice: str,
    digest: str,
    cache: Path,
    *,
    token: str | None = None,
    use: str = "calibration",
    stopped: Callable[[], bool] = lambda: False,
) -> Path | None:
    """The pinned text with this sha256 (hex); on a new disk the same choice may still give it. None if it does not.

    Raises what `pin_text` raises.
    """
    if (text := pinned(cache, digest)) is not None:
        return text
    again = pin_text(choice, cache, token=token, use=use, stopped=stopped)
    return again.path if again.sha256 == digest else None


def pin_text(
    choice: str,
    cache: Path,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    use: str = "calibration",
    stopped: Callable[[], bool] = lambda: False,
) -> PinnedText:
    """Puts the chosen text into the cache under its digest; what was fetched once is not fetched again.

    `use` is calibration or evaluation; "bundled" is another text for each. `choice` is "bundled", a name in NAMED, a
    file on this machine, an http(s) address, or a dataset file on the Hub: `owner/name:file.txt`, or `owner/name` if
    it holds one .txt. All but the last may name a Parquet or Arrow file and its column (see dataset.py). Raises
    CalibrationError if the text cannot be used, SourceError if it cannot be had; Cancelled.
    """
    user_text(choice)
    bundled: Path | None = getattr(ensure_texts(cache, stopped=stopped), use) if choice == BUNDLED else None
    index = cache / "texts" / "fetched.json"
    with lock(cache / "texts" / ".lock", _WAIT_S, stopped=stopped):
        if bundled is not None:
            return _pin(bundled.read_bytes(), f"ggufy-{use}", cache, shown=choice)
        if choice not in NAMED and "://" not in choice and (file := user_file(split_column(choice)[0])):
            return _pin(_read(file), file.stem, cache, shown=choice)
        known = _read_index(index)
        if choice in known and (found := pinned(cache, known[choice])):
            return PinnedText(path=found, sha256=known[choice], name=found.stem)
    data, name = _fetch(choice, token=token, endpoint=endpoint, stopped=stopped)  # nobody waits for a network
    with lock(cache / "texts" / ".lock", _WAIT_S, stopped=stopped):
        text = _pin(data, name, cache, shown=choice)
        write_text(index, json.dumps(_read_index(index) | {choice: text.sha256}, indent=2) + "\n")
        return text


def pinned(cache: Path, digest: str) -> Path | None:
    """The text with this sha256 (hex), or None if the cache has it no more or it was changed."""
    folder = cache / "texts" / digest[:16]
    return next((path for path in sorted(folder.glob("*.txt")) if sha256(path) == digest), None)


def texts_named(cache: Path, name: str) -> list[Path]:
    """The pinned texts whose file has this name, as an imatrix and the quants made with it give it."""
    bare = PurePosixPath(name).name
    return sorted(path for path in (cache / "texts").glob("*/*.txt") if path.name == bare)


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CalibrationError(
            "{path} has {size}, more than {most}: give a shorter text.",
            path=path,
            size=human_size(size),
            most=human_size(MAX_BYTES),
        )
    return path.read_bytes()


def _fetch(choice: str, *, token: str | None, endpoint: str | None, stopped: Callable[[], bool]) -> tuple[bytes, str]:
    """The bytes of a text that is not on this machine, and its name."""
    place = split_column(NAMED.get(choice, choice))[0]
    if place.startswith(("http://", "https://")):
        name = PurePosixPath(unquote(split_address(place).path)).stem
        return fetch_small(Address(url=place, shown=place), limit=MAX_BYTES, stopped=stopped), name
    path_like = place.endswith((".txt", *SUFFIXES)) and ":" not in place
    if "://" in choice or path_like or not is_reference(place):
        raise CalibrationError(
            "there is no calibration text {choice}: give {names}, a file, an http address, or a dataset on the "
            "Hub as owner/name:file.txt or owner/name:file.parquet#column.",
            choice=brief(choice),
            names=f"{BUNDLED}, {', '.join(NAMED)}",
        )
    wanted = parse_reference(place, repo_type="dataset")
    listing = repo_files(wanted, token=token, endpoint=endpoint, stopped=stopped)
    file = choose_file(
        wanted, listing.files, suffix=PurePosixPath(place).suffix if is_dataset(place) else ".txt"
    ).rfilename
    found = Reference(repo_id=wanted.repo_id, file=file, revision=listing.commit, repo_type="dataset")
    address = hub_address(found, token=token, endpoint=endpoint)
    return fetch_small(address, limit=MAX_BYTES, stopped=stopped), choice if choice in NAMED else PurePosixPath(
        file
    ).stem


def _pin(data: bytes, name: str, cache: Path, *, shown: str) -> PinnedText:
    place, column = split_column(NAMED.get(shown, shown))
    if is_dataset(place):
        data = text_of(data, column, name=PurePosixPath(place).name, limit=MAX_BYTES)
    if len(data) < MIN_BYTES:
        raise CalibrationError(
            "the calibration text {name} is too short ({size}): at least 1,024 tokens are needed, 10 to 20 "
            "thousand (about 50 to 100 kB) are good.",
            name=shown,
            size=human_size(len(data)),
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            "the calibration text {name} is not UTF-8 (byte {byte}): save it as UTF-8 text.",
            name=shown,
            byte=error.start,
        ) from error
    if "\0" in text:
        raise CalibrationError("{name} holds zero bytes, so it is not a text: give a text file.", name=shown)
    digest = hashlib.sha256(data).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", name).encode()[:MOST_BYTES].decode(errors="ignore").strip("-.") or "text"
    path = pinned(cache, digest)
    if path is None:
        path = cache / "texts" / digest[:16] / f"{name}.txt"
        with partial(path) as part:
            part.write_bytes(data)
    return PinnedText(path=path, sha256=digest, name=path.stem)


def _read_index(index: Path) -> dict[str, str]:
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {str(k): str(v) for k, v in known.items()} if isinstance(known, dict) else {}


def _interleaved(first: str, second: str) -> str:
    """Sections of both texts in turn, spread evenly, so that the first chunks hold some of everything."""
    placed = [
        ((number + 0.5) / len(sections), section)
        for sections in (_sections(first), _sections(second))
        for number, section in enumerate(sections)
    ]
    return "\n\n".join(section for _, section in sorted(placed, key=lambda item: item[0])) + "\n"


def _sections(text: str) -> list[str]:
    """Runs of whole paragraphs of some thousand characters; never cut inside a fenced block of code."""
    sections, run, fenced = [], [], False
    for paragraph in re.split(r"\n\n(?=\S)", text.strip("\n")):
        run.append(paragraph)
        fenced ^= bool(len(re.findall(r"^```", paragraph, flags=re.MULTILINE)) % 2)
        if not fenced and sum(map(len, run)) >= _SECTION_CHARS:
            sections.append("\n\n".join(run))
            run = []
    return [*sections, "\n\n".join(run)] if run else sections
