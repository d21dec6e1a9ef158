"""Kinds of writing: what a text holds, what a model speaks, and when somebody is warned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy import demo
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.core.writing import NAMES, SYSTEMS, WritingShare, list_shares, missing_systems, warn_of_texts
from ggufy.jobs.request import make_job
from ggufy.jobs.texts import split_texts
from ggufy.jobs.values import read_options
from ggufy.models.vocab import load_vocab, world_vocab_path
from ggufy.publish.card import CardFacts, card
from ggufy.service.job_views import JobView
from ggufy.system.settings import Settings
from ggufy.texts.writing import (
    BYTES_A_TOKEN,
    WORLD_SPEAKS,
    shares_of,
    shares_read,
    systems_of_metadata,
    systems_of_vocabulary,
)
from ggufy.ui.form import estimate_options
from ggufy.ui.i18n import TEXTS
from ggufy.ui.views import job_line
from tests.test_job import REQUEST

pytestmark = pytest.mark.fast
SAMPLES = {
    "english": "The lamp on the pier went out at nine, and nobody in the village knew who had to light it again.\n",
    "latin": "Die Lampe am Steg ging um neun Uhr aus, und niemand im Dorf wusste, wer sie wieder anmachen musste.\n",
    "chinese": "码头上的灯九点就灭了，村里没有人知道该由谁再把它点亮。第二天早上，渔夫们自己修好了它。\n",
    "japanese": "桟橋の灯りは九時に消えて、村の誰もそれを再び灯すのが誰の役目なのかを知らなかった。\n",
    "korean": "부두의 등불은 아홉 시에 꺼졌고, 마을 사람 누구도 누가 다시 켜야 하는지 몰랐다.\n",
    "cyrillic": "Фонарь на причале погас в девять, и никто в деревне не знал, кто должен зажечь его снова.\n",
    "arabic": "انطفأ المصباح على الرصيف في التاسعة، ولم يعرف أحد في القرية من عليه أن يشعله من جديد.\n",
    "other": "๐ ตะเกียงบนท่าเรือดับตอนสามทุ่มและไม่มีใครในหมู่บ้านรู้ว่าใครต้องจุดมันอีกครั้ง\n",
}
PYTHON = """def light(lamp, hour):
    if hour > 21:
        lamp.on = True
    return lamp

for lamp in read_lamps(path):
    light(lamp, hour=22)
    print(lamp.name)
