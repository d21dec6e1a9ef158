"""Files of rwkv.cpp and what becomes one, on a Hub: described by their start, converted while they are fetched."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from ggufy.formats import prefetched
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.models.layouts import origins_of
from ggufy.net.http_file import BLOCK, BlockFile, HttpFile
from ggufy.net.http_get import hub_address
from ggufy.rwkvcpp.convert import convert_streamed
from ggufy.sources import hub
from ggufy.system.files import sha256
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - a fixture
from tests.test_rwkvcpp_convert import made
from tests.test_rwkvcpp_quantize import base
from tests.test_rwkvcpp_source import FORM, nothing_beside, told


@pytest.mark.parametrize("version", ["4", "5.2", "7"])
def test_a_checkpoint_is_converted_while_it_is_fetched(
    tmp_path: Path, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(prefetched, "PIECE", 50_000)  # or else every tensor of a tiny model is one
    path = tiny.save(tmp_path / "model.pth", tiny.weights(version))
    local_hub.put(f"alice/rwkvcpp-{version}", "model.pth", path.read_bytes())
    source = hub.resolve(f"alice/rwkvcpp-{version}", endpoint=local_hub.endpoint)
    there = open_streamed(source, endpoint=local_hub.endpoint)
    digest = convert_streamed(there, origins_of(there.shapes), tmp_path / "a.bin", type_name="FP16")
    assert digest == sha256(tmp_path / "a.bin") == made(path, tmp_path / "b.bin", "FP16")


@pytest.mark.parametrize("version", ["4", "7"])
def test_a_file_on_a_hub_is_told_by_its_start(tmp_path: Path, local_hub: LocalHub, version: str) -> None:
    path = base(tmp_path, version, "FP32", layers=6, width=512)
    name = f"rwkv-{version}-FP32.bin"
    local_hub.put(f"alice/bins-{version}", name, path.read_bytes())
    reference = replace(hub.parse_reference(f"alice/bins-{version}:{name}"), revision="main")
    remote = HttpFile(hub_address(reference, token=None, endpoint=local_hub.endpoint))
    found: dict[str, Any] = {"path": name, "size": path.stat().st_size, "streams": False}
    with io.BufferedReader(BlockFile(remote, budget=8 << 20), BLOCK) as file:
        FORM.describe(cast(BinaryIO, file), nothing_beside, found, None)
    here = told(path)
    assert (found["shapes"], found["parameters"], found["version"]) == (here.shapes, here.parameters, version)
    assert 0 < remote.received < path.stat().st_size / 2
