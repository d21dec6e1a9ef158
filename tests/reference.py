"""Other people's models and figures, which are not part of the repo: `GGUFY_TEST_DATA`, or `shared/data` beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def reference_file(name: str) -> Path:
    """A file of that data, by its path there. Skips the test where it is absent."""
    folder = Path(os.environ.get("GGUFY_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"{folder / name} is not there: set GGUFY_TEST_DATA to the reference data")
    return folder / name


def reference_data(name: str) -> Any:
    """What a JSON file of that data holds."""
    return json.loads(reference_file(name).read_text(encoding="utf-8"))
