"""Files of rwkv.cpp and what becomes one, on a Hub: described by their start, converted while they are fetched."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

from pathlib import Path

import pytest

from ggufy.formats import prefetched
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.models.layouts import origins_of
from ggufy.rwkvcpp.convert import convert_streamed
from ggufy.sources import hub
from ggufy.sources.inspect import inspect
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import tiny
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - a fixture
from tests.test_rwkvcpp_convert import made
from tests.test_rwkvcpp_quantize import base

SETTINGS = Settings.from_env({})


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
    report = inspect(f"alice/bins-{version}:{name}", SETTINGS, endpoint=local_hub.endpoint)
    here = inspect(str(path), SETTINGS)
    assert (report.problem, report.kind, report.streams) == ("", "rwkvcpp", False)
    assert (report.shapes, report.parameters, report.version) == (here.shapes, here.parameters, version)
    assert 0 < report.received < path.stat().st_size / 2
