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
        self._ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self._look = self._event(config, "tick")
        self._act = self._event(config, "click")
        self.banner = ""
        self._jobs: dict[str, str] = {}  # HTML by piece
        self._shown = ""  # digests of these

    @property
    def shown(self) -> str:
        """HTML, as the tab shows it."""
        return self.banner + "".join(self._jobs.values())

    def look(self) -> str:
        """What the timer does; returns what the tab shows then."""
        self._run(self._look)
        return self.shown

    def act(self, action: str, job: str = "") -> str:
        """A button; returns what the tab shows then."""
        self._run(self._act, {"action": action, "job": job, "size": ""})
        return self.shown

    def _event(self, config: dict[str, Any], name: str) -> dict[str, Any]:
        """The event of this name that draws banner and jobs."""
        return next(
            event
            for event in config["dependencies"]
            if {self._ids["gg-banner"], self._ids["gg-jobs"]} <= set(event["outputs"])
            and name in [target[1] for target in event["targets"]]
        )

    def _run(self, event: dict[str, Any], happened: dict[str, str] | None = None) -> None:
        asked = {self._ids["gg-jobs"]: {"shown": self._shown, "opened": {}, "count": 0}}
        body = {
            "fn_index": event["id"],
            "data": [asked.get(number) for number in event["inputs"]],
            "session_hash": self._session,
            "event_data": happened,
            "trigger_id": event["targets"][0][0],
        }
        answer = json.loads(self._get("gradio_api/run/predict", json.dumps(body).encode()))
        drawn = dict(zip(event["outputs"], answer["data"], strict=True))
        if isinstance(banner := drawn[self._ids["gg-banner"]], str):
            self.banner = banner
        if patch := drawn[self._ids["gg-jobs"]].get("props", {}).get("patch"):
            self._jobs = {key: patch["html"].get(key, self._jobs.get(key, "")) for key, _ in patch["order"]}
            self._shown = " ".join(digest for _, digest in patch["order"])

    def _get(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: bytes = response.read()
            return answer
