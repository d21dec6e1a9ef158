"""The files of a pinned adapter: how they get here, and open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ggufy.core.errors import SourceError
from ggufy.core.source import PinnedAdapter, Source
from ggufy.formats.safetensors import read_header
from ggufy.sources import hub
from ggufy.sources.adapter import CONFIG, AdapterSearch, adapter_stem, describe_files, is_safetensors

if TYPE_CHECKING:
    from ggufy.formats.tensor_file import MappedTensors
    from ggufy.models.merge import OpenAdapter


def path_of(one: Source, source: Source, cache: Path) -> Path:
    """Where a file of `source` is, or will be, on this machine."""
    return cache / "sources" / source.key[:16] / PurePosixPath(one.path).name if source.remote else Path(one.path)


def fetch_adapter(pinned: PinnedAdapter, cache: Path, search: AdapterSearch) -> list[Source]:
    """Brings the files of an adapter here, where a cut download goes on, and checks them; gives them as they are here.

    Raises SourceError if a file is not the one that was pinned any more, else as `hub.download`.
    """
    found = []
    for source in pinned.sources:
        for one in source.each():
            path = path_of(one, source, cache)
            whole = path.is_file() and search.digest(path) == one.sha256
            if not whole and not source.remote:
                raise SourceError(
                    "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=path
                )
            if not whole:
                path.unlink(missing_ok=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                hub.download(one, path, token=search.settings.token_for(one.host), stopped=search.stopped)
            found.append(replace(one, path=str(path), model_id="", revision=""))
    return found


def drop_fetched(adapters: Sequence[PinnedAdapter], cache: Path) -> None:
    """Removes what `fetch_adapter` brought here."""
    for source in (source for pinned in adapters for source in pinned.sources if source.remote):
        for one in source.each():
            path_of(one, source, cache).unlink(missing_ok=True)


@contextlib.contextmanager
def opened_adapters(
    adapters: Sequence[PinnedAdapter], cache: Path, search: AdapterSearch
) -> Iterator[list[OpenAdapter]]:
    """The adapters with their values, as long as the block lasts. Raises what `fetch_adapter` raises, and SourceError
    for files that make no sense."""
    with contextlib.ExitStack() as stack:
        yield [_open(pinned, fetch_adapter(pinned, cache, search), stack, search) for pinned in adapters]


def _open(
    pinned: PinnedAdapter, here: Sequence[Source], stack: contextlib.ExitStack, search: AdapterSearch
) -> OpenAdapter:
    from ggufy.formats.checkpoint import open_checkpoint  # noqa: PLC0415 - loads torch
    from ggufy.formats.mapped_safetensors import MappedSafetensors  # noqa: PLC0415
    from ggufy.models.merge import OpenAdapter  # noqa: PLC0415

    files: list[MappedTensors] = []
    for path in (Path(one.path) for one in here if not one.path.endswith(CONFIG)):
        with path.open("rb") as file:
            listed = read_header(file, path.name) if is_safetensors(file.read(9)) else None
        opened = MappedSafetensors([path], listed) if listed else open_checkpoint(path)
        stack.callback(opened.close)
        files.append(opened)
    adapter = describe_files(adapter_stem(pinned.source), here, search)
    return OpenAdapter(adapter=adapter, scale=pinned.scale, key=pinned.key, files=files)
