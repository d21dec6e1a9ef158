"""Quants measured: what the tools print is read right, agrees with our own arithmetic, and is measured once."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggufy import demo
from ggufy.cli.evaluate import evaluation_table
from ggufy.core import metrics
from ggufy.core.catalog import QUANT_TYPES
from ggufy.core.errors import BusyError, CalibrationError, Cancelled, DiskError, SourceError, ToolError
from ggufy.core.metrics import Evaluation, Quality, Speed
from ggufy.formats.gguf import copy_with_metadata, read_head
from ggufy.llama import perplexity, tools
from ggufy.llama.install import Llama
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.evaluation_text import fitting_chunks
from ggufy.steps.same_model import vocab_size
from ggufy.system import resources
from ggufy.system.locks import lock
from ggufy.system.settings import Settings
from ggufy.texts import calibration
from ggufy.texts.overlap import check_disjoint, shared
from tests import tiny
from tests.conftest import Finished, Ggufy

TYPES = ("Q8_0", "Q4_K_M", "Q2_K")
CHUNKS = 4
# Captured from the real tool: the demo's Q4_K_M against its F16, six chunks. Both streams, as they come.
OUTPUT = """0.00.030.494 I kl_divergence: computing over 6 chunks, n_ctx=512, batch_size=512, n_seq=1
0.00.106.299 I kl_divergence: 0.08 seconds per pass - ETA 0.00 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      51.8362 ±    9.4935       0.01142 ±    0.01064       0.01231 ±    0.00063     2.484 ±  0.314 %    92.549 ±  1.648 %
   2      32.8944 ±    4.0055       0.00966 ±    0.00704       0.01154 ±    0.00039     2.450 ±  0.189 %    92.745 ±  1.150 %
   3      39.9450 ±    4.1500       0.00816 ±    0.00578       0.01145 ±    0.00031     2.363 ±  0.143 %    92.288 ±  0.965 %
   4      33.9722 ±    3.0185       0.00607 ±    0.00495       0.01143 ±    0.00027     2.433 ±  0.121 %    92.745 ±  0.813 %
   5      34.6459 ±    2.7491       0.00548 ±    0.00447       0.01172 ±    0.00026     2.402 ±  0.109 %    92.941 ±  0.718 %
   6      37.4477 ±    2.7383       0.00794 ±    0.00405       0.01191 ±    0.00024     2.353 ±  0.097 %    93.137 ±  0.647 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  37.447651 ±   2.738317
Mean PPL(base)                :  37.151631 ±   2.720882
Cor(ln(PPL(Q)), ln(PPL(base))):  99.85%
Mean ln(PPL(Q)/PPL(base))     :   0.007936 ±   0.004050
Mean PPL(Q)/PPL(base)         :   1.007968 ±   0.004082
Mean PPL(Q)-PPL(base)         :   0.296020 ±   0.152005

====== KL divergence statistics ======
Mean    KLD:   0.011911 ±   0.000238
Maximum KLD:   0.079544
99.9%   KLD:   0.063193
99.0%   KLD:   0.046471
Median  KLD:   0.009901
10.0%   KLD:   0.002699
 0.1%   KLD:   0.000057
Minimum KLD:   0.000026

====== Token probability statistics ======
Mean    Δp: -0.151 ± 0.060 %
Maximum Δp: 13.846%
99.9%   Δp: 11.443%
Median  Δp: -0.000%
Minimum Δp: -17.852%
RMS Δp    :  2.353 ± 0.097 %
Same top p: 93.137 ± 0.647 %

