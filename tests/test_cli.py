"""The command line as a user meets it: exit codes, one clear line for everything that is wrong, nothing half-made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggufy import demo
from ggufy.core.errors import DiskError
from ggufy.formats.gguf import read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.llama.install import Llama
from ggufy.steps import files_made
from ggufy.steps.context import Context
from ggufy.system.files import PART_SUFFIX
from ggufy.system.settings import Settings
from tests import tiny
from tests.conftest import Finished, Ggufy

pytestmark = pytest.mark.tools
FAST = ("--types", "Q8_0", "--imatrix", "none")


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny RWKV-7 checkpoint and its vocabulary."""
    return tiny.checkpoint(tmp_path, "7", width=256)


def failed(done: Finished, *words: str, code: int = 1) -> None:
    """One line on stderr with these words, nothing on stdout."""
    lines = [line for line in done.err.splitlines() if line.startswith("ggufy: ")]
    assert done.code == code, done.err
    assert len(lines) == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in lines[0], lines[0]
    assert done.out == ""


def nothing_under(out: Path) -> None:
    """No product and no part of one."""
    assert [path for path in out.rglob("*") if path.name.endswith((".gguf", PART_SUFFIX))] == []


def test_a_small_model_with_its_own_vocabulary(ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path) -> None:
    done = ggufy("quantize", model[0], *FAST, "--vocab", model[1], "--out", tmp_path / "o", "--name", "My Model")
    assert done.code == 0, done.err
    folder = tmp_path / "o" / "My-Model-GGUF"
    assert {path.name for path in folder.glob("*.gguf")} == {"My-Model-F16.gguf", "My-Model-Q8_0.gguf"}
    assert read_head(folder / "My-Model-Q8_0.gguf").metadata["general.name"] == "My-Model"
    assert "My-Model-GGUF" in done.out
    assert "8.5" in done.out or "9." in done.out


def test_the_demo_is_converted_with_its_own_vocabulary(ggufy: Ggufy, tmp_path: Path) -> None:
    assert ggufy("convert", "demo", tmp_path / "demo.gguf").code == 0
    assert len(read_head(tmp_path / "demo.gguf").metadata["tokenizer.ggml.tokens"]) == 4096


