"""What we take from private modules of huggingface_hub, all of it here: they may change with any release.

tests/test_hub_private.py fails when one of them takes other arguments than it did.
"""

from __future__ import annotations

from huggingface_hub._commit_api import _fetch_upload_modes
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status, parse_ratelimit_headers
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import get_xet_session

fetch_upload_modes = _fetch_upload_modes

__all__ = [
    "build_hf_headers",
    "default_client_factory",
    "fetch_upload_modes",
    "get_xet_session",
    "hf_raise_for_status",
    "is_xet_available",
    "parse_ratelimit_headers",
]