"""  # noqa: E501
READ = Quality(
    ppl=37.447651,
    ppl_error=2.738317,
    base_ppl=37.151631,
    base_ppl_error=2.720882,
    ppl_ratio=1.007968,
    ppl_ratio_error=0.004082,
    kld=0.011911,
    kld_error=0.000238,
    kld_median=0.009901,
    kld_999=0.063193,
    kld_max=0.079544,
    delta_p=-0.151,
    delta_p_error=0.060,
    delta_p_rms=2.353,
    delta_p_rms_error=0.097,
    same_top=93.137,
    same_top_error=0.647,
)
BASE_OUTPUT = """0.00.038.120 I perplexity: calculating perplexity over 6 chunks, n_ctx=512, batch_size=512, n_seq=1
0.00.138.805 I perplexity: 0.10 seconds per pass - ETA 0.00 minutes
[1]51.2479,[2]32.5782,[3]39.6203,[4]33.7665,[5]34.4564,[6]37.1516,
0.00.667.611 I Final estimate: PPL = 37.1516 +/- 2.72088
"""
BENCH = """llama_model_loader: something
{"build_commit": "0c1e57098", "n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ts": 8724.772716, "stddev_ts": 401.9}
{"build_commit": "0c1e57098", "n_threads": 2, "n_prompt": 0, "n_gen": 64, "avg_ts": 2843.363483, "stddev_ts": 164.6}
"""
SPEED = Speed(
    threads=2,
    prompt_tps=8724.772716,
    prompt_tps_error=401.9,
    generation_tps=2843.363483,
    generation_tps_error=164.6,
)
RECORD = Evaluation(
    quant="q.gguf", quant_sha256="a", size=10, bpw=4.5, base="b.gguf", base_sha256="b", text="t.txt", text_sha256="c",
    llama="0c1", chunks=6, tokens=1530, quality=READ, speed=SPEED,
)  # fmt: skip


# ---- readers


def test_every_figure_is_read() -> None:
    assert perplexity.parse_quality(OUTPUT) == READ
    assert perplexity.parse_bench(BENCH) == SPEED


@pytest.mark.parametrize("label", ["Mean PPL(Q) ", "Mean    KLD", "99.9%   KLD", "RMS Δp", "Same top p:"])
def test_a_missing_figure_is_no_result(label: str) -> None:
    assert perplexity.parse_quality("\n".join(x for x in OUTPUT.splitlines() if not x.startswith(label))) is None
    assert perplexity.parse_bench(BENCH[:-60]) is None


def test_a_broken_quants_figures_are_read_as_such() -> None:
    quality = perplexity.parse_quality(OUTPUT.replace("0.011911 ±   0.000238", "nan ± -nan"))
    assert quality is not None
    assert math.isnan(quality.kld)


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
@pytest.mark.parametrize("output", [OUTPUT, BASE_OUTPUT])
def test_progress_counts_chunks_in_both_passes(output: str, piece: int) -> None:
    seen: list[float] = []
    follow = perplexity.ChunkProgress(seen.append)
    for start in range(0, len(output), piece):
        follow(output[start : start + piece])
    assert seen == pytest.approx([k / 6 for k in range(1, 7)])


def test_a_record_survives_json() -> None:
    assert metrics.from_json(metrics.to_json(RECORD)) == RECORD
    for older in (metrics.to_json(RECORD).replace(',\n    "throttled": null', ""),):
        assert '"throttled"' not in older and metrics.from_json(older) == RECORD
    without = RECORD.evolve(speed=None)
    assert metrics.from_json(metrics.to_json(without)) == without


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "quality": {}}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        metrics.from_json(text)


# ---- arithmetic


def test_chunks_are_halved_until_they_fit() -> None:
    assert perplexity.logits_bytes(65536, 1) == pytest.approx(33.4e6, rel=0.01)  # as the World vocabulary is known for
    assert fitting_chunks(64, 64 * 33_500_000, 65536) == 64
    assert fitting_chunks(64, 63 * 33_300_000, 65536) == 32
    assert fitting_chunks(64, 4 * 33_500_000, 65536) == 4
    assert fitting_chunks(64, 3 * 33_500_000, 65536) == 0
    assert fitting_chunks(2, 3 * 33_500_000, 65536) == 2
    assert fitting_chunks(64, -5, 65536) == 0


def test_shared_text_is_found_in_another_order_and_inside_another_text() -> None:
    sentences = [f"This is the sentence number {n} of a text about nothing." for n in range(50)]
    other = [f"Here stands the line with the number {n}, and says nothing." for n in range(50)]
    assert shared(" ".join(sentences), "\n".join(reversed(sentences))) == 1
    assert shared("\n".join(other + sentences), " ".join(sentences[:10])) == 1
    assert shared("\n".join(sentences), "\n".join(other)) == 0
    assert shared("", "") == 0
    chinese = [f"这是一个很长的句子，它的号码是{n}，它什么也没有说，只是为了测试而写。" for n in range(9)]
    assert shared("".join(chinese), "\n".join(chinese)) == 1


def test_our_own_texts_share_nothing() -> None:
    texts = calibration.ensure_texts(Settings.from_env().cache)
    check_disjoint(texts.evaluation, texts.calibration)


def test_the_table() -> None:
    with_speed = evaluation_table([RECORD])
    assert "8725 ± 402 2843 ± 165" in " ".join(with_speed.split())
    assert "37.448 ± 2.738  0.01191 ± 0.00024" in with_speed
    assert with_speed.endswith("± is one standard error, of speed (--threads 2) the deviation between runs")
    assert "t/s" not in evaluation_table([RECORD.evolve(speed=None)])


def test_which_one() -> None:
    gb = 1_000_000_000
    sizes = {"Q8_0": 8 * gb, "Q4_K_M": 5 * gb, "IQ4_XS": 4 * gb, "Q2_K": 3 * gb}
    assert metrics.which_one(sizes, 16 * gb) == "Q8_0"
    assert metrics.which_one(sizes, 6 * gb) == "Q4_K_M"
    assert metrics.which_one(sizes, 3 * gb) is None
    assert metrics.which_one({}, 16 * gb) is None
    klds = {"Q4_K_M": 0.03, "IQ4_XS": 0.02, "Q2_K": 0.2}
    assert metrics.which_one(sizes, 6 * gb, klds) == "IQ4_XS"  # nearer to the base, though smaller
    assert metrics.which_one(sizes, 16 * gb, klds) == "Q8_0"  # the best is not measured: size decides
    assert metrics.which_one({"a": gb, "b": gb}, 4 * gb, {"a": 0.1, "b": 0.1}) == "a"


def test_nonsense_is_never_picked() -> None:
    gb = 1_000_000_000
    sizes = {"Q4_0": 6 * gb, "IQ4_XS": 5 * gb, "Q2_K": 4 * gb, "TQ2_0": 3 * gb, "IQ1_S": 2 * gb, "TQ1_0": gb}
    assert metrics.which_one(sizes, 9 * gb) == "IQ4_XS"  # recommended, though Q4_0 is larger
    assert metrics.which_one(sizes, 5 * gb) == "Q2_K"  # ordinary
    assert metrics.which_one(sizes, 4 * gb) is None  # for other kinds of models, or for experiments
    klds = dict.fromkeys(sizes, 0.1) | {"Q2_K": 2.0, "TQ2_0": 0.0, "IQ1_S": 0.3}
    assert metrics.which_one(sizes, 5 * gb, klds) == "IQ1_S"  # measured to be of use, as Q2_K is not
    assert metrics.which_one(sizes, 2 * gb, klds) is None
    assert metrics.which_one({"1.2GB": gb, "F16": 4 * gb}, 5 * gb) == "F16"


def test_the_picks_of_a_small_model_are_few() -> None:
    """All files of the demo fit into nearly the same memory: every amount is named once, no two lines are alike."""
    sizes = {row.name: round(row.bits * 1e6) for row in QUANT_TYPES} | {"F16": 15_000_000}
    for klds in ({}, {row.name: 1 / row.bits**4 for row in QUANT_TYPES} | {"F16": 0.0}):
        found = metrics.picks(sizes, klds)
        assert len({pick.memory for pick in found}) == len({pick.type for pick in found}) == len(found) <= 8
        assert found[-1].type == "F16"
        assert not {pick.type for pick in found} & {"TQ1_0", "TQ2_0"}
        if not klds:
            usual = {row.name for row in QUANT_TYPES if row.recommended or row.name.startswith("IQ2")}
            assert {pick.type for pick in found} <= usual | {"F16"}


# ---- the real tools


@pytest.fixture(scope="module")
def models(ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's base, then its quants of TYPES."""
    out = tmp_path_factory.mktemp("models")
    done = ggufy("quantize", "demo", "--types", ",".join(TYPES), "--chunks", 4, "--no-evaluate", "--out", out)
    assert done.code == 0, done.err
    return [out / f"{demo.MODEL}-GGUF" / f"{demo.MODEL}-{name}.gguf" for name in ("F16", *TYPES)]


