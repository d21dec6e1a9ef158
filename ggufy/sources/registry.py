"""The formats that sources can have. A new one is a file like rwkv_pth.py, and its class in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from ggufy.models.names.config import CONFIG_FILE
from ggufy.sources.format import SourceFormat
from ggufy.sources.gguf_model import UnquantizedGguf
from ggufy.sources.hf_config import is_transformer
from ggufy.sources.hf_folder import WEIGHTS, HuggingFaceModel
from ggufy.sources.rwkv_bin import RwkvBin
from ggufy.sources.rwkv_pth import RwkvPth
from ggufy.sources.rwkv_safetensors import RwkvSafetensors
from ggufy.sources.rwkvcpp_bin import RwkvcppBin

# The first that recognizes a file has it. A .pth comes last: it takes every file, and says what is wrong with it.
_TRANSFORMER = HuggingFaceModel()
FORMATS: tuple[SourceFormat, ...] = (
    UnquantizedGguf(),
    _TRANSFORMER,
    RwkvcppBin(),
    RwkvBin(),
    RwkvSafetensors(),
    RwkvPth(),
)


def format_of(kind: str) -> SourceFormat:
    """By the kind that a job record or a report names. One that is not known here counts as a .pth."""
    return next((one for one in FORMATS if one.kind == kind), FORMATS[-1])


def format_of_file(path: Path) -> SourceFormat:
    """Of a file on this machine. Raises OSError if it cannot be read."""
    return next(one for one in FORMATS if one.recognizes(path))


def format_of_name(name: str) -> SourceFormat | None:
    """Of a file in a repo or at an address; None if it is no model."""
    return next((one for one in FORMATS if one.claims(name)), None)


def models_among(names: Iterable[str]) -> dict[str, SourceFormat]:
    """The models of a repo, by name."""
    return {name: found for name in names if (found := format_of_name(name))}


def models_by_config(names: Iterable[str], wanted: str, read: Callable[[str], bytes]) -> dict[str, SourceFormat]:
    """As `models_among`, with the config.json of the folder looked at, which `read` gives, that is `wanted` or holds
    the file that is: weights of a transformer are called as an RWKV's are. What else is taken unnamed goes then."""
    there = set(names)
    models = models_among(there)
    named = wanted if wanted in there else ""
    folder = PurePosixPath(named).parent if named else PurePosixPath(wanted)
    found = [path for path in (str(folder / name) for name in WEIGHTS) if path in there]
    config = str(folder / CONFIG_FILE)
    if not found or config not in there or (named and named not in found) or not is_transformer(read(config)):
        return models
    kept = {name: form for name, form in models.items() if not form.unnamed}
    return kept | {named or found[0]: _TRANSFORMER}


def unnamed_among(models: Mapping[str, SourceFormat]) -> list[str]:
    """Those of a repo's or folder's models of which the only one is taken without being named: those of one format,
    the last of FORMATS that is there. So a .pth goes before what was made of it."""
    for form in FORMATS[::-1]:
        if form.unnamed and (names := [name for name, one in models.items() if one is form]):
            return names
    return []
