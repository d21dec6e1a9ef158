"""Which events the built page listens to: /config shows what gradio made of every call, and what was not meant."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gradio as gr
import pytest

from ggufy.service.service import Services
from ggufy.system.settings import Settings
from ggufy.ui import build as page_of
from ggufy.ui.api import NAMES

CHAT_OPTIONS = tuple(
    f"gg-chat-{name} change"
    for name in (
        *("frequency", "length", "mode", "model-a", "model-b", "presence", "sampling", "state", "system"),
        *("temperature", "think", "top_p"),
    )
)
CHAT_NUMBERS = tuple(f"gg-chat-{name} input" for name in ("frequency", "presence", "temperature", "top_p"))
FORM = tuple(
    f"gg-{name} change"
    for name in "awq chat-format chunks evaluate evaluation evaluation-chunks imatrix imatrix-path keep-card lora "
    "lora-alpha lora-as-file lora-init mix mmproj mode mtp name output outtype private repo rounding "
    "source targets types vocab".split()
)
# Handler (js: in the browser only) -> what it follows, one tuple for each time it is connected.
EXPECTED = {
    "look of jobs": [("page load",), ("timer tick",), ("gg-jobs look",), ("begin then",), ("begin_ticked then",)],
    "talk": [("gg-jobs talk",)],
    "act": [("gg-banner click", "gg-jobs click", "gg-machine click")],
    "greet": [("page load",)],
    "look of source": [
        ("js then",),
        ("gg-panel look",),
        ("gg-mix change", "gg-output change", "gg-outtype change", "gg-rounding change"),
        ("choose then",),
    ],
    "choose": [("gg-panel click",)],
    "choose_output": [("gg-output change",)],
    "price": [
        ("gg-panel price",),
        (
            "gg-awq change",
            "gg-chunks change",
            "gg-evaluate change",
            "gg-evaluation change",
            "gg-evaluation-chunks change",
            "gg-imatrix change",
            "gg-mode change",
            "gg-types change",
        ),
    ],
    "choose_imatrix": [("gg-imatrix change",)],
    "check": [("gg-start click",)],
    "begin": [("check then",)],
    "begin_ticked": [("gg-panel several",)],
    "greet of follow": [("page load",)],
    "show": [("gg-follow expand",)],
    "follow": [("gg-follow-add click",)],
    "unfollow": [("gg-followed click",)],
    "choose_evaluate": [("gg-evaluate change",)],
    "js": [("gg-imatrix change",), ("gg-source change",), ("page load",), FORM, CHAT_OPTIONS, CHAT_NUMBERS],
    "look of chat": [("chat select",)],
    "choose of chat": [("gg-chat-model-a input", "gg-chat-model-b input")],
    "advise": [("gg-chat-sampling input", "gg-chat-think input")],
    "say": [("gg-chat-message submit", "gg-chat-send click")],
    "switch": [("gg-chat-mode input",)],
    "edit": [("gg-chat-log-a edit",), ("gg-chat-log-b edit",)],
    "regenerate": [("gg-chat-log-a again",), ("gg-chat-log-b again",)],
    "halt": [("gg-chat-stop click",)],
    "forget": [("gg-chat-clear click",)],
}


async def _built(services: Services) -> gr.Blocks:
    """In a loop: outside of one, gradio makes its own and leaves it open."""
    return page_of.build(services)


@pytest.fixture
def triggers(tmp_path: Path) -> dict[str, list[tuple[str, ...]]]:
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    services = Services(Settings.from_env(environment))
    page = asyncio.run(_built(services))
    names = {}
    for number, fn in page.fns.items():
        owner = type(getattr(fn.fn, "__self__", None)).__name__
        kind = {"JobsPanel": "jobs", "QuantizeTab": "source", "ChatTab": "chat", "FollowPanel": "follow"}.get(
            owner, ""
        )
        plain = getattr(fn.fn, "__name__", "") or "js"
        shared = plain == "look" or (plain, kind) in (("choose", "chat"), ("greet", "follow"))
        names[number] = f"{plain} of {kind}" if shared else plain
    found: dict[str, list[tuple[str, ...]]] = {}
    for number, fn in page.fns.items():
        targets = []
        for block_id, event in fn.targets:
            block = page.blocks.get(block_id) if block_id is not None else None
            if event == "then":
                targets.append(f"{names[fn.trigger_after].split(' of ')[0]} then")
            elif block is None or block is page:
                targets.append(f"page {event}")
            else:
                targets.append(f"{block.elem_id or getattr(block, 'id', None) or block.get_block_name()} {event}")
        if names[number] not in NAMES:
            found.setdefault(names[number], []).append(tuple(sorted(targets)))
    services.shutdown()
    return found


def test_every_handler_follows_what_was_meant(triggers: dict[str, list[tuple[str, ...]]]) -> None:
    assert {name: sorted(found) for name, found in triggers.items()} == {
        name: sorted(expected) for name, expected in EXPECTED.items()
    }