@pytest.fixture
def config(llama: Llama, tmp_path: Path) -> EvaluationConfig:
    settings = Settings.from_env()
    return EvaluationConfig(
        text=calibration.ensure_texts(settings.cache).evaluation,
        folder=tmp_path / "evaluations",
        llama=llama,
        environment=resources.child_environment(threads=1, home=settings.home),
        threads=1,
        chunks=CHUNKS,
        speed=False,
        log=tmp_path / "log",
    )


def no_tools(config: EvaluationConfig, tmp_path: Path) -> EvaluationConfig:
    """The same with tools that fail when they are run, and name the same version."""
    folder = tmp_path / "no-tools"
    folder.mkdir()
    for name in ("llama-perplexity", "llama-bench"):
        (folder / name).write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return replace(config, llama=replace(config.llama, bin=folder))


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.tools
def test_the_smaller_the_worse_and_a_second_run_measures_nothing(
    models: list[Path], config: EvaluationConfig, tmp_path: Path
) -> None:
    base, *quants = models
    found = evaluate(base, quants, replace(config, speed=True))
    klds = [one.quality.kld for one in found]
    assert 0 < klds[0] < klds[1] < klds[2]
    assert all(one.quality.kld_error < one.quality.kld < one.quality.kld_999 < one.quality.kld_max for one in found)
    tops = [one.quality.same_top for one in found]
    assert tops == sorted(tops, reverse=True)
    assert len({one.quality.base_ppl for one in found}) == 1
    assert [one.quant for one in found] == [path.name for path in quants]
    assert [one.size for one in found] == [path.stat().st_size for path in quants]
    assert {(one.chunks, one.tokens) for one in found} == {(CHUNKS, CHUNKS * 255)}
    assert all(one.speed and one.speed.prompt_tps > one.speed.generation_tps > 0 for one in found)
    assert files(config.folder) == [".json"] * 3  # the base's predictions are gone
    again = evaluate(base, list(reversed(quants)), no_tools(replace(config, speed=True), tmp_path))
    assert again == list(reversed(found))


