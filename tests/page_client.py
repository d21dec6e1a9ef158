"""The page as a tab asks it, without a browser: one look at what is new, and the buttons of banner and jobs."""

from __future__ import annotations

import json
import secrets
import urllib.request
from typing import Any


class PageClient:
    """One tab of a page that runs."""

    def __init__(self, url: str):
        self.url, self._session = url, secrets.token_hex(8)
        config = json.loads(self._get("config"))
        parts = {part["id"]: part for part in config["components"]}
        banner = next(number for number, part in parts.items() if part["props"].get("elem_id") == "gg-banner")
        self.banner = self.jobs = ""  # HTML, as the tab shows it
        self._look = self._event(config, banner, "tick")
        self._act = self._event(config, banner, "click")

    def look(self) -> str:
        """What the timer does; returns what the tab shows then."""
        self._show(self._run(self._look))
        return self.banner + self.jobs

    def act(self, action: str, job: str = "") -> str:
        """A button; returns what the tab shows then."""
        self._show(self._run(self._act, {"action": action, "job": job, "size": ""}))
        return self.banner + self.jobs

    def _show(self, drawn: list[Any]) -> None:
        banner, jobs, _ = drawn
        self.banner = banner if isinstance(banner, str) else self.banner
        self.jobs = jobs if isinstance(jobs, str) else self.jobs

    @staticmethod
    def _event(config: dict[str, Any], output: int, name: str) -> dict[str, Any]:
        """The event of this name that draws a part."""
        return next(
            event
            for event in config["dependencies"]
            if output in event["outputs"] and name in [target[1] for target in event["targets"]]
        )

    def _run(self, event: dict[str, Any], happened: dict[str, str] | None = None) -> Any:
        body = {
            "fn_index": event["id"],
            "data": [None] * len(event["inputs"]),
            "session_hash": self._session,
            "event_data": happened,
            "trigger_id": event["targets"][0][0],
        }
        return json.loads(self._get("gradio_api/run/predict", json.dumps(body).encode()))["data"]

    def _get(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: bytes = response.read()
            return answer
