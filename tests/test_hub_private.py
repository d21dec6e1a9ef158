"""What ggufy takes from private modules of huggingface_hub is as it was when ggufy was written for it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from ggufy.net import hub_private

pytestmark = pytest.mark.fast
PARAMETERS = {
    "build_hf_headers": "token library_name library_version user_agent headers",
    "default_client_factory": "",
    "fetch_upload_modes": "additions repo_type repo_id headers revision endpoint create_pr gitignore_content",
    "get_xet_session": "",
    "hf_raise_for_status": "response endpoint_name",
    "is_xet_available": "",
    "parse_ratelimit_headers": "headers",
}


@pytest.mark.parametrize("name", hub_private.__all__)
def test_it_takes_what_it_took(name: str) -> None:
    assert " ".join(inspect.signature(getattr(hub_private, name)).parameters) == PARAMETERS[name]


def test_there_is_one_place_for_them() -> None:
    package = Path(hub_private.__file__).parent.parent
    private = re.compile(r"(?:from|import) huggingface_hub(?:\.\w+)*\._|from huggingface_hub[\w.]* import [^\n]*\b_\w")
    found = {path.name for path in package.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert found == {"hub_private.py"}