def _kept_logits(base: Path, config: EvaluationConfig) -> Path:
    """The base's predictions, from the command that the product uses."""
    config.folder.mkdir(exist_ok=True)
    out = config.folder / "kept"
    command = perplexity.logits_command(
        config.llama.tool("llama-perplexity"), model=base, text=config.text, out=out, threads=1, chunks=config.chunks
    )
    tools.run_tool(command, tools.ToolRun(environment=config.environment, cwd=config.folder))
    return out


def _log_probs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(log p [scored tokens, vocabulary], the token that came) from a file of llama-perplexity's; see its reader."""
    data = path.read_bytes()
    context, vocab, chunks = struct.unpack_from("=Iii", data, 8)
    tokens = np.frombuffer(data, "<i4", context * chunks, 20).reshape(chunks, context)
    width = (vocab + 1) // 2 * 2 + 4
    scored = context - 1 - context // 2
    rows = np.frombuffer(data, "<u2", offset=20 + tokens.nbytes).reshape(chunks * scored, width)
    scale, lowest = np.ascontiguousarray(rows[:, :4]).view("<f4").T.astype(np.float64)
    log_p = rows[:, 4 : 4 + vocab] * scale[:, None] + lowest[:, None]
    return log_p, tokens[:, context // 2 + 1 :].reshape(-1)


@pytest.mark.tools
def test_the_figures_agree_with_our_own_arithmetic(models: list[Path], config: EvaluationConfig) -> None:
    """Both models' predictions are taken from files, and compared here with numpy. The files clip what is less likely
    than e^-16 times the likeliest token, and hold 16 bits."""
    config = replace(config, chunks=2)
    base, quant = models[0], models[2]
    found = evaluate(base, [quant], config)[0].quality
    p, came = _log_probs(_kept_logits(base, config))
    q, also = _log_probs(_kept_logits(quant, config))
    assert (came == also).all()
    assert np.exp(p).sum(1) == pytest.approx(np.ones(len(p)), abs=2e-3)
    klds = (np.exp(p) * (p - q)).sum(1)
    assert found.kld == pytest.approx(klds.mean(), rel=0.01)
    assert found.kld_error == pytest.approx(klds.std(ddof=1) / math.sqrt(len(klds)), rel=0.01)
    assert found.kld_999 == pytest.approx(np.quantile(klds, 0.999), rel=0.01)
    assert found.kld_median == pytest.approx(np.median(klds), rel=0.01)
    rows = np.arange(len(came))
    for log_p, ppl, error in ((p, found.base_ppl, found.base_ppl_error), (q, found.ppl, found.ppl_error)):
        nll = -log_p[rows, came]
        assert ppl == pytest.approx(math.exp(nll.mean()), rel=1e-3)
        assert error == pytest.approx(math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(len(nll)), rel=0.01)
    change = np.exp(q[rows, came]) - np.exp(p[rows, came])
    assert found.delta_p == pytest.approx(100 * change.mean(), abs=0.002)
    assert found.delta_p_rms == pytest.approx(100 * math.sqrt((change**2).mean()), abs=0.002)
    assert found.same_top == pytest.approx(100 * (p.argmax(1) == q.argmax(1)).mean(), abs=0.5)


@pytest.mark.tools
def test_a_run_that_is_stopped_keeps_what_is_finished(models: list[Path], config: EvaluationConfig) -> None:
    base, *quants = models
    started: list[str] = []
    stopping = replace(config, report=lambda what, _: started.append(what), stopped=lambda: quants[1].name in started)
    with pytest.raises(Cancelled):
        evaluate(base, quants, stopping)
    assert files(config.folder) == [".json"]
    measured: list[str] = []
    found = evaluate(base, quants, replace(config, report=lambda what, _: measured.append(what)))
    assert [one.quant for one in found] == [path.name for path in quants]
    assert set(measured) == {base.name, quants[1].name, quants[2].name}


@pytest.mark.tools
def test_what_a_kill_left_is_taken_over_if_it_is_whole(
    models: list[Path], config: EvaluationConfig, tmp_path: Path
) -> None:
    """After a kill the folder may hold predictions, whole or not, of this or of another base, and parts of files."""
    base, quant, *_ = models
    whole = _kept_logits(base, config)
    shutil.copy(whole, tmp_path / "kept")
    kept: dict[str, Path] = {}

    def keep(what: str, fraction: float) -> None:
        for path in config.folder.glob("*.logits"):
            kept[path.name] = path

    evaluate(base, [quant], replace(config, report=keep))
    (name,) = kept
    for left, measured_base in ((whole.read_bytes(), False), (whole.read_bytes()[:-1], True), (b"", True)):
        for path in config.folder.glob("*.json"):
            path.unlink()
        (config.folder / name).write_bytes(left)
        (config.folder / "0123456789abcdef.logits").write_bytes(left)
        (config.folder / "x.json.part").write_bytes(b"{")
        seen: list[str] = []
        evaluate(base, [quant], replace(config, report=lambda what, _, seen=seen: seen.append(what)))  # type: ignore[misc]
        assert (base.name in seen) == measured_base
        assert [path.name for path in config.folder.iterdir() if path.suffix in (".logits", ".part")] == []


@pytest.mark.tools
def test_the_command_killed_in_between_goes_on(
    ggufy: Ggufy, ggufy_environment: dict[str, str], models: list[Path], tmp_path: Path
) -> None:
    words = ["evaluate", *map(str, models), "--chunks", "16", "--no-speed", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "ggufy", *words], env=ggufy_environment, stderr=subprocess.PIPE)
    with process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert 1 <= len(finished) < 3
    assert list(tmp_path.rglob("*.logits"))  # nobody was there to remove it
    done = ggufy(*words)
    assert done.code == 0, done.err
    assert models[0].name not in done.err  # the base's predictions were taken over
    assert models[1].name not in done.err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert list(tmp_path.rglob("*.logits")) == []