def test_a_gguf_as_source_and_its_outtype(ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path) -> None:
    base = tmp_path / "mine.bf16.gguf"
    assert ggufy("convert", model[0], base, "--vocab", model[1], "--outtype", "bf16").code == 0
    before = base.read_bytes()
    done = ggufy("quantize", base, *FAST, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    folder = tmp_path / "o" / "mine-GGUF"
    assert {path.name for path in folder.glob("*.gguf")} == {"mine-BF16.gguf", "mine-Q8_0.gguf"}
    assert base.read_bytes() == before
    failed(ggufy("quantize", folder / "mine-Q8_0.gguf", *FAST, "--out", tmp_path / "p"), "quantized already")
    failed(ggufy("quantize", base, *FAST, "--outtype", "f32", "--out", tmp_path / "p"), "bf16", "--outtype", code=2)
    nothing_under(tmp_path / "p")


def test_all_steps_with_an_own_calibration_text_and_imatrix(
    ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path
) -> None:
    text = tmp_path / "my text.txt"
    text.write_text("The keeper of the light said nothing, and the wind rose over the sea. " * 60, encoding="utf-8")
    vocab = ("--vocab", model[1])
    done = ggufy(
        "quantize",
        model[0],
        "--types",
        "IQ2_XS,Q4_K_M",
        *vocab,
        "--calibration",
        text,
        "--out",
        tmp_path / "o",
        "--json",
    )
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [row.get("type") for row in record["files"]] == [None, None, "Q4_K_M", "IQ2_XS"]
    imatrix = Path(record["folder"]) / "tiny-v7-imatrix.gguf"
    assert imatrix.is_file()
    again = ggufy(
        "quantize", model[0], "--types", "IQ2_XS", *vocab, "--imatrix", imatrix, "--out", tmp_path / "p", "--json"
    )
    assert again.code == 0, again.err
    first, second = (json.loads(d.out)["files"][-1] for d in (done, again))
    quants = [read_head(Path(json.loads(d.out)["folder"]) / r["file"]) for d, r in ((done, first), (again, second))]
    assert quants[0].tensors == quants[1].tensors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "demo", "--types", "Q4_KM"], ["Q4_KM", "Q4_K_M"]),
        (["quantize", "demo", "--types", "IQ2_XS", "--imatrix", "none"], ["IQ2_XS", "imatrix"]),
        (["quantize", "demo", "--threads", "0"], ["--threads"]),
        (["quantize", "demo", "--chunks", "-1"], ["--chunks"]),
        (["quantize", "demo", "--name", "///"], ["--name"]),
    ],
)
def test_wrong_requests_are_usage(ggufy: Ggufy, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    failed(ggufy(*arguments, "--out", tmp_path), *words, code=2)
    nothing_under(tmp_path)


def test_argparse_errors_are_usage_too(ggufy: Ggufy) -> None:
    assert ggufy("quantize").code == 2
    assert ggufy("quantize", "demo", "--outtype", "q8_0").code == 2
    assert ggufy().code == 2


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


class RunsCode:
    """What a hostile pickle does: calls a function of its choice when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/ggufy-test-was-here",)


def broken(kind: str, folder: Path) -> Path:  # noqa: PLR0911
    """A source that is wrong in one way."""
    good, _ = tiny.checkpoint(folder, "7", width=256)
    state = torch.load(good, weights_only=True)
    path = folder / f"{kind}.pth"
    match kind:
        case "missing":
            return folder / "missing.pth"
        case "truncated":
            path.write_bytes(good.read_bytes()[:-5000])
        case "zip":
            shutil.make_archive(str(folder / "zip"), "zip", root_dir=folder, base_dir="vocab.txt")
            (folder / "zip.zip").rename(path)
        case "text":
            path.write_text("not a model", encoding="utf-8")
        case "hostile":
            save(path, {"emb.weight": RunsCode()})
        case "shape":
            state["blocks.1.att.key.weight"] = state["blocks.1.att.key.weight"][:-1]
        case "lacking":
            del state["blocks.1.ffn.value.weight"]
        case "nan":
            state["blocks.0.ffn.key.weight"][3, 5] = float("nan")
        case "inf":
            state["head.weight"][0, 0] = float("inf")
        case "overflow":
            state["blocks.0.att.output.weight"][1, 1] = 70000.0
    return path if path.exists() else save(path, state)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["missing.pth", "does not exist"]),
        ("truncated", ["truncated.pth"]),
        ("zip", ["zip.pth"]),
        ("text", ["text.pth"]),
        ("hostile", ["hostile.pth"]),
        ("shape", ["blocks.1.att.key.weight"]),
        ("lacking", ["blocks.1.ffn.value.weight"]),
        ("nan", ["blocks.0.ffn.key.weight"]),
        ("inf", ["head.weight"]),
        ("overflow", ["blocks.0.att.output.weight", "--outtype bf16"]),
    ],
)
def test_bad_sources(ggufy: Ggufy, kind: str, words: list[str], tmp_path: Path) -> None:
    path = broken(kind, tmp_path)
    out = tmp_path / "o"
    failed(ggufy("quantize", path, *FAST, "--vocab", tmp_path / "vocab.txt", "--out", out), *words)
    nothing_under(out)
    assert not Path("/tmp/ggufy-test-was-here").exists()


def test_a_failed_job_is_run_again_by_the_same_command(ggufy: Ggufy, tmp_path: Path) -> None:
    path = broken("nan", tmp_path)
    command = ("quantize", path, *FAST, "--vocab", tmp_path / "vocab.txt", "--out", tmp_path / "o")
    failed(ggufy(*command), "blocks.0.ffn.key.weight")
    assert "failed" in ggufy("status", "--out", tmp_path / "o").out
    (tmp_path / "tiny-v7.pth").replace(path)  # mended
    assert ggufy(*command).code == 0
    status = json.loads(ggufy("status", "--json", "--out", tmp_path / "o").out)["jobs"]
    assert sorted(job["status"] for job in status) == ["done", "failed"]


def test_vocabularies_that_do_not_fit(ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o")
    failed(ggufy("quantize", model[0], *FAST, *out), "--vocab")
    small = tmp_path / "small.txt"
    small.write_text("".join(model[1].read_text(encoding="utf-8").splitlines(keepends=True)[:50]), encoding="utf-8")
    failed(ggufy("quantize", model[0], *FAST, "--vocab", small, *out), "small.txt")
    failed(ggufy("quantize", model[0], *FAST, "--vocab", tmp_path / "none.txt", *out), "none.txt")
    nothing_under(tmp_path / "o")


def test_calibration_text_too_short(ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path) -> None:
    out, text = tmp_path / "o", tmp_path / "short.txt"
    text.write_text("too short", encoding="utf-8")
    command = ("quantize", model[0], "--types", "Q8_0", "--vocab", model[1], "--calibration", text, "--out", out)
    failed(ggufy(*command), "short.txt")
    nothing_under(out)
    text.write_text(" the" * 600, encoding="utf-8")  # long enough for a file, not for the tool
    failed(ggufy(*command), "short.txt", "tokens", "--calibration")
    assert [path.name for path in out.rglob("*.gguf")] == ["tiny-v7-F16.gguf"]  # what was finished stays


def test_imatrix_of_another_model(
    ggufy: Ggufy, model: tuple[Path, Path], demo_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    other = demo_run[0] / f"{demo.MODEL}-imatrix.gguf"
    out = ("--vocab", model[1], "--out", tmp_path / "o")
    base = ("quantize", model[0], "--types", "Q8_0", *out)
    failed(ggufy(*base, "--imatrix", other), "another model")
    failed(ggufy(*base, "--imatrix", tmp_path / "no.gguf", "--name", "b"), "no.gguf")
    failed(ggufy(*base, "--imatrix", model[1], "--name", "c"), "no imatrix")
    assert [path.name for path in (tmp_path / "o").rglob("*imatrix.gguf")] == []


def test_other_options_do_not_mix_into_a_folder(ggufy: Ggufy, model: tuple[Path, Path], tmp_path: Path) -> None:
    base = ("quantize", model[0], *FAST, "--vocab", model[1], "--out", tmp_path / "o")
    assert ggufy(*base).code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*.gguf")}
    failed(ggufy(*base, "--outtype", "f32"), "--name")
    failed(ggufy(*base, "--outtype", "f32"), "--name")  # and the refused job does not become the folder's owner
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*.gguf")} == before
    assert ggufy(*base).code == 0


def test_two_runs_on_one_folder(
    ggufy: Ggufy, ggufy_environment: dict[str, str], model: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "o"
    folder = out / f"{demo.MODEL}-GGUF"
    first = subprocess.Popen(
        [sys.executable, "-m", "ggufy", "quantize", "demo", "--types", "all", "--no-evaluate", "--out", str(out)],
        env=ggufy_environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stderr is not None
    try:
        for line in first.stderr:
            if line.startswith("[ 1/"):
                break
        failed(ggufy("quantize", "demo", "--types", "all", "--no-evaluate", "--out", out), "another run", str(folder))
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_no_permission(ggufy_environment: dict[str, str], model: tuple[Path, Path], tmp_path: Path) -> None:
    """As a user who is not root, whom permissions do not hold."""
    out = tmp_path / "o"
    out.mkdir(mode=0o555)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere: the error itself is tested in test_files.py")
    done = subprocess.run(
        [sys.executable, "-m", "ggufy", "quantize", str(model[0]), *FAST, "--vocab", str(model[1]), "--out", str(out)],
        env=ggufy_environment,
        capture_output=True,
        text=True,
    )
    failed(Finished(done.returncode, done.stdout, done.stderr), "no permission", "--out")


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A disk of 20 MB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_is_seen_before_starting(ggufy: Ggufy, small_disk: Path) -> None:
    failed(ggufy("quantize", "demo", "--types", "all", "--out", small_disk), "too little", "--types")
    nothing_under(small_disk)


def test_a_disk_that_fills_up_meanwhile(
    llama: Llama, model: tuple[Path, Path], small_disk: Path, tmp_path: Path
) -> None:
    """Past the check before starting, somebody else takes the space: the step says so and leaves nothing half-made."""
    settings = Settings.from_env({"GGUFY_OUT": str(small_disk), "HOME": str(tmp_path)})
    options = JobOptions(source=str(model[0]), vocab=str(model[1]), quant_types=("Q8_0",), imatrix="none")
    job = make_job(options, settings)
    ctx = Context(
        request=job.request,
        folder=small_disk,
        logs=tmp_path / "logs",
        work=tmp_path / "work",
        settings=settings,
        llama=llama,
        limit=lambda: 1,
        report=lambda step, fraction: None,
        stopped=lambda: False,
    )
    convert, quantize = files_made(job.request)
    convert.run(ctx)
    (small_disk / "hog").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(DiskError, match="disk is full while writing tiny-v7-Q8_0.gguf"):
        quantize.run(ctx)
    whole = {path.name for path in small_disk.iterdir() if path.suffix != ".part"}  # the rest is for the next run
    assert whole == {"tiny-v7-F16.gguf", "hog"}
    for part in small_disk.glob("*.part"):
        part.unlink()
    (small_disk / "tiny-v7-F16.gguf").replace(small_disk / "hog too")
    with pytest.raises(DiskError, match="full"):
        convert.run(ctx)
    assert {path.name for path in small_disk.iterdir()} == {"hog", "hog too"}


def test_doctor(ggufy: Ggufy, tmp_path: Path) -> None:
    done = ggufy("doctor", "--json", "--out", tmp_path, HF_TOKEN="hf_secret")
    findings = json.loads(done.out)
    assert done.code == (0 if findings["ok"] else 1)
    assert findings["threads"] >= 1
    assert findings["packages"]["torch"]
    assert findings["hf_token"] is True
    assert "hf_secret" not in done.out + done.err
    assert "llama.cpp" in ggufy("doctor", "--out", tmp_path).out


def test_status_of_nothing(ggufy: Ggufy, tmp_path: Path) -> None:
    assert json.loads(ggufy("status", "--json", "--out", tmp_path).out) == {"jobs": []}
    assert "quantize SOURCE" in ggufy("status", "--out", tmp_path).out
