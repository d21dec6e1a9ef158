"""Measuring files of rwkv.cpp: its own losses, the figures of a comparison, and the table of all types."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ggufy.core.errors import CalibrationError, Cancelled, SourceError
from ggufy.core.metrics import Quality, from_json
from ggufy.llama.tools import ToolRun
from ggufy.rwkvcpp.comparing import Comparison, log_probabilities
from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.measure import MeasureConfig, measure
from ggufy.rwkvcpp.measuring import compare
from ggufy.rwkvcpp.quantize import quantize
from ggufy.system.resources import child_environment
from tests import recurrence, scripted, tiny
from tests.conftest import Ggufy
from tests.reference import reference_data, reference_file

MODELS = ("4v0-660K", "5v1-730K", "5v2-730K", "6v0-1m", "7v0-834K")
TEXT = "The quick brown fox jumps over the lazy dog.\n\nUser: One. Two。\n" * 3


# ---- the figures


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.fast
def test_the_figures_by_hand() -> None:
    """Two tokens of four, written out from their definitions."""
    base, quant = (
        np.log([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1]]),
        np.log([[0.4, 0.3, 0.2, 0.1], [0.5, 0.3, 0.1, 0.1]]),
    )
    comparison = Comparison()
    comparison.add(base, quant, np.array([0, 1]))
    found = comparison.quality()
    losses, base_losses = np.array([-math.log(0.4), -math.log(0.3)]), np.array([-math.log(0.5), -math.log(0.6)])
    klds = [0.5 * math.log(0.5 / 0.4) + 0.2 * math.log(0.2 / 0.3)]
    klds += [0.1 * math.log(0.1 / 0.5) + 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.1)]

    def error(values: np.ndarray) -> float:
        return float(np.std(values, ddof=1) / math.sqrt(2))

    assert found.ppl == pytest.approx(math.exp(losses.mean()))
    assert found.ppl_error == pytest.approx(found.ppl * error(losses))
    assert found.base_ppl == pytest.approx(math.exp(base_losses.mean()))
    assert found.ppl_ratio == pytest.approx(found.ppl / found.base_ppl)
    assert found.ppl_ratio_error == pytest.approx(found.ppl_ratio * error(losses - base_losses))
    assert found.kld == pytest.approx(np.mean(klds)) and found.kld_error == pytest.approx(error(np.array(klds)))
    assert (found.kld_median, found.kld_max) == pytest.approx((np.mean(klds), max(klds)))
    assert found.kld_999 == pytest.approx(min(klds) + 0.999 * (max(klds) - min(klds)))
    assert found.delta_p == pytest.approx(100 * (-0.1 - 0.3) / 2)
    assert found.delta_p_rms == pytest.approx(100 * math.sqrt((0.01 + 0.09) / 2))
    assert (found.same_top, found.same_top_error) == pytest.approx((50.0, 50.0))


@pytest.mark.fast
def test_log_probabilities() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]], dtype=np.float32)
    found = log_probabilities(logits)
    assert found.dtype == np.float64 and np.exp(found).sum(axis=1) == pytest.approx([1, 1])
    assert np.exp(found[0]) == pytest.approx(softmax(logits[:1])[0])


@pytest.mark.fast
@pytest.mark.parametrize("ignored", [0, 1, 2, 64, 65, 128, 150])
def test_which_tokens_count(ignored: int) -> None:
    """Those that rwkv.cpp's script counts, one after the other."""
    tokens = [1 + (7 * place) % 250 for place in range(153)]

    class Model:
        n_vocab = 256

        def eval(self, ids: list[int], state: object, *, every: bool = False) -> tuple[np.ndarray, object]:
            return np.eye(256, dtype=np.float32)[ids] * 3, None  # it expects the token that it was given

    (found,) = compare(Model(), [Model()], tokens, ignored)  # type: ignore[arg-type, list-item]
    counted = [i for i in range(len(tokens) - 1) if ignored == 0 or i + 1 >= ignored]
    assert found.tokens == len(counted)
    with pytest.raises(CalibrationError, match=r"the text has 153 tokens, and 152 are to be ignored: give"):
        compare(Model(), [Model()], tokens, 152)  # type: ignore[arg-type, list-item]