@pytest.mark.tools
def test_a_damaged_result_is_measured_again_and_an_other_version_is_another_result(
    models: list[Path], config: EvaluationConfig
) -> None:
    base, quant, *_ = models
    found = evaluate(base, [quant], config)
    (file,) = config.folder.glob("*.json")
    file.write_text("{", encoding="utf-8")
    assert evaluate(base, [quant], config) == found
    evaluate(base, [quant], replace(config, llama=replace(config.llama, commit="other")))
    assert len(list(config.folder.glob("*.json"))) == 2


def test_figures_that_got_lost_are_asked_for_again(tmp_path: Path) -> None:
    """The tool ends well, and without its last lines, the first time."""
    script = "import pathlib; p = pathlib.Path('n'); n = p.exists(); p.touch(); print('figures' if n else 'nothing')"
    run = tools.ToolRun(environment={}, cwd=tmp_path)
    command = [sys.executable, "-c", script]
    assert perplexity.run_for(command, run, read=lambda text: text.strip() == "figures" or None) is True
    with pytest.raises(ToolError, match="without its figures"):
        perplexity.run_for(command, run, read=lambda text: None)


# ---- what is wrong is refused


def refuses(error: type[Exception], words: str, base: Path, quants: list[Path], config: EvaluationConfig) -> None:
    with pytest.raises(error, match=words):
        evaluate(base, quants, config)
    assert not config.folder.exists() or files(config.folder) == []


