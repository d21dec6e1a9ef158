"""Programs of this package that run in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import ggufy


def module_command(module: str, *words: str) -> list[str]:
    """Python that runs one of ggufy's modules, wherever it is started."""
    return [sys.executable, "-P", "-m", module, *words]


def finding_ggufy(environment: Mapping[str, str]) -> dict[str, str]:
    """A child's environment in which that Python finds ggufy."""
    return {**environment, "PYTHONPATH": str(Path(ggufy.__file__).absolute().parent.parent)}
