"""Which imatrix files are taken, and how one is made in segments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from ggufy.core.errors import CalibrationError, Cancelled
from ggufy.core.job import PLAIN, Status
from ggufy.formats.gguf import GgufHead, TensorInfo
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama import tools
from ggufy.llama.install import Llama
from ggufy.records.run_state import RunState
from ggufy.steps import imatrix
from ggufy.steps.imatrix import check_imatrix, finished_segment, segment_size
from ggufy.system.settings import Settings
from ggufy.texts import calibration
from tests import tiny
from tests.folder_hub import LocalHub, connected

W = "blk.0.time_mix_key.weight"
BASE = GgufHead(
    metadata={},
    tensors={W: TensorInfo(name=W, shape=(256, 64), type="F16", offset=0, size=0)},
    metadata_end=0,
    data_start=0,
    file_size=0,
)


def write(
    path: Path, *, kind: str = "imatrix", name: str = W, columns: int = 256, bad: float = 1, count: float = 9
) -> Path:
    writer = GGUFWriter(path, "")
    writer.add_type(kind)
    sums = np.ones((1, columns), dtype=np.float32)
    sums[0, 3] = bad
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", np.full((1, 1), count, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_sound_one_is_taken(tmp_path: Path) -> None:
    check_imatrix(write(tmp_path / "i.gguf"), BASE, [W], shown_as="i.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "model"}, "no imatrix"),
        ({"name": "blk.0.attn_q.weight"}, f"no data for {W}"),
        ({"columns": 128}, "another model"),
        ({"bad": float("nan")}, "not finite"),
        ({"bad": float("inf")}, "not finite"),
        ({"count": 0}, "no token"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = write(tmp_path / "i.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=words):
        check_imatrix(path, BASE, [W], shown_as="i.gguf")


# ---- segments


@pytest.mark.parametrize("pace", [0.01, 1.0, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("total", [2, 3, 5, 7, 40, 1000])
def test_segments_add_up_and_none_is_too_short_to_start(total: int, pace: float) -> None:
    sizes: list[int] = []
    while sum(sizes) < total:
        assert total - sum(sizes) >= min(3, total)
        sizes.append(segment_size(total - sum(sizes), pace))
    assert sum(sizes) == total
    assert max(sizes) * pace <= 130 or max(sizes) <= 5 or len(sizes) == 1 or max(sizes) - 120 / pace <= 3


def test_the_last_whole_segment_counts(tmp_path: Path) -> None:
    assert finished_segment(tmp_path / "none") == (0, None)
    for name in ("000004.gguf", "000016.gguf", "000020.gguf.part"):
        (tmp_path / name).touch()
    assert finished_segment(tmp_path) == (16, tmp_path / "000016.gguf")


@pytest.mark.tools
def test_stopped_in_every_segment_it_ends_bit_for_bit_like_one_run(
    tmp_path: Path, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of three chunks, the program stopped after each: same sums and counts as the tool in one go."""
    out = {"GGUFY_OUT": str(tmp_path / "o"), "GGUFY_CACHE": str(Settings.from_env().cache), "HOME": str(tmp_path)}
    settings = Settings.from_env(out)
    checkpoint, vocab = tiny.checkpoint(tmp_path, "6", width=256)
    job_options = JobOptions(
        source=str(checkpoint), vocab=str(vocab), quant_types=("Q8_0",), chunks=11, rounding=PLAIN
    )
    job = make_job(job_options, settings)
    runner = Runner(settings=settings, llama=llama)
    monkeypatch.setattr(imatrix, "segment_size", lambda left, pace: left if left < 6 else 3)
    real, ran = imatrix._run_segment, []

    def run_then_stop(*arguments: object, **options: int) -> None:
        if ran and ran[-1] == options["first"]:
            return real(*arguments, **options)  # type: ignore[arg-type]
        ran.append(options["first"])
        raise Cancelled("stopped before this segment")

    monkeypatch.setattr(imatrix, "_run_segment", run_then_stop)
    for _ in range(3):  # each start does the segment before which the last one was stopped
        with pytest.raises(Cancelled):
            runner.run(job, RunState())
    ended = runner.run(job, RunState())
    assert ended.status is Status.DONE, ended.error
    assert ran == [0, 3, 6]
    made = runner.folder(job) / "tiny-v6-imatrix.gguf"
    text = calibration.pinned(settings.cache, job.request.calibration_sha256)
    assert text is not None
    whole = tmp_path / "whole.gguf"
    base = runner.folder(job) / "tiny-v6-F16.gguf"
    command = tools.imatrix_command(
        llama.tool("llama-imatrix"), model=base, text=text.name, out=whole, threads=1, chunks=11
    )
    subprocess.run(command, cwd=text.parent, check=True, capture_output=True)
    found, expected = GGUFReader(made), GGUFReader(whole)
    assert [t.name for t in found.tensors] == [t.name for t in expected.tensors]
    for a, b in zip(found.tensors, expected.tensors, strict=True):
        assert a.data.tobytes() == b.data.tobytes(), a.name
    keys = {"general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"}
    for key in keys:
        assert found.fields[key].contents() == expected.fields[key].contents(), key
    assert not list((settings.out / "ggufy-state").rglob("work/*/*"))


@pytest.mark.tools
def test_segments_come_back_from_the_state_repo_on_a_new_disk(
    tmp_path: Path, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is lost after two segments: the third start begins at the second one's end, and nothing is kept at
    the end."""
    monkeypatch.setattr(imatrix, "segment_size", lambda left, pace: left if left < 6 else 3)
    monkeypatch.setattr(imatrix, "_BETWEEN_SAVES_S", 0.0)
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    job_options = JobOptions(
        source=str(checkpoint), vocab=str(vocab), quant_types=("Q8_0",), chunks=11, owner="me", rounding=PLAIN
    )
    hub = LocalHub(tmp_path / "hub")
    real, ran = imatrix._run_segment, []

    def run(*arguments: object, **options: int) -> None:
        if len(ran) == 2:
            ran.append(-1)
            raise Cancelled("the machine is gone")
        ran.append(options["first"])
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(imatrix, "_run_segment", run)

    def start(out: Path) -> Status:
        folders = {"GGUFY_OUT": str(out), "GGUFY_CACHE": str(Settings.from_env().cache), "HOME": str(tmp_path)}
        settings = Settings.from_env(folders)
        with connected(out, hub, "me") as workspace:
            runner = Runner(settings=settings, llama=llama, workspace=workspace)
            return runner.run(make_job(job_options, settings), RunState()).status

    with pytest.raises(Cancelled):
        start(tmp_path / "first disk")
    assert any("000006.gguf" in name for name in hub.list_files("me/ggufy-state", kind="dataset"))
    assert start(tmp_path / "second disk") is Status.DONE
    assert ran == [0, 3, -1, 6]
    assert "tiny-v7-imatrix.gguf" in hub.list_files("me/tiny-v7-GGUF", kind="model")
    assert not any(name.endswith(".gguf") for name in hub.list_files("me/ggufy-state", kind="dataset"))