@pytest.mark.tools
def test_models_that_do_not_fit(models: list[Path], config: EvaluationConfig, tmp_path: Path) -> None:
    base, quant, *_ = models
    (tmp_path / "other").mkdir()
    other = tiny.converted(tmp_path, "7")
    refuses(SourceError, "does not exist", tmp_path / "nope.gguf", [quant], config)
    refuses(SourceError, "does not exist", base, [quant, tmp_path / "nope.gguf"], config)
    refuses(SourceError, "quantized already", quant, [quant], config)
    refuses(SourceError, "vocabulary has 320 tokens, not 4096", base, [other], config)
    refuses(SourceError, "it is no model", base, [quant.with_name(f"{demo.MODEL}-imatrix.gguf")], config)
    refuses(SourceError, "it is rwkv6", other, [tiny.converted(tmp_path / "other", "6")], config)
    wider = tiny.converted(tmp_path / "other", "7", width=192)
    refuses(SourceError, "tensors differ", other, [wider], config)
    (tmp_path / "other" / "x").mkdir()
    trained = tiny.converted(tmp_path / "other" / "x", "7", seed=1)
    refuses(SourceError, "norms, which no quantization changes", other, [trained], config)
    bare = tmp_path / "bare.gguf"
    copy_with_metadata(base, bare, {"general.architecture": "rwkv7"})
    refuses(SourceError, "no vocabulary", bare, [bare], config)
    (tmp_path / "cut.gguf").write_bytes(quant.read_bytes()[:-1000])
    refuses(SourceError, "cut off", base, [tmp_path / "cut.gguf"], config)