@pytest.mark.fast
@pytest.mark.parametrize("version", ["6", "7"])
def test_the_loss_is_that_of_the_formulas(version: str, tmp_path: Path) -> None:
    state = tiny.weights(version)
    path = scripted.converted_bin(tmp_path, state)
    tokens = [1 + (7 * place) % 250 for place in range(90)]
    engine = Engine(path, threads=1)
    try:
        (found,) = compare(engine, [engine], tokens)
    finally:
        engine.close()
    arrays = {name: tensor.numpy().squeeze() for name, tensor in state.items()}
    logits = np.asarray(recurrence.logits(arrays, version, tokens[:-1]), dtype=np.float64)
    wanted = -np.log(softmax(logits)[np.arange(89), tokens[1:]]).mean()
    quality = found.quality()
    assert math.log(quality.ppl) == pytest.approx(wanted, abs=1e-4)
    assert (quality.kld, quality.same_top) == (0.0, 100.0)


# ---- rwkv.cpp's own


def losses(model: str, kind: str, ignored: int, folder: Path | None = None) -> tuple[float, float]:
    """(of the FP32 file, of this type), measured."""
    reference = reference_data("rwkvcpp/reference/reference.json")
    text = reference["text"]
    tokens = list(text[:128].encode("utf-16-le") if model.startswith("6") else text.encode("ascii"))
    paths = [reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-{one}.bin") for one in ("FP32", kind)]
    engines = [Engine(path, threads=1, ggml_folder=folder) for path in paths]
    try:
        found = compare(engines[0], engines, tokens, ignored)
    finally:
        for engine in engines:
            engine.close()
    return math.log(found[0].quality().ppl), math.log(found[1].quality().ppl)


def references(model: str, ignored: int) -> tuple[float, float]:
    files = reference_data("rwkvcpp/reference/reference.json")["files"]
    name = f"loss_ignore{ignored}"
    return files[f"{model}/FP32"][name], files[f"{model}/FP32-to-Q5_1"][name]


@pytest.mark.fast
@pytest.mark.parametrize("ignored", [0, 64])
@pytest.mark.parametrize("model", MODELS)
def test_rwkv_cpp_s_own_losses(model: str, ignored: int) -> None:
    full, quantized = losses(model, "Q5_1", ignored)
    wanted, wanted_quantized = references(model, ignored)
    assert full == pytest.approx(wanted, abs=1e-4)
    assert quantized == pytest.approx(wanted_quantized, abs=0.02)


@pytest.mark.tools
@pytest.mark.parametrize("model", MODELS)
def test_rwkv_cpp_s_own_losses_with_its_kernels(model: str, llama: object) -> None:
    full, quantized = losses(model, "Q5_1", 0, llama.bin)  # type: ignore[attr-defined]
    wanted, wanted_quantized = references(model, 0)
    assert full == pytest.approx(wanted, abs=1e-4)
    assert quantized == pytest.approx(wanted_quantized, abs=0.02)


# ---- a run


@pytest.fixture(scope="module", params=["4", "5.2"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base of a random model and its Q8_0 and Q4_0, and a text and a vocabulary beside them."""
    folder = tmp_path_factory.mktemp("files")
    base = scripted.converted_bin(folder, tiny.weights(request.param))
    tiny.write_vocab(folder / "own.vocab.txt")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    made = [base, *(folder / f"made-{kind}.bin" for kind in ("Q8_0", "Q4_0"))]
    for path in made[1:]:
        quantize(base, path, path.stem.partition("-")[2])
    return made


@pytest.fixture
def config(files: list[Path], tmp_path: Path) -> MeasureConfig:
    run = ToolRun(environment=child_environment(threads=1, home=tmp_path), cwd=tmp_path)
    text = files[0].parent / "text.txt"
    return MeasureConfig(text=text, folder=tmp_path / "found", run=run, threads=1, speed=False)


@pytest.mark.fast
def test_quants_are_measured_once(files: list[Path], config: MeasureConfig) -> None:
    reports: list[tuple[str, float]] = []
    config = dataclasses.replace(config, report=lambda what, done: reports.append((what, done)))
    base, *quants = files
    found = measure(base, files, config)
    assert reports[-1][1] == 1.0
    assert [one.quant for one in found] == [path.name for path in files]
    assert [one.size for one in found] == [path.stat().st_size for path in files]
    own, better, worse = (one.quality for one in found)
    assert (own.kld, own.same_top, own.ppl) == (0.0, 100.0, own.base_ppl)
    assert 0 < better.kld < worse.kld and better.base_ppl == worse.base_ppl == own.ppl
    assert found[1].bpw == pytest.approx(found[1].size * 8 / 2**20, rel=2) and found[0].bpw == 32
    reports.clear()
    assert measure(base, quants, config) == found[1:] and not reports
    (kept,) = config.folder.glob("made-Q8_0-*.json")
    assert from_json(kept.read_text(encoding="utf-8")) == found[1]
    alone = measure(base, [quants[1]], dataclasses.replace(config, folder=config.folder / "again"))
    assert alone == [found[2]], "the same whether alone or with others"
    shorter = measure(base, [quants[1]], dataclasses.replace(config, limit=40, ignore_first=10))
    assert shorter[0].tokens == 40 - 10 and shorter[0].quality != found[2].quality


@pytest.mark.fast
def test_the_speed_of_one(files: list[Path], config: MeasureConfig) -> None:
    config = dataclasses.replace(config, speed=True)
    (found,) = measure(files[0], [files[1]], config)
    assert found.speed is not None and found.speed.threads == 1 and found.speed.throttled is False
    assert found.speed.prompt_tps > 0 < found.speed.generation_tps
    slow = dataclasses.replace(
        config, run=dataclasses.replace(config.run, share=lambda: 0.5), folder=config.folder / "x"
    )
    assert measure(files[0], [files[1]], slow)[0].speed is None, "there is no true one"


@pytest.mark.fast
def test_what_cannot_be_measured(files: list[Path], config: MeasureConfig, tmp_path: Path) -> None:
    base, quant, _ = files
    with pytest.raises(SourceError, match="is quantized already: the base is the FP32 or FP16 file"):
        measure(quant, [quant], config)
    other = scripted.converted_bin(tmp_path, tiny.weights("7"))
    with pytest.raises(SourceError, match=r"is no quant of .* \(it is RWKV-7\): give the base"):
        measure(base, [other], config)
    with pytest.raises(SourceError, match="but the tokenizer world has"):
        measure(base, [quant], dataclasses.replace(config, tokenizer="world"))
    with pytest.raises(SourceError, match=r"the text has 5 tokens, and 4 are to be ignored: give a longer one"):
        measure(base, [quant], dataclasses.replace(config, limit=5, ignore_first=4))
    stopped = dataclasses.replace(config, run=dataclasses.replace(config.run, stopped=lambda: True))
    with pytest.raises(Cancelled):
        measure(base, [quant], stopped)
    assert not list(config.folder.glob("*.json"))


@pytest.mark.fast
def test_a_broken_quant_is_refused(files: list[Path], config: MeasureConfig, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bin"
    data = bytearray(files[0].read_bytes())
    place = data.index(b"head.weight") + len(b"head.weight")
    data[place : place + 4] = np.float32(np.nan).tobytes()
    broken.write_bytes(data)
    with pytest.raises(SourceError, match="predicts values that are not finite: it is broken"):
        measure(files[0], [broken], config)


# ---- the command


@pytest.mark.tools
def test_one_command_makes_the_table(ggufy: Ggufy, files: list[Path], tmp_path: Path) -> None:
    arguments = ["evaluate", *files, "--text", files[0].parent / "text.txt", "--out", tmp_path, "--threads", 1]
    done = ggufy(*arguments)
    assert done.code == 0, done.err
    head, _, *rows = done.out.splitlines()
    assert head.split()[:6] == ["file", "type", "size", "bpw", "loss", "PPL"] and "ms/token" in head and "KLD" in head
    kinds = ["FP32", "Q8_0", "Q4_0"]
    wanted = [[path.name, kind] for path, kind in zip(files, kinds, strict=True)]
    assert [row.split()[:2] for row in rows[:3]] == wanted
    tokens = int(rows[4].split()[0])
    done = ggufy(*arguments, "--json", "--no-speed")
    found = json.loads(done.out)["evaluations"]
    assert [one["type"] for one in found] == kinds
    assert all(one["tokens"] == tokens and one["ms_per_token"] is not None for one in found), "the speed was kept"
    assert all(one["loss"] == pytest.approx(math.log(one["quality"]["ppl"])) for one in found)
    assert Quality(**found[1]["quality"]).kld < found[2]["quality"]["kld"]
    wrong = ((("--ignore-first", -1), "--ignore-first is negative"), (("--limit", 1), "the text has 1 tokens"))
    for option, says in wrong:
        done = ggufy(*arguments, *option, "--no-speed")
        assert done.code in (1, 2) and says in done.err


@pytest.mark.tools
def test_a_gguf_needs_none_of_these_options(ggufy: Ggufy, tmp_path: Path) -> None:
    model = tiny.converted(tmp_path)
    for command, option in (("evaluate", "--ignore-first"), ("evaluate", "--limit"), ("complete", "--tokenizer")):
        more = [model] if command == "evaluate" else ["-p", "x"]
        done = ggufy(command, model, *more, option, 1)
        assert done.code == 2 and f"{option} is for files of rwkv.cpp, and {model} is none: leave it out." in done.err
