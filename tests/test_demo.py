"""The whole way on the bundled checkpoint: 31 files that work, the sizes forecast, quality in the right order."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ggufy import demo
from ggufy.core.catalog import BY_NAME, QUANT_TYPES
from ggufy.formats.gguf import read_head, read_tensor
from ggufy.llama import tools
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.search.loss import MOST_IMPORTANCE
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts import calibration
from tests.conftest import Ggufy

pytestmark = pytest.mark.tools
NAMES = [row.name for row in QUANT_TYPES]
KLD_LADDER = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K"]
CHUNKS = 12


def tool(llama_bin: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {"GOMP_SPINCOUNT": "0", "PATH": "/usr/bin:/bin"}
    command = [str(llama_bin / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, errors="replace")


def said(pattern: str, llama_bin: Path, name: str, *arguments: object) -> str:
    """What a tool printed after `pattern`. Its last lines get lost now and then, when it ends before its own logger
    does (exit code 0 all the same), so it is asked again then."""
    for _ in range(5):
        done = tool(llama_bin, name, *arguments)
        assert done.returncode == 0, done.stderr[-500:]
        if match := re.search(pattern + r"\s*(-?[\d.]+|-?nan|-?inf)", done.stdout + done.stderr):
            return match[1]
    raise AssertionError(f"{name} did not print {pattern}")


def test_the_checkpoint_is_trained_and_small() -> None:
    facts = json.loads(demo.FACTS.read_text(encoding="utf-8"))
    assert sha256(demo.CHECKPOINT) == facts["sha256"]
    assert demo.CHECKPOINT.stat().st_size < 20e6
    assert 4e6 < facts["parameters"] < 10e6
    assert facts["heldout_loss"] < 0.6 * math.log(4096)  # untrained: ln 4096 = 8.3 nats


def test_31_files_with_final_names_and_nothing_else(demo_run: tuple[Path, dict[str, object]]) -> None:
    folder, record = demo_run
    expected = {f"{demo.MODEL}-{name}.gguf" for name in [*NAMES, "F16", "imatrix"]}
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == expected
    assert len(expected) == 31
    assert record["status"] == "done"


def test_sizes_were_forecast_to_the_byte(demo_run: tuple[Path, dict[str, object]], ggufy: Ggufy) -> None:
    """The forecast is computed again from the head of the base alone."""
    from ggufy.quantize.recipe import ImatrixFacts, forecast
    from ggufy.quantize.task import planned_facts

    folder, _ = demo_run
    base = read_head(folder / f"{demo.MODEL}-F16.gguf")
    dataset = read_head(folder / f"{demo.MODEL}-imatrix.gguf").metadata["imatrix.datasets"][0]
    for name in NAMES:
        path = folder / f"{demo.MODEL}-{name}.gguf"
        recipe = {tensor.name: tensor.type for tensor in read_head(path).tensors.values()}
        facts = ImatrixFacts(file=f"{demo.MODEL}-imatrix.gguf", dataset=dataset)
        assert forecast(base, recipe, facts, planned_facts(compensated=True)).size == path.stat().st_size, name


def test_json_names_digests_and_no_twins(demo_run: tuple[Path, dict[str, object]]) -> None:
    folder, record = demo_run
    files = {row["file"]: row for row in record["files"]}  # type: ignore[attr-defined]
    assert len(files) == 31
    for name, row in files.items():
        assert row["size"] == (folder / name).stat().st_size
        assert row["sha256"] == sha256(folder / name)
    assert not any(row.get("same_tensors_as") for row in files.values())


def test_no_local_path_in_any_file(demo_run: tuple[Path, dict[str, object]]) -> None:
    folder, _ = demo_run
    home, cache = str(Path.home()).encode(), str(Settings.from_env().cache).encode()
    for path in folder.glob("*.gguf"):
        head = path.read_bytes()[: read_head(path).data_start]
        for place in (str(folder).encode(), cache, home + b"/", b"/tmp/", str(demo.FOLDER).encode()):
            assert place not in head, (path.name, place)


def test_the_imatrix_has_data_for_every_quantized_tensor(demo_run: tuple[Path, dict[str, object]]) -> None:
    folder, _ = demo_run
    path = folder / f"{demo.MODEL}-imatrix.gguf"
    imatrix = read_head(path)
    quant = read_head(folder / f"{demo.MODEL}-IQ2_XS.gguf")
    quantized = [  # Q8_0 makes no use of it, and the first block of an RWKV-7 never reads its time_mix_v1 and v2
        t.name
        for t in quant.tensors.values()
        if t.type not in ("F32", "F16", "Q8_0") and t.name != "token_embd.weight"
    ]
    assert "output.weight" in quantized  # --process-output
    for name in quantized:
        assert (read_tensor(path, imatrix, f"{name}.counts") > 0).all()


def test_no_input_of_the_demo_is_so_massive_that_the_search_caps_it(demo_run: tuple[Path, dict[str, object]]) -> None:
    """So the cap, which is for transformers, changes nothing that is found for the demo, nor what was kept of it."""
    imatrix = read_imatrix(demo_run[0] / f"{demo.MODEL}-imatrix.gguf")
    largest = max(float(v.max() / np.median(v[v > 0])) for v in imatrix.weights.values())
    assert 10 < largest < MOST_IMPORTANCE


@pytest.mark.parametrize("name", NAMES)
def test_every_file_loads_and_generates(name: str, demo_run: tuple[Path, dict[str, object]], llama_bin: Path) -> None:
    folder, _ = demo_run
    path = folder / f"{demo.MODEL}-{name}.gguf"
    assert read_head(path).metadata["general.file_type"] == BY_NAME[name].ftype
    done = tool(
        llama_bin, "llama-completion", "-m", path, "-p", "Return the", "-n", 12, "-no-cnv", "--no-display-prompt",
        "-t", 2, "--temp", 0, "--ignore-eos",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip()
    text = calibration.ensure_texts(Settings.from_env().cache).evaluation
    arguments = ("-m", path, "-f", text, "-c", 512, "-b", 512, "--chunks", 2, "-t", 2)
    assert math.isfinite(float(said("PPL =", llama_bin, "llama-perplexity", *arguments)))


def test_quality_falls_with_size(demo_run: tuple[Path, dict[str, object]], llama_bin: Path, tmp_path: Path) -> None:
    """Mean KL divergence from the base GGUF on held-out text: Q8_0 < Q6_K < Q5_K_M < Q4_K_M < Q2_K."""
    folder, _ = demo_run
    text = calibration.ensure_texts(Settings.from_env().cache).evaluation
    logits = tmp_path / "base.kld"
    base = folder / f"{demo.MODEL}-F16.gguf"
    common = ("-c", tools.CONTEXT, "-b", tools.CONTEXT, "-t", 2, "--kl-divergence-base", logits)
    done = tool(llama_bin, "llama-perplexity", "-m", base, "-f", text, "--chunks", CHUNKS, *common)
    assert done.returncode == 0, done.stderr[-500:]
    found = {}
    for name in KLD_LADDER:
        path = folder / f"{demo.MODEL}-{name}.gguf"
        found[name] = float(
            said(r"Mean\s+KLD:", llama_bin, "llama-perplexity", "-m", path, "--kl-divergence", *common)
        )
    ladder = [found[name] for name in KLD_LADDER]
    assert ladder == sorted(ladder), found
    assert len(set(ladder)) == len(ladder), found