@pytest.mark.tools
def test_texts_that_cannot_be_used(models: list[Path], config: EvaluationConfig, tmp_path: Path) -> None:
    base, quant, *_ = models
    refuses(
        CalibrationError, "there is no evaluation text", base, [quant], replace(config, text=tmp_path / "nope.txt")
    )
    short = tmp_path / "short.txt"
    short.write_text("A short text. " * 30, encoding="utf-8")
    refuses(CalibrationError, r"has \d+ tokens, at least 1024", base, [quant], replace(config, text=short))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1") * 9000)
    refuses(CalibrationError, "not UTF-8", base, [quant], replace(config, text=latin))
    own = config.text.read_text(encoding="utf-8")
    piece = tmp_path / "piece.txt"
    piece.write_text(own[2000:9000], encoding="utf-8")
    refuses(CalibrationError, "share 99%", base, [quant], replace(config, calibrations=[piece]))
    refuses(CalibrationError, "share 100%", base, [quant], replace(config, calibrations=[config.text]))


@pytest.mark.tools
def test_a_disk_that_is_too_small_and_a_folder_in_use(models: list[Path], config: EvaluationConfig) -> None:
    base, quant, *_ = models
    a_chunk = perplexity.logits_bytes(vocab_size(read_head(base)), 1)
    refuses(DiskError, "predictions need", base, [quant], replace(config, chunks=64, budget=3 * a_chunk))
    found = evaluate(base, [quant], replace(config, chunks=10, budget=6 * a_chunk))
    assert found[0].chunks == 5
    with lock(config.folder / ".lock"), pytest.raises(BusyError):
        evaluate(base, [quant], config)


# ---- the command


def failed(done: Finished, words: str, code: int = 1) -> None:
    lines = [line for line in done.err.splitlines() if line.startswith("ggufy: ")]
    assert (done.code, done.out, len(lines)) == (code, "", 1), done.err
    assert words in lines[0]


@pytest.mark.tools
def test_the_command(ggufy: Ggufy, models: list[Path], tmp_path: Path) -> None:
    arguments = ("evaluate", *models[:3], "--chunks", 2, "--no-speed", "--out", tmp_path)
    done = ggufy(*arguments)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [name in line for name, line in zip(TYPES, lines[2:4], strict=False)] == [True, True]
    assert "99.9 % KLD" in lines[0]
    assert "t/s" not in lines[0]
    assert "510 tokens of evaluation.txt (2 chunks)" in lines[-1]
    assert f"measuring {models[1].name}" in done.err
    again = ggufy(*arguments, "--json")
    assert again.code == 0
    assert "measuring" not in again.err
    records = json.loads(again.out)["evaluations"]
    assert [record["quant"] for record in records] == [path.name for path in models[1:3]]
    assert set(records[0]["quality"]) == {f.name for f in dataclasses.fields(Quality)}


@pytest.mark.tools
def test_the_command_says_what_is_wrong(ggufy: Ggufy, models: list[Path], tmp_path: Path) -> None:
    run: Callable[..., Finished] = lambda *words: ggufy("evaluate", *words, "--out", tmp_path)  # noqa: E731
    failed(run(models[0], models[1], "--chunks", -1), "--chunks is negative", code=2)
    failed(run(models[0], models[1], "--threads", 0), "--threads", code=2)
    failed(run(models[1], models[2]), "quantized already")
    texts = calibration.ensure_texts(Settings.from_env().cache)
    failed(run(models[0], models[2], "--text", texts.calibration), "share 100%")
    assert list(tmp_path.rglob("*.json")) == []