"""
C = """#include <stdio.h>
int main(void) {
    int lit = 0;
    for (int n = 0; n < 10; n++) {
        lit += n;
    }
    printf("%d", lit);
    return 0;
}
"""


def test_every_kind_is_told() -> None:
    assert {kind: shares_of(text * 20) for kind, text in SAMPLES.items()} == {
        kind: (WritingShare(kind=kind, percent=100),) for kind in SAMPLES
    }
    for text in (PYTHON, C, "```\nwhatever stands in here\nis code\n```\n"):
        assert shares_of(text * 20) == (WritingShare(kind="code", percent=100),)
    assert {*SAMPLES, "code"} == set(NAMES)


def test_shares_of_a_mixture_are_of_its_bytes() -> None:
    parts = {kind: text * (9000 // len(text.encode())) for kind, text in SAMPLES.items()} | {"code": PYTHON * 45}
    text = "\n\n".join(parts.values())
    whole = len(text.encode())
    found = {one.kind: one.percent for one in shares_of(text)}
    assert found == {kind: pytest.approx(100 * len(part.encode()) / whole, abs=2) for kind, part in parts.items()}
    assert shares_of(text) == shares_of(text)
    half = SAMPLES["chinese"].strip() + " " + "light " * (len(SAMPLES["chinese"].encode()) // 6)  # in one line
    assert {one.kind: one.percent for one in shares_of(half)}["chinese"] == pytest.approx(50, abs=6)


def test_lone_words_of_code_and_kana_change_nothing() -> None:
    prose = SAMPLES["english"] * 4 + "Call it again with light(lamp);\n" + SAMPLES["english"] * 4
    assert [one.kind for one in shares_of(prose)] == ["english"]
    quoted = SAMPLES["chinese"] * 3 + SAMPLES["chinese"].strip() + "の\n"
    assert [one.kind for one in shares_of(quoted)] == ["chinese"]


def test_what_is_no_text_has_no_shares() -> None:
    assert shares_of("") == shares_of(" \n\t\n") == ()
    assert shares_of("1 2 3\n4 5 6\n") == (WritingShare(kind="other", percent=100),)


def test_a_large_text_is_told_by_pieces_of_all_of_it() -> None:
    one, other = SAMPLES["english"], SAMPLES["chinese"]
    text = one * (6_000_000 // len(one)) + other * (6_000_000 // len(other.encode()))
    assert {share.kind for share in shares_of(text)} == {"english", "chinese"}


def test_only_what_is_read_of_a_text_counts(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    read = 3 * 512 * BYTES_A_TOKEN
    text.write_text(SAMPLES["english"] * (1 + read // len(SAMPLES["english"])) + SAMPLES["chinese"] * 50, "utf-8")
    assert [one.kind for one in shares_read(text, 3)] == ["english"]
    assert {one.kind for one in shares_read(text, 0)} == {"english", "chinese"}


def test_vocabularies_tell_what_a_model_speaks() -> None:
    assert systems_of_vocabulary(load_vocab(world_vocab_path())) == WORLD_SPEAKS
    assert systems_of_vocabulary(load_vocab(demo.VOCAB)) == ("latin",)
    assert systems_of_vocabulary(bytes([byte]) for byte in range(256)) == ()


def test_metadata_tell_what_a_model_speaks() -> None:
    assert systems_of_metadata({"general.languages": ["zh-CN", "en", "ru", "tlh"]}) == ("latin", "chinese", "cyrillic")
    assert systems_of_metadata({"general.languages": 5}) == systems_of_metadata({}) == ()


def test_one_sentence_names_what_is_missing() -> None:
    english, both = shares_of(SAMPLES["english"]), shares_of(SAMPLES["english"] + SAMPLES["chinese"])
    assert missing_systems(WORLD_SPEAKS, english) == ("chinese",)
    assert (
        missing_systems(WORLD_SPEAKS, both) == missing_systems((), english) == missing_systems(WORLD_SPEAKS, ()) == ()
    )
    assert missing_systems(WORLD_SPEAKS, shares_of(PYTHON + SAMPLES["chinese"] * 3)) == ()  # code has Latin letters
    calibration, evaluation = warn_of_texts(WORLD_SPEAKS, english, english)
    assert calibration.startswith("the calibration text has no Chinese")
    assert evaluation.startswith("the evaluation text has no Chinese")
    assert warn_of_texts(WORLD_SPEAKS, both, both) == []
    assert len(warn_of_texts(SYSTEMS, english, ())) == len(SYSTEMS) - 1


def test_records_keep_the_shares_and_older_ones_have_none() -> None:
    shares = (WritingShare(kind="english", percent=60), WritingShare(kind="code", percent=40))
    request = replace(REQUEST, speaks=("latin",), calibration_writing=shares, evaluation_writing=shares[:1])
    assert request.job_id == REQUEST.job_id
    assert list_shares(shares) == "60 % English, 40 % code"
    text = to_json(Job(request=request))
    assert from_json(text).request == request
    record = json.loads(text)
    for name in ("speaks", "calibration_writing", "evaluation_writing"):
        del record["request"][name]
    assert from_json(json.dumps(record)).request == REQUEST


@pytest.mark.parametrize(
    "wrong", [{"kind": "<b>", "percent": 1}, {"kind": "code", "percent": "<b>"}, {"kind": "code"}]
)
def test_records_with_kinds_that_nobody_knows_are_refused(wrong: dict[str, object]) -> None:
    record = json.loads(to_json(Job(request=REQUEST)))
    record["request"]["calibration_writing"] = [wrong]
    with pytest.raises(ValueError, match="not a job record"):
        from_json(json.dumps(record))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_has_a_word_for_every_kind(language: str) -> None:
    assert all(TEXTS[language][f"writing_{kind}"] for kind in NAMES)


def test_jobs_cards_and_the_page_say_what_is_read(tmp_path: Path) -> None:
    text = tmp_path / "zh.txt"
    text.write_text("".join(f"第{n}条船回到了码头，船上有{n * n}条鱼。\n" for n in range(200)), encoding="utf-8")
    cache = str(Settings.from_env().cache)  # where the texts are, which take seconds to make
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path), "GGUFY_CACHE": cache})
    asked = {"evaluation": f"bundled,{text}", "quant_types": "Q8_0"}
    job = make_job(read_options("demo", asked), settings)
    request = job.request
    assert request.speaks == ("latin",)
    assert [text.writing[0].kind for text in request.evaluation_texts] == ["english", "chinese"]
    assert {"english", "chinese", "code"} <= {one.kind for one in request.calibration_writing}
    said = list_shares(request.calibration_writing)
    assert f": {said}." in card(job, CardFacts(uploaded={}))
    view = JobView(job=job, files=(), folder=tmp_path)
    assert [line.partition(": ")[0] for line in job_line(view, TEXTS["en"]).writing] == [
        "imatrix text",
        "measured on",
        "measured on",
    ]
    world = job.evolve(request=replace(request, speaks=WORLD_SPEAKS, calibration_writing=request.evaluation_writing))
    last = job_line(replace(view, job=world), TEXTS["zh"]).writing[-1]
    assert last.startswith("校准文本中没有中文，")  # the evaluation texts have some


@pytest.mark.parametrize(
    ("choice", "texts"),
    [
        ("bundled", ["bundled"]),
        ("bundled, zh.txt", ["bundled", "zh.txt"]),
        ("me/texts:zh.txt,bundled,", ["me/texts:zh.txt", "bundled"]),
        ("https://example.org/a,b.txt", ["https://example.org/a,b.txt"]),
        (",", [","]),
    ],
)
def test_several_texts_stand_between_commas(choice: str, texts: list[str]) -> None:
    assert split_texts(choice) == texts


def test_the_form_counts_what_is_measured_on() -> None:
    counts = [estimate_options({"evaluation": text}).texts for text in ("bundled", "a.txt,b.txt", "", 5)]
    assert counts == [1, 2, 1, 1]


def test_a_file_whose_name_has_a_comma_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "one,two.txt"
    path.touch()
    assert split_texts(str(path)) == [str(path)]
