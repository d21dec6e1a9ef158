"""Addresses of repos and their files, as people open them."""

from __future__ import annotations

from urllib.parse import quote

from ggufy.net.modelscope import MASTER
from ggufy.net.session import Reference
from ggufy.system.settings import modelscope_endpoint


def repo_page(name: str) -> str:
    """Page of a repo, which is named as in core/hosts.py."""
    return Reference.named(name).page


def file_address(page: str, file: str) -> str:
    """Where a file of the repo with this page can be downloaded."""
    branch = MASTER if page.startswith(f"{modelscope_endpoint()}/models/") else "main"
    return f"{page}/resolve/{branch}/{quote(file)}"
