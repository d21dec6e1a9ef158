"""What the form holds outlives a reload of its tab, such as the one after a restart of the server, or of a language.

The browser keeps it (early.js), for this tab alone and until it is closed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

_KEEP = "(...values) => window.ggufy.keep({names}, values)"
_RESTORE = """(...values) => {{
  const restored = window.ggufy.restore({names}, values);
  document.body.dataset.demo = String(restored[{source}].trim() === "demo");
  return restored;
}}"""


def outlive_reloads(page: gr.Blocks, fields: Mapping[str, Any]) -> Any:
    """Keeps what changes in the fields, by their names; returns the event that fills them when the page is loaded.
    The types come back by themselves (types.js)."""
    every = [*fields.values()]
    changes = [field.change for field in every]
    keep = _KEEP.format(names=json.dumps([*fields]))
    gr.on(changes, None, every, js=keep, api_visibility="private")
    names = [name for name in fields if name != "types"]
    some = [fields[name] for name in names]
    restore = _RESTORE.format(names=json.dumps(names), source=names.index("source"))
    return page.load(None, some, some, js=restore, api_visibility="private")
