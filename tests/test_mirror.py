"""HF_ENDPOINT: a mirror of the Hub is asked for everything, and hears the token only where that is meant."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.errors import UsageError
from ggufy.jobs import workspace
from ggufy.jobs.workspace import connect
from ggufy.system.settings import Settings
from tests import tiny
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

MIRROR = "https://hf-mirror.com"


def settings(tmp_path: Path, **more: str) -> Settings:
    return Settings.from_env({"HOME": str(tmp_path), "HF_TOKEN": "hf_of_mine", **more})


@pytest.mark.fast
@pytest.mark.parametrize(
    "endpoint",
    ["", "https://huggingface.co", "https://hub-ci.huggingface.co/", "http://127.0.0.1:8000", "http://localhost"],
)
def test_the_hub_and_this_machine_get_the_token(tmp_path: Path, endpoint: str) -> None:
    found = settings(tmp_path, HF_ENDPOINT=endpoint)
    assert (found.hf_token, found.withheld) == ("hf_of_mine", "")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        (MIRROR, "hf-mirror.com"),
        ("https://huggingface.co.example.org/", "huggingface.co.example.org"),
        ("https://nothuggingface.co", "nothuggingface.co"),
        ("http://127.0.0.1.example.org", "127.0.0.1.example.org"),
        ("http://0.0.0.0:8000", "0.0.0.0"),
        ("https://huggingface.co@example.org", "example.org"),
    ],
)
def test_a_mirror_gets_it_only_if_that_is_said(tmp_path: Path, endpoint: str, host: str) -> None:
    found = settings(tmp_path, HF_ENDPOINT=endpoint)
    assert (found.hf_token, found.withheld) == (None, host)
    trusted = settings(tmp_path, HF_ENDPOINT=endpoint, GGUFY_TOKEN_TO_MIRROR="1")
    assert (trusted.hf_token, trusted.withheld) == ("hf_of_mine", "")
    assert Settings.from_env({"HOME": str(tmp_path), "HF_ENDPOINT": endpoint}).withheld == ""


@pytest.mark.fast
def test_nothing_is_published_by_way_of_a_mirror_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"publishing by way of hub\.example\.org shows it your token: set GGUFY_TOKEN"
    ):
        connect(settings(tmp_path, HF_ENDPOINT="https://hub.example.org", GGUFY_HUB="hf"))
    monkeypatch.setattr(workspace, "hub_host", lambda: "hf-mirror.com")
    for trust in ("", "1"):
        with pytest.raises(UsageError, match=r"hf-mirror\.com is a mirror that takes no uploads: unset HF_ENDPOINT"):
            connect(settings(tmp_path, HF_ENDPOINT=MIRROR, GGUFY_HUB="hf", GGUFY_TOKEN_TO_MIRROR=trust))


@pytest.mark.tools
def test_looking_converting_and_downloading_ask_the_mirror_alone(
    local_hub: LocalHub, ggufy: Any, tmp_path: Path
) -> None:
    """Another host would be asked by way of a proxy that is not there. Its name is not that of this machine, so the
    token stays here, unless it is said that it may go."""
    path, vocab = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    local_hub.put("alice/mirrored", "tiny.pth", path.read_bytes())
    dead = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "0.0.0.0,localhost"}
    environment = local_hub.environment(tmp_path) | dead
    environment |= {"HF_ENDPOINT": local_hub.endpoint.replace("127.0.0.1", "0.0.0.0"), "HF_TOKEN": ALICE}
    for more in ({}, {"GGUFY_TOKEN_TO_MIRROR": "1"}):
        local_hub.clear()
        done = ggufy("inspect", "alice/mirrored", "--json", **environment, **more)
        assert json.loads(done.out)["architecture"] == "rwkv7", done.err
        assert ("HF_TOKEN is not sent to 0.0.0.0" in done.err) is (not more)
        tokens = {line["token"] for line in local_hub.log("/api/")}
        assert tokens == {ALICE if more else ""} and local_hub.log("/__cdn/")
    arguments = ["--vocab", vocab, "--types", "Q8_0", "--imatrix", "none"]
    done = ggufy("quantize", "alice/mirrored", *arguments, "--out", tmp_path / "o", **environment)
    assert done.code == 0, done.err
    assert {line["token"] for line in local_hub.log()} == {"", ALICE}  # the latter of before


@pytest.mark.tools
def test_a_text_comes_from_the_mirror_too(local_hub: LocalHub, ggufy: Any, tmp_path: Path) -> None:
    words = "The keeper of the light said nothing, and the wind rose over the sea. " * 90
    local_hub.put("alice/texts", "text.txt", words.encode(), type="dataset", lfs=0)
    path, vocab = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    environment = local_hub.environment(tmp_path) | {"GGUFY_CACHE": str(tmp_path / "cache")}
    arguments = ["--vocab", vocab, "--types", "Q8_0", "--calibration", "alice/texts:text.txt", "--chunks", "2"]
    done = ggufy("quantize", path, *arguments, "--out", tmp_path / "o", **environment)
    assert done.code == 0, done.err
    assert any("/datasets/alice/texts/resolve/" in line["path"] for line in local_hub.log())
