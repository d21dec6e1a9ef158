"""A model of a file, ready to be evaluated: by the engine here, or by somebody's own library."""

from __future__ import annotations

from pathlib import Path

from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.rwkvcpp.library import LibraryEngine


def opened(path: Path, *, threads: int, ggml_folder: Path | None = None, library: Path | None = None) -> Evaluator:
    """Raises SourceError for a file that is no sound model, UsageError or ToolError for such a library."""
    if library is not None:
        return LibraryEngine(library, path, threads=threads)
    return Engine(path, threads=threads, ggml_folder=ggml_folder)
