"""Large files to and from the Hugging Face Hub: broken off, damaged, continued, and never loud."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from ggufy.core.errors import GgufyError, HubAway, HubError
from ggufy.hub import xet
from ggufy.hub.huggingface import HuggingFaceHub
from tests.hub_client import (  # noqa: F401 - fixtures
    ADD,
    COMMIT,
    NUMBERS,
    change,
    commits,
    connect,
    hub,
    impatient,
    large,
    repo,
    short_waits,
    wait_for,
)
from tests.hub_fixture import ALICE, ALICE_READ, BOB, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server

# The client library's LFS upload uses what its HTTP library is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def test_a_download_goes_on_where_the_last_process_ended(
    hub: HuggingFaceHub, local_hub: Server, repo: str, large: Path, tmp_path: Path
) -> None:
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    (tmp_path / "back.gguf.download").write_bytes(large.read_bytes()[:7_000_000])
    local_hub.clear()
    local_hub.fault("GET /__cdn/", cut=1_000_000)
    hub.download(repo, "m.gguf", tmp_path / "back.gguf", kind="dataset")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()
    ranges = [line["range"] for line in local_hub.log("/__cdn/")]
    assert ranges[0] == "bytes=7000000-" and len(ranges) == 2 and ranges[1] > ranges[0]
    assert [line["token"] for line in local_hub.log("/__cdn/")] == ["", ""], "the token went to another host"


def test_the_beginning_of_another_file_is_thrown_away(
    hub: HuggingFaceHub, repo: str, large: Path, tmp_path: Path
) -> None:
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    (tmp_path / "back.gguf.download").write_bytes(b"another version" * 1000)
    hub.download(repo, "m.gguf", tmp_path / "back.gguf", kind="dataset")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()


def test_content_that_does_not_fit_its_digest_is_never_named(
    hub: HuggingFaceHub, local_hub: Server, repo: str, tmp_path: Path
) -> None:
    local_hub.put(repo, "bad.gguf", b"x" * 3000, type="dataset", oid="ab" * 32)
    with pytest.raises(HubError, match="arrived damaged"):
        hub.download(repo, "bad.gguf", tmp_path / "bad.gguf", kind="dataset")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_an_upload_that_breaks_off_is_taken_up_again(
    hub: HuggingFaceHub,
    local_hub: Server,
    repo: str,
    large: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", way == "lfs")
    if way == "lfs":
        for match in ("POST .*/objects/batch", "PUT /__lfs/"):
            local_hub.fault(match, status=400)
            with pytest.raises(HubError, match="HTTP status 400"):
                hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    local_hub.fault("xet-write-token", status=404)  # hf_xet does not ask again, and the Hub itself is well
    local_hub.fault("PUT /__lfs/", status=500)
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    assert hub.list_files(repo, kind="dataset")["m.gguf"].holds(large)
    assert len(commits(local_hub, repo)) == 3


def test_an_upload_that_moves_nothing_is_given_up(
    hub: HuggingFaceHub, repo: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xet, "_SILENCE_S", -1.0)
    with pytest.raises(HubAway, match="nothing moved"):
        hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    monkeypatch.undo()
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})


# ---- secrets


def test_the_token_is_in_no_error_and_no_log(
    connect: Callable[..., HuggingFaceHub],
    local_hub: Server,
    repo: str,
    large: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub, told = connect(), list[str]()
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    for fault in ({"status": 500, "times": 4}, {"status": 403}, {"status": 401}, {"status": 429}, {"cut": 3}):
        local_hub.fault(COMMIT, **fault)
        try:
            hub.commit(repo, kind="dataset", message="next", add={"n.txt": json.dumps(fault).encode()})
        except GgufyError as error:
            cause: BaseException | None = error
            while cause is not None:
                told.append(repr(cause))
                cause = cause.__cause__ or cause.__context__
    assert len(told) >= 8
    assert ALICE not in "\n".join(told) + caplog.text + repr(hub) + repr(vars(hub).get("_tries"))


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_nothing_is_printed(
    hub: HuggingFaceHub,
    repo: str,
    large: Path,
    way: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", way == "lfs")
    hub.commit(repo, kind="dataset", message="second", add={"a.gguf": large, "b.gguf": b"GGUF"})
    assert capfd.readouterr() == ("", "")
