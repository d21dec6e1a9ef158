"""Sizes to order: the whole way on small models, never above the budget, and nothing measured twice."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.core.errors import Cancelled, UsageError
from ggufy.formats.gguf import UNQUANTIZED, read_head
from ggufy.llama.install import Llama
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.search import analysis, loss, probing, roles, target
from ggufy.quantize.search.allocate import Allocation
from ggufy.quantize.search.analysis import LOW_RANK
from ggufy.quantize.search.mixes import architecture_of
from ggufy.quantize.search.probing import Measured
from ggufy.quantize.search.target import FAST, STANDARD, THOROUGH
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.recipe_search import FoundRecipe, RecipeSearch
from ggufy.steps.target_size import sized
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts
from ggufy.texts.overlap import check_disjoint
from tests import small, tiny
from tests.conftest import ROOT, Ggufy

pytestmark = pytest.mark.tools
CHUNKS = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "probe.txt"
    path.write_text(ensure_texts(Settings.from_env().cache).probe.read_text()[:20_000])
    return path


@pytest.fixture(scope="module")
def mixer_of(llama: Llama, text: Path) -> Callable[[Path, Path | None, Path], RecipeSearch]:
    settings = Settings.from_env()

    def make(base: Path, imatrix: Path | None, folder: Path) -> RecipeSearch:
        config = EvaluationConfig(
            text=text,
            folder=folder,
            llama=llama,
            environment=resources.child_environment(threads=2, home=settings.home),
            threads=2,
            chunks=CHUNKS,
        )
        return RecipeSearch(base=base, imatrix_path=imatrix, config=config)

    return make


@pytest.fixture(scope="module", params=["6", "7"])
def tiny_mixer(
    request: pytest.FixtureRequest, mixer_of: Callable[..., RecipeSearch], tmp_path_factory: pytest.TempPathFactory
) -> RecipeSearch:
    folder = tmp_path_factory.mktemp(f"v{request.param}")
    base = tiny.converted(folder, request.param, outtype="f16", width=256, layers=2)
    return mixer_of(base, small.imatrix(folder / "imatrix.gguf", base), folder / "work")


def made(
    recipe_search: RecipeSearch, out: Path, *, size: int, mode: str, against: str = ""
) -> tuple[FoundRecipe, Path]:
    """As the command does it."""
    wanted = target.parse(size=f"{size}B")
    assert wanted is not None
    facts = target.metadata(wanted, bpw=4.5)
    head = recipe_search.head_size(facts)
    budget = wanted.tensor_budget(weights=recipe_search.head.elements, head=head)
    mix = recipe_search.mix(budget, mode, against=against)
    recipe_search.make(mix, out, {} if mix.stock else facts, "Q4_K_M")
    return mix, out


def measured(recipe_search: RecipeSearch, path: Path) -> float:
    """By unmodified llama-perplexity."""
    return evaluate(recipe_search.base, [path], replace(recipe_search.config, folder=path.parent / "kld"))[
        0
    ].quality.kld


def test_a_size_is_hit_and_the_file_runs(tiny_mixer: RecipeSearch, tmp_path: Path) -> None:
    smallest = tiny_mixer.analysis.fixed + sum(
        min(option.size for option in options)
        for options in tiny_mixer.analysis.options(dict.fromkeys(tiny_mixer.analysis.losses, 1.0)).values()
    )
    klds = []
    for factor in (1.1, 1.8):
        size = int(smallest * factor) + 40_000
        mix, out = made(tiny_mixer, tmp_path / f"{factor}.gguf", size=size, mode=FAST)
        assert 0.995 * size <= out.stat().st_size <= size
        head = read_head(out)
        assert {name: head.tensors[name].type for name in mix.recipe} == mix.recipe
        assert head.metadata["ggufy.target"] == f"{size}B"
        klds.append(measured(tiny_mixer, out))
    assert klds == sorted(klds, reverse=True) and all(map(math.isfinite, klds))


def test_low_rank_tensors_shrink_and_no_other_small_one(tiny_mixer: RecipeSearch, tmp_path: Path) -> None:
    size = tiny_mixer.stock_size("Q2_K")
    mix, out = made(tiny_mixer, tmp_path / "small.gguf", size=size, mode=FAST)
    base, head = tiny_mixer.head, read_head(out)
    found = roles.roles(base.tensors)
    low_rank = {name for name, role in found.items() if role.low_rank and len(base.tensors[name].shape) == 2}
    architecture = architecture_of(base)
    assert architecture is not None
    unread = architecture.unread & low_rank
    assert low_rank > unread
    assert bool(unread) == (architecture.version == "7")
    for name in low_rank - unread:
        assert head.tensors[name].type in (LOW_RANK if found[name].name in architecture.harmless else ("F16",)), name
    kept = {name for name in base.tensors if name not in tiny_mixer.analysis.losses}
    assert all(head.tensors[name].type == base.tensors[name].type for name in kept)
    assert all(len(base.tensors[name].shape) > 1 for name in mix.recipe)
    assert not [name for name in kept if base.tensors[name].shape[0] > 512 and len(base.tensors[name].shape) == 2]


def test_rows_that_no_block_type_takes_become_f16_as_in_stock_files(
    mixer_of: Callable[..., RecipeSearch], tmp_path: Path
) -> None:
    """As the trained 260K Llama has them, whose inner width is 172."""
    base = small.dense(tmp_path / "base.gguf", width=64, ffn=172, dtype=np.float32)
    mixer = mixer_of(base, small.imatrix(tmp_path / "imatrix.gguf", base), tmp_path / "work")
    down = "blk.0.ffn_down.weight"
    assert mixer.stock("Q8_0")[down] == "F16" and set(mixer.analysis.losses[down]) == {"F16", "F32"}
    budget = mixer.analysis.tensor_bytes(mixer.stock("Q8_0"))
    mix = mixer.mix(budget, FAST)
    assert mix.recipe[down] == "F16" and mixer.analysis.tensor_bytes(mix.recipe) <= budget
    assert mixer.least(FAST) < mixer.analysis.tensor_bytes({**mix.recipe, down: "F32"})
    mixer.make(mix, tmp_path / "mix.gguf", {}, "Q8_0")
    assert read_head(tmp_path / "mix.gguf").tensors[down].type == "F16"


def test_below_the_smallest_mix_a_stock_file_is_made(tiny_mixer: RecipeSearch) -> None:
    head = tiny_mixer.head_size(target.metadata(size_of(1), bpw=10.0))
    least = tiny_mixer.least(FAST) + head
    assert not sized(tiny_mixer, size_of(least), FAST).mix.stock
    fitting = tiny_mixer.stock_that_fits(least - 1)
    if not fitting:
        with pytest.raises(UsageError, match=f"{least - 1}B is too small .* smallest mix takes"):
            sized(tiny_mixer, size_of(least - 1), FAST)
        return
    found = sized(tiny_mixer, size_of(least - 1), FAST)
    assert found.mix.recipe == tiny_mixer.stock(found.mix.stock) and found.mix.stock in fitting
    with pytest.raises(UsageError, match=r"50000B is too small .* smallest mix takes .*: ask for more"):
        sized(tiny_mixer, size_of(50_000), FAST)


def test_standard_goes_below_the_smallest_mix_of_fast(tiny_mixer: RecipeSearch) -> None:
    least = tiny_mixer.least(STANDARD)
    assert least < tiny_mixer.least(FAST)
    found = tiny_mixer.mix(least, STANDARD, against="Q2_K")
    assert found.stock or tiny_mixer.analysis.tensor_bytes(found.recipe) <= least


def size_of(size: int) -> target.Target:
    found = target.parse(size=f"{size}B")
    assert found is not None
    return found


def test_the_best_stock_file_is_the_one_to_beat(
    tiny_mixer: RecipeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = tiny_mixer.stock_size("Q5_1")
    fitting = tiny_mixer.stock_that_fits(size)
    assert {"Q5_1", "Q5_K_M", "Q2_K", "IQ2_XXS"} <= set(fitting) and "Q8_0" not in fitting
    largest, liked = max(fitting, key=lambda name: fitting[name]), tiny_mixer.rival(size)
    klds = {name: tiny_mixer.divergence(tiny_mixer.stock(name), label=name, stock=True) for name in {largest, liked}}
    assert klds[liked] == min(klds.values())
    lacking = small.imatrix(tmp_path / "imatrix.gguf", tiny_mixer.base, without=["blk.1.time_mix_key.weight"])
    monkeypatch.setattr(tiny_mixer, "stock_imatrix", read_imatrix(lacking))
    assert tiny_mixer.stock_that_fits(size).keys() == {
        n for n in fitting if not n.startswith(("IQ1", "IQ2", "IQ3_XXS", "Q2_K_S"))
    }


def test_thorough_measures_once(
    tiny_mixer: RecipeSearch, mixer_of: Callable[..., RecipeSearch], tmp_path: Path
) -> None:
    first = mixer_of(tiny_mixer.base, tiny_mixer.imatrix_path, tmp_path / "work")  # that has measured nothing yet
    size = first.stock_size("Q4_K_M")
    mix, out = made(first, tmp_path / "a.gguf", size=size, mode=THOROUGH, against="Q4_K_M")
    assert out.stat().st_size <= size
    assert not mix.stock and mix.kld is not None and mix.stock_kld is not None and mix.kld < mix.stock_kld
    assert measured(first, out) == pytest.approx(mix.kld, abs=2e-6)
    probes = first.divergence.measured
    assert 20 < probes <= 26 + 1 + 1 + 8  # probes, anchor, stock, candidates and the fast recipe
    again = mixer_of(first.base, first.imatrix_path, first.config.folder)
    same, other = made(again, tmp_path / "b.gguf", size=size, mode=THOROUGH, against="Q4_K_M")
    assert again.divergence.measured == 0 and same == mix
    assert other.read_bytes() == out.read_bytes()
    made(again, tmp_path / "c.gguf", size=size * 9 // 10, mode=THOROUGH)
    assert again.divergence.measured <= 8  # candidates only
    sizes, klds = zip(*again.frontier(THOROUGH), strict=True)
    assert list(sizes) == sorted(set(sizes)) and list(klds) == sorted(set(klds), reverse=True)
    assert again.divergence.measured <= 7
    again.close()
    kept = {path.name for path in again.config.folder.iterdir() if not path.name.startswith(".")}
    assert kept == {"losses.jsonl", "divergences.jsonl"}


def test_the_stock_file_wins_where_it_is_better(
    tiny_mixer: RecipeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = {name: min(losses, key=lambda kind: -losses[kind]) for name, losses in tiny_mixer.analysis.losses.items()}
    size = tiny_mixer.stock_size("Q5_K_M")
    fast, _ = made(tiny_mixer, tmp_path / "fast.gguf", size=size, mode=FAST)
    with monkeypatch.context() as only:  # the probes have misled
        only.setattr(RecipeSearch, "_solved", lambda *words, **named: worst)
        mix, _ = made(tiny_mixer, tmp_path / "mix.gguf", size=size, mode=STANDARD, against="Q5_K_M")
        assert mix.recipe == fast.recipe
    monkeypatch.setattr(RecipeSearch, "solve", lambda *words, **named: Allocation(recipe=worst, size=0, cost=0.0))
    mix, out = made(tiny_mixer, tmp_path / "stock.gguf", size=size, mode=STANDARD, against="Q5_K_M")
    assert mix.stock == "Q5_K_M" and out.stat().st_size == size
    types = {name: tensor.type for name, tensor in read_head(out).tensors.items()}
    assert types == dict(tiny_mixer.stock("Q5_K_M"))


def test_experts_and_odd_widths(mixer_of: Callable[..., RecipeSearch], tmp_path: Path) -> None:
    base = small.mixture(tmp_path / "base.gguf")
    recipe_search = mixer_of(base, small.imatrix(tmp_path / "imatrix.gguf", base), tmp_path / "work")
    size = recipe_search.stock_size("Q4_K_M")
    mix, out = made(recipe_search, tmp_path / "out.gguf", size=size, mode=FAST)
    assert 0.99 * size <= out.stat().st_size <= size
    assert "blk.0.ffn_gate_inp.weight" not in mix.recipe
    assert {mix.recipe["blk.0.attn_q.weight"]} <= {"Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"}
    without = mixer_of(base, None, tmp_path / "without")
    mix, _ = made(without, tmp_path / "without.gguf", size=without.stock_size("Q2_K"), mode=FAST)
    assert not {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"} & set(mix.recipe.values())


def test_the_probe_text_is_disjoint_from_the_others() -> None:
    texts = ensure_texts(Settings.from_env().cache)
    assert texts.probe.stat().st_size > 50_000
    for one, other in ((texts.probe, texts.calibration), (texts.probe, texts.evaluation)):
        check_disjoint(one, other)
        paragraphs = [set(path.read_text().split("\n\n")) for path in (one, other)]
        assert not {p for p in paragraphs[0] & paragraphs[1] if len(p) > 120}


# ---- the analysis


def test_each_tensor_is_hashed_once_and_a_stop_comes_between_two_types(
    tiny_mixer: RecipeSearch, mixer_of: Callable[..., RecipeSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "RUNGS", ("Q4_K", "Q6_K", "Q8_0"))  # the quick ones
    hashed: list[str] = []
    digest = loss._digest

    def counted(*words: Any) -> str:
        hashed.append(digest(*words))
        return hashed[-1]

    monkeypatch.setattr(loss, "_digest", counted)
    known = mixer_of(tiny_mixer.base, tiny_mixer.imatrix_path, tmp_path).analysis.losses
    assert len(hashed) == len(known) > 20
    stopped = mixer_of(tiny_mixer.base, tiny_mixer.imatrix_path, tmp_path / "stopped")
    table = tmp_path / "stopped" / "losses.jsonl"
    stopped.stock("Q4_K_M")
    stopped.config = replace(stopped.config, stopped=lambda: table.exists() and table.read_text().count("key") > 2)
    with pytest.raises(Cancelled):
        _ = stopped.analysis
    assert table.read_text().count("key") < sum(map(len, known.values())) / 2


# ---- sensitivities


def test_sensitivities_come_back_from_figures_that_follow_them(tiny_mixer: RecipeSearch) -> None:
    analysis, groups = tiny_mixer.analysis, tiny_mixer.groups(26)
    assert 10 < len(groups) <= 26
    truth = {group: 1e-7 * (1 + number % 7) for number, group in enumerate(groups)}
    recipe, lower = probing.anchor(analysis)

    def figure(one: dict[str, str], by: dict[str, float]) -> Measured:
        return Measured(recipe=one, kld=probing.predicted(analysis, groups, by, one))

    at = figure(recipe, truth)
    probes = {group: figure(probing.probe(recipe, lower, names), truth) for group, names in groups.items()}
    prior = tiny_mixer.prior()
    found = probing.sensitivities(analysis, groups, at, probes, prior)
    assert found == pytest.approx(truth, rel=1e-6)
    first = next(iter(groups))
    noisy = probes | {first: dataclasses.replace(probes[first], kld=at.kld * 0.9)}
    assert 0 < probing.sensitivities(analysis, groups, at, noisy, prior)[first] < 1e-8
    halved = {group: value / 2 for group, value in truth.items()}
    refitted = probing.refit(analysis, groups, truth, [figure(recipe, halved)])
    assert probing.predicted(analysis, groups, refitted, recipe) == pytest.approx(at.kld / 2, rel=0.05)
    assert probing.refit(analysis, groups, truth, [at]) == pytest.approx(truth)


# ---- the command


def lines(folder: Path, table: str = "divergences") -> list[str]:
    found = list(folder.glob(f"mixes/*/{table}.jsonl"))
    return [json.loads(line)["key"] for path in found for line in path.read_text().splitlines() if line.endswith("}")]


def test_killed_and_run_again(ggufy: Ggufy, ggufy_environment: dict[str, str], text: Path, tmp_path: Path) -> None:
    """Four kills with SIGKILL, at whatever is being done; then the same file as without, and no figure twice."""
    base = tiny.converted(tmp_path, "7", outtype="f16", width=256, layers=1, ffn=256)
    command = ["mix", base, "--imatrix", small.imatrix(tmp_path / "imatrix.gguf", base), "--like", "IQ4_XS"]
    command += ["--mode", "standard", "--text", text, "--chunks", CHUNKS, "--threads", 2]
    cache = tmp_path / "cache"
    environment = ggufy_environment | {"GGUFY_CACHE": str(cache)}
    out, plain = tmp_path / "killed.gguf", tmp_path / "plain.gguf"
    for table, wanted in (("losses", 40), ("divergences", 1), ("divergences", 4), ("divergences", 9)):
        words = [sys.executable, "-m", "ggufy", *map(str, command), "--out", str(out)]
        child = subprocess.Popen(
            words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
        while len(lines(cache, table)) < wanted and child.poll() is None:
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not out.exists()
    before = lines(cache)
    done = ggufy(*command, "--out", out, "--json", GGUFY_CACHE=str(cache))
    assert done.code == 0, done.err
    record = json.loads(done.out)
    after = lines(cache)
    assert after[: len(before)] == before and len(set(after)) == len(after)
    losses = lines(cache, "losses")
    assert len(losses) > 80 and len(set(losses)) == len(losses)
    assert record["measured"] == len(after) - len(before)
    assert record["size"] == out.stat().st_size <= record["limit"]
    assert ggufy(*command, "--out", plain, GGUFY_CACHE=str(tmp_path / "other")).code == 0
    assert sha256(plain) == sha256(out)


def test_the_command_on_the_demo(ggufy: Ggufy, llama_bin: Path, tmp_path: Path) -> None:
    done = ggufy("mix", "demo", "--target-bpw", "4.5", "--mode", "fast", "--json", "--out", tmp_path)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    file = Path(record["file"])
    assert file == tmp_path / "RWKV-x070-Demo-7M-4.5bpw-IQ4_XS_FIT.gguf"
    assert 4.5 * 0.995 <= record["bpw"] <= 4.5
    head = read_head(file)
    assert head.metadata["ggufy.bits_per_weight"] == f"{record['bpw']:.5f}"
    assert record["scalar"] + record["codebook"] == sum(kind not in UNQUANTIZED for kind in record["recipe"].values())
    assert {"coarse", "fine", "kurtosis", "type"} == set(record["proxies"]["token_embd.weight"])
    said = subprocess.run(
        [llama_bin / "llama-completion", "-m", file, "-p", "The file", "-n", "4", "-no-cnv", "--simple-io", "-t", "2"],
        capture_output=True, text=True, errors="replace", timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-500:]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "give one size"),
        (["--target-size", "1MB", "--target-bpw", "4"], "exclude each other"),
        (["--target-size", "1MB", "--like", "Q4_K_M"], "give one size"),
        (["--like", "Q9"], "no quant type"),
        (["--target-size", "huge"], "is no size"),
        (["--target-bpw", "4", "--chunks", "1"], "--chunks must be"),
        (["--target-bpw", "4", "--threads", "0"], "--threads must be"),
    ],
)
def test_what_cannot_be_asked_for(ggufy: Ggufy, tmp_path: Path, words: list[str], complaint: str) -> None:
    done = ggufy("mix", "demo", *words, "--out", tmp_path)
    assert done.code == 2 and complaint in done.err and len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(ggufy: Ggufy, tiny_mixer: RecipeSearch, tmp_path: Path) -> None:
    base = tmp_path / "model-F16.gguf"
    base.write_bytes(tiny_mixer.base.read_bytes())
    other = tmp_path / "notes.gguf"
    other.write_text("mine")
    for out in (base, other):
        before = out.read_bytes()
        done = ggufy("mix", base, "--imatrix", "none", "--target-bpw", "6", "--mode", "fast", "--out", out)
        assert done.code == 2 and f"{out} is there already" in done.err, done.err
        assert out.read_bytes() == before


def test_an_unquantized_source_is_asked_for(ggufy: Ggufy, tiny_mixer: RecipeSearch, tmp_path: Path) -> None:
    size = tiny_mixer.stock_size("Q4_K_M")
    _, quant = made(tiny_mixer, tmp_path / "q.gguf", size=size, mode=FAST)
    done = ggufy("mix", quant, "--imatrix", "none", "--target-bpw", "3", "--out", tmp_path / "again.gguf")
    assert done.code == 1 and "quantized already" in done.err
    shutil.rmtree(tmp_path / "kld", ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]
