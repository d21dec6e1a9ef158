"""`ggufy compare`: what records, `evaluate` and cards say of files, side by side where that means something."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hub_fixture import ALICE, LocalHub
from PIL import Image

from ggufy.core.comparison import CSV_HEAD, ComparedFile, apart, grouped, to_csv
from ggufy.core.errors import UsageError
from ggufy.core.job import Job, Status
from ggufy.core.metrics import Evaluation, memory_needed, to_json
from ggufy.jobs.compared import in_folder, picture, points
from ggufy.publish.card import CardFacts, pages
from ggufy.publish.card_figures import read_tables
from ggufy.publish.kld_plot import Dot, Words, drawn, scatter
from ggufy.publish.plot_png import COLOURS, SCALE
from ggufy.records.store import EVALUATIONS, STATE_REPO
from ggufy.system.files import sha256
from tests import measured
from tests.conftest import Finished, Ggufy
from tests.measured import KLDS, SIZES, digest

WORDS = Words(size="size", kld="KLD", title="plot")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def files(out: Path) -> list[ComparedFile]:
    return [file for folder in sorted(out.glob("*-GGUF")) for file in in_folder(folder, out=out)]


def test_files_of_one_base_stand_in_one_table_with_all_figures(tmp_path: Path) -> None:
    job = measured.measured_model(tmp_path, "m")
    (group,) = grouped(files(tmp_path))
    assert [file.type for file, _ in group.files] == ["Q2_K", "Q4_K_M", "Q8_0", "F16"]
    for (file, figures), kind in zip(group.files, ("Q2_K", "Q4_K_M", "Q8_0"), strict=False):
        was = next(one for one in job.evaluations if one.quant == file.file)
        assert figures is not None and file.generation is not None and was.speed is not None
        assert (figures.kld.value, figures.kld.error) == (KLDS[kind], was.quality.kld_error)
        assert (file.generation.value, file.threads, file.bpw) == (57.31, 2, was.bpw)
    base, figures = group.files[-1]
    assert base.is_base and figures is not None
    assert (figures.kld.value, figures.ppl.value, figures.ppl_ratio.value) == (0.0, 12.0, 1.0)


def test_other_bases_texts_and_numbers_of_tokens_are_other_groups(tmp_path: Path) -> None:
    asked = measured.request("m")
    found = {
        "Q8_0": measured.evaluation(asked, "Q8_0"),
        "Q4_K_M": measured.evaluation(asked, "Q4_K_M", chunks=64),
        "Q2_K": measured.further(measured.evaluation(asked, "Q2_K"), "zh.txt"),
    }
    measured.write_model(tmp_path, asked, found)
    groups = grouped(files(tmp_path))
    shown = {
        (group.basis.text, group.basis.tokens): [file.type for file, _ in group.files]
        for group in groups
        if group.basis
    }
    assert shown == {
        ("held-out.txt", 4080): ["Q2_K", "Q8_0", "F16"],
        ("zh.txt", 4080): ["Q2_K", "F16"],
        ("held-out.txt", 16320): ["Q4_K_M", "F16"],
    }
    assert apart(groups) == ["text", "tokens"]
    measured.measured_model(tmp_path, "other")
    assert apart(grouped(files(tmp_path))) == ["base", "text", "tokens"]


def test_figures_of_other_bytes_are_left_out(tmp_path: Path) -> None:
    asked = measured.request("m")
    right = measured.evaluation(asked, "Q8_0")
    stale = replace(measured.evaluation(asked, "Q4_K_M"), quant_sha256="00" * 32)
    larger = replace(measured.evaluation(asked, "Q2_K"), size=1)
    measured.write_model(tmp_path, asked, {"Q8_0": right, "Q4_K_M": stale, "Q2_K": larger})
    known = {file.type: bool(file.figures) for file in files(tmp_path)}
    assert known == {"F16": True, "Q8_0": True, "Q4_K_M": False, "Q2_K": False}


def test_what_evaluate_measured_counts_for_these_bytes_only(tmp_path: Path) -> None:
    """GGUFs of anybody, in a folder that no job knows."""
    folder, out = tmp_path / "theirs", tmp_path / "out"
    folder.mkdir()
    base, quant = tiny_ggufs(folder)
    one = replace(
        measured.evaluation(measured.request("m"), "Q8_0"),
        quant=quant.name,
        size=quant.stat().st_size,
        quant_sha256=sha256(quant),
        base=base.name,
        base_sha256=sha256(base),
    )
    kept = out / STATE_REPO / EVALUATIONS
    kept.mkdir(parents=True)
    (kept / "x.json").write_text(to_json(one), encoding="utf-8")
    (kept / "broken.json").write_text("{", encoding="utf-8")
    found = {file.file: file for file in in_folder(folder, out=out)}
    assert [bool(found[path.name].figures) for path in (base, quant)] == [True, True]
    assert found[base.name].is_base and found[quant.name].bpw is not None
    raw = bytearray(quant.read_bytes())
    raw[-1] ^= 1
    quant.write_bytes(raw)
    (again,) = in_folder(folder, out=out, only=quant.name)
    assert not again.figures


def tiny_ggufs(folder: Path) -> tuple[Path, Path]:
    import gguf
    import numpy as np

    made = []
    for name, kind in (("m-F16", np.float16), ("m-Q8_0", None)):
        writer = gguf.GGUFWriter(path := folder / f"{name}.gguf", "rwkv7")
        values = np.ones((32, 32), dtype=np.float32)
        if kind is None:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor("token_embd.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor("token_embd.weight", values.astype(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(path)
    return made[0], made[1]


def test_the_csv_read_again_is_the_table(tmp_path: Path) -> None:
    measured.measured_model(tmp_path, "m")
    measured.measured_model(tmp_path, "other")
    groups = grouped(files(tmp_path))
    told = rows(to_csv(groups))
    assert tuple(told[0]) == CSV_HEAD and len(told) == 8
    pairs = [pair for group in groups for pair in group.files]
    for row, (file, figures) in zip(told, pairs, strict=True):
        assert figures is not None
        assert (row["file"], int(row["size"]), row["sha256"]) == (file.file, file.size, file.sha256)
        assert (float(row["kld"]), float(row["ppl"])) == (figures.kld.value, figures.ppl.value)
        assert (row["base_sha256"], int(row["tokens"])) == (figures.basis.base_sha256, figures.basis.tokens)
        assert int(row["memory"]) == memory_needed(file.size)
        speed = file.generation
        told_speed = (float(row["generation_tps"]), float(row["generation_tps_error"])) if speed else None
        assert told_speed == ((speed.value, speed.error) if speed else None)


def test_a_name_is_no_formula_for_a_spreadsheet() -> None:
    evil = ComparedFile(place="=1+1", file='=HYPERLINK("http://x","y").gguf', type="@x", size=1)
    (row,) = rows(to_csv(grouped([evil])))
    assert (row["place"], row["file"], row["type"]) == ("'=1+1", "'" + evil.file, "'@x")


def test_the_picture_has_a_mark_for_every_point(tmp_path: Path) -> None:
    """PNG and SVG are drawn from the same places; a colour and a shape tell bases apart."""
    measured.measured_model(tmp_path, "m")
    measured.measured_model(tmp_path, "other", factor=3.0)
    groups = grouped(files(tmp_path))
    image = Image.open(io.BytesIO(picture(groups))).convert("RGB")
    dots = [shape for shape in drawn(points(groups), WORDS) if isinstance(shape, Dot)]
    assert {(dot.point.name, dot.point.series) for dot in dots} == {(kind, n) for kind in SIZES for n in (0, 1)}
    for dot in dots:
        assert dot.good
        pixel = image.getpixel((round(dot.x * SCALE), round(dot.y * SCALE)))
        assert pixel == tuple(bytes.fromhex(COLOURS[dot.point.series or 0][1:])), dot
    svg = scatter(points(groups), WORDS)
    assert (svg.count("<circle"), svg.count("<polygon"), svg.count("gg-series-1")) == (3, 3, 4)
    with pytest.raises(UsageError, match="a KLD to draw: measure"):
        picture(grouped([replace(file, figures=()) for file in files(tmp_path)]))


def test_files_of_one_type_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    measured.measured_model(tmp_path / "a", "m")
    mine = files(tmp_path / "a")
    theirs = [replace(file, place="somebody/m-GGUF", sha256=digest("x")) for file in mine]
    names = [point.name for point in points(grouped([*mine, *theirs]))]
    assert "Q4_K_M · m-GGUF" in names and "Q4_K_M · somebody/m-GGUF" in names


# ---- the cards of others


def card(name: str, *evaluations: Evaluation) -> str:
    """As ggufy writes it."""
    asked = measured.request(name, repo_id=f"alice/{name}-GGUF")
    uploaded = {f"{name}-F16.gguf": measured.BASE_SIZE}
    uploaded |= {asked.file_of(kind): size for kind, size in SIZES.items()}
    job = Job(request=asked, status=Status.DONE, evaluations=evaluations)
    return pages(job, CardFacts(uploaded=uploaded))["README.md"]


def test_a_card_is_read_as_it_was_written() -> None:
    asked = measured.request("m")
    found = [measured.further(measured.evaluation(asked, kind), "zh.txt") for kind in SIZES]
    told = read_tables(card("m", *found), digest)
    assert set(told) == {"m-F16.gguf", *(asked.file_of(kind) for kind in SIZES)}
    one = told["m-Q4_K_M.gguf"]
    assert (one.type, one.threads, one.bpw) == ("Q4_K_M", 2, 4.4)
    assert one.generation is not None and (one.generation.value, one.generation.error) == (57.3, 0.2)
    first, second = one.figures
    assert (first.kld.value, first.ppl.value, first.same_top.value) == (0.0123, 12.049, 97.8)
    assert second.kld.value == 0.0246
    assert (first.basis.text_sha256, second.basis.text_sha256) == (digest("held-out.txt"), digest("zh.txt"))
    assert first.basis.key == (digest("m-F16.gguf"), digest("held-out.txt"), 4080)
    base = told["m-F16.gguf"]
    assert base.type == "F16" and [one.ppl.value for one in base.figures] == [12.0, 12.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "| file |",
        "| file | KLD |\n|---|---|\n| x | 1.0 |",
        "|" * 5000,
        "| file | type | KLD |\n" + "| a.gguf | base | " * 2000,
        "Measured with x over 9 tokens of y text (sha256 `zz`)",
        "| file | type | KLD | PPL | PPL ratio | same top p |\n|---|\n| a | base GGUF, F16 | NaN | 1e9 | -- | ∞ |\n"
        f"Measured with x against the base over ,,, tokens of y text (sha256 `{'ab' * 32}`)",
    ],
)
def test_a_card_of_somebody_else_s_says_no_figures(text: str) -> None:
    assert not any(row.figures for row in read_tables(text, lambda name: "").values())


# ---- the command


def quick(ggufy: Ggufy, *words: object, **more: str) -> Finished:
    done = ggufy("compare", *words, **more)
    assert "Traceback" not in done.err, done.err
    return done


@pytest.mark.tools
def test_the_command_prints_what_can_be_compared_and_what_to_run(ggufy: Ggufy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    measured.measured_model(out, "m")
    asked = measured.request("half")
    measured.write_model(out, asked, {"Q8_0": measured.evaluation(asked, "Q8_0", threads=4)})
    table, plot = tmp_path / "all.csv", tmp_path / "all.png"
    done = quick(ggufy, out / "m-GGUF", out / "half-GGUF", "--out", out, "--csv", table, "--png", plot)
    assert done.code == 0, done.err
    assert "A  against m-F16.gguf, over 4,080 tokens of held-out.txt" in done.out
    line = next(line for line in done.out.splitlines() if "m-Q4_K_M.gguf" in line)
    for cell in ("110 MB", "4.40", "0.0123 ± 0.0002", "12.049 ± 0.310", "97.8 ± 0.2 %", "210 ± 3", "57.3 ± 0.2"):
        assert cell in line, line
    assert "KLD, PPL ratio and same top p of A, B cannot be compared" in done.out
    assert "Speeds cannot be compared: they were measured with 2 and 4 threads." in done.out
    command = done.out.rstrip().splitlines()[-1].split()
    assert command[:4] == ["python", "-m", "ggufy", "evaluate"]
    assert [Path(word).name for word in command[4:]] == [
        "half-F16.gguf",
        "half-Q2_K.gguf",
        "half-Q4_K_M.gguf",
        "--chunks",
        "16",
    ]
    assert len(rows(table.read_text(encoding="utf-8"))) == 8
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 1000
    done = quick(ggufy, out / "m-GGUF" / "m-Q2_K.gguf", "--out", out, "--json")
    (group,) = json.loads(done.out)["groups"]
    assert group["basis"]["tokens"] == 4080 and group["files"][0]["kld"]["value"] == KLDS["Q2_K"]


@pytest.mark.tools
def test_a_place_that_is_none_is_said(ggufy: Ggufy, tmp_path: Path) -> None:
    assert "is not there: give a folder, a file, or owner/repo" in quick(ggufy, tmp_path / "none.gguf").err
    assert "holds no model to compare" in quick(ggufy, tmp_path).err
    broken = tmp_path / "m-Q8_0.gguf"
    broken.write_bytes(b"GGUX")
    assert "is not a sound GGUF" in quick(ggufy, broken).err


@pytest.mark.tools
def test_a_published_repo_says_what_its_card_says(ggufy: Ggufy, hub: LocalHub, tmp_path: Path) -> None:
    asked = measured.request("m")
    evaluations = [measured.evaluation(asked, kind) for kind in ("Q8_0", "Q4_K_M")]
    contents = {name: name.encode() for name in ("m-F16.gguf", *(asked.file_of(kind) for kind in SIZES))}
    for name, content in {**contents, "m-imatrix.gguf": b"i"}.items():
        hub.put("alice/m-GGUF", name, content, private=1)
    hub.put("alice/m-GGUF", "README.md", card("m", *evaluations).encode(), private=1)
    words, network = ("alice/m-GGUF", "--out", tmp_path, "--json"), hub.environment(tmp_path)
    assert quick(ggufy, *words, **network).code == 1
    done = quick(ggufy, *words, **network, HF_TOKEN=ALICE)
    assert done.code == 0, done.err
    groups = json.loads(done.out)["groups"]
    assert [[one["file"] for one in group["files"]] for group in groups] == [
        ["m-F16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf"],
        ["m-Q2_K.gguf"],
    ]
    found = {one["file"]: one for group in groups for one in group["files"]}
    assert set(found) == set(contents)
    assert found["m-Q4_K_M.gguf"]["kld"] == {"value": 0.0123, "error": 0.0002}
    assert found["m-Q4_K_M.gguf"]["generation"]["value"] == 57.3 and found["m-Q4_K_M.gguf"]["prompt"] is None
    assert "kld" not in found["m-Q2_K.gguf"] and found["m-F16.gguf"]["ppl"]["value"] == 12.0
    one = quick(ggufy, "alice/m-GGUF:m-Q2_K.gguf", "--out", tmp_path, **network, HF_TOKEN=ALICE)
    assert "Of m-Q2_K.gguf the repo's card has no figures" in one.out
