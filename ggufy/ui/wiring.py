"""What every tab's components and events have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def script(name: str) -> str:
    """Of this package, as gradio's js_on_load takes it."""
    return (HERE / f"{name}.js").read_text(encoding="utf-8")


OWN: dict[str, Any] = {"apply_default_css": False, "padding": False}  # page.css does it
# Nothing is shown while it runs, and nothing is in the API that gradio documents. Whoever looks can still call it, so
# every handler is for strangers.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# What takes a while (a digest of gigabytes, the Hub) waits in gradio's queue.
QUEUED: dict[str, Any] = QUIET | {"queue": True, "concurrency_limit": 16}
