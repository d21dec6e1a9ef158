"""A README.md that ggufy shares with people: what is theirs stays, whatever is written anew."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ggufy.cli.main import build_parser
from ggufy.core.errors import UsageError
from ggufy.core.job import Job, Making, Request, Status
from ggufy.core.metrics import Evaluation, Quality
from ggufy.core.source import Source
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.publish.card import CARD, CardFacts, card, check_readme, merge_readme, pages
from ggufy.system.settings import Settings
from ggufy.ui.form import job_options
from tests import tiny

pytestmark = pytest.mark.fast

SOURCE = Source(kind="checkpoint", path="m.pth", size=1, sha256="ab" * 32, model_id="owner/m")
REQUEST = Request(name="m", source=SOURCE, quant_types=("Q4_K_M",), outtype="f16", repo_id="alice/m-GGUF")
FACTS = CardFacts(uploaded={"m-Q4_K_M.gguf": 1000}, license="mit", rwkv=True)
JOB = Job(request=replace(REQUEST, imatrix="none"), status=Status.RUNNING)
LATER = Job(request=replace(REQUEST, quant_types=("Q4_K_M", "Q6_K")), status=Status.DONE)
HAND = "---\nlicense: apache-2.0\n---\n# My model\n\nWritten by hand.\n"


def written(job: Job, readme: str | None = None, facts: CardFacts = FACTS) -> str:
    return pages(job, facts, readme=readme)[CARD]


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.removeprefix("---\n").split("\n---\n")[0])
    return found


def test_a_readme_of_somebodys_own_is_refused() -> None:
    for text in (HAND, "# My model", "---\nlicense: mit\n---\n", HAND + "quantized_by: somebody", "\ufeff" + HAND):
        with pytest.raises(
            UsageError, match="alice/m already has a README.md that ggufy did not write: .*--keep-card"
        ):
            check_readme(text, "alice/m")
    for ours in (None, "", "\n", written(JOB), card(JOB, FACTS), card(JOB, FACTS).replace("by: ggufy", 'by: "ggufy"')):
        check_readme(ours)
    check_readme(re.sub("(?s)---\n.*?---\n", "", written(JOB), count=1))  # the front matter was taken away


def test_a_repo_that_keeps_its_card_gets_no_pages() -> None:
    assert pages(JOB.evolve(request=replace(JOB.request, keep_card=True)), FACTS, readme=HAND) == {}
    kept = replace(REQUEST, keep_card=True)
    assert (kept.inputs(), kept.job_id) == (REQUEST.inputs(), REQUEST.job_id)


def test_keeping_a_card_can_be_asked_for_everywhere(tmp_path: Path) -> None:
    assert build_parser().parse_args(["quantize", "demo", "--keep-card"]).keep_card
    form = {"source": "demo", "types": ["Q8_0"]}
    assert job_options(form | {"keep_card": True}).keep_card and not job_options(form | {"keep_card": None}).keep_card
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path)})
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7")
    options = JobOptions(
        source=str(checkpoint), vocab=str(vocab), quant_types=("Q8_0",), imatrix="none", keep_card=True
    )
    assert make_job(replace(options, owner="alice"), settings).request.keep_card
    assert not make_job(options, settings).request.keep_card  # into a folder here


def test_a_card_that_nobody_changed_is_replaced_whole() -> None:
    again = written(LATER, written(JOB))
    assert again == written(LATER)
    assert front(again)["tags"] == ["gguf", "llama-cpp", "ggufy", "imatrix"]
    assert written(JOB, again) == written(JOB)


def test_what_people_wrote_stays_where_it_is() -> None:
    begin, end = written(JOB).index("<!-- ggufy:begin"), len(written(JOB))
    text = written(JOB)
    edited = text[:begin] + "> A note above.\n\n" + text[begin:end] + "\n## My notes\n\n```\n\n--- not ours\n```\n"
    again = written(LATER, edited)
    assert "> A note above.\n\n<!-- ggufy:begin" in again
    assert again.endswith("<!-- ggufy:end -->\n\n## My notes\n\n```\n\n--- not ours\n```\n")
    assert "Q6_K" in again and again.count("# m-GGUF") == again.count("ggufy:begin") == 1
    assert written(LATER, again) == again


def test_what_people_made_of_the_front_matter_stays() -> None:
    text = written(JOB)
    assert front(text)["license"] == "mit"
    changed = text.replace("license: mit\n", "license: cc-by-4.0  # as agreed\nlanguage:\n  - zh\n  - en\n", 1)
    changed = changed.replace("- llama-cpp\n", "").replace("- ggufy\n", "- ggufy\n- music\n", 1)
    changed = changed.replace("base_model_relation: quantized\n", "", 1).replace(
        "library_name: gguf", "library_name: x", 1
    )
    again = written(LATER, changed)
    assert "license: cc-by-4.0  # as agreed\nlanguage:\n  - zh\n  - en\n" in again
    told = front(again)
    assert (told["license"], told["language"], told["library_name"]) == ("cc-by-4.0", ["zh", "en"], "x")
    assert told["tags"] == ["gguf", "ggufy", "music", "imatrix"]  # one was taken away, one added, one is new
    assert "base_model_relation" not in told and told["base_model"] == "owner/m"
    assert written(LATER, again) == again


def test_what_only_the_source_changed_is_followed() -> None:
    text = written(JOB)
    now = replace(FACTS, license="apache-2.0")
    assert front(written(JOB, text, now))["license"] == "apache-2.0"
    assert "license" not in front(written(JOB, text, replace(FACTS, license="")))
    theirs = text.replace("license: mit\n", "license: other\n", 1)
    assert front(written(JOB, theirs, now))["license"] == "other"


@pytest.mark.parametrize(
    "broken", ["a: [1", "- a\n- b", "just words", "{license: x, tags: [a]}", "a: b: c", "d: 2026-02-30"]
)
def test_front_matter_that_cannot_be_read_is_not_touched(broken: str) -> None:
    text = f"---\n{broken}\n---\n\n" + written(JOB).split("\n---\n\n", 1)[1]
    assert written(LATER, text).startswith(f"---\n{broken}\n---\n\n<!-- ggufy:begin")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_card_of_an_older_version_keeps_what_was_added(ending: str) -> None:
    """They had no marks: every paragraph that is none of the card's own was written by people."""
    old = card(JOB, FACTS).replace("license: mit", "license: bsd\nlanguage: zh", 1)
    old = old.replace("## How it was made", "My note about quality.\n\n## How it was made", 1)
    old += "\n## License\n\nAsk me.\n\n```\ncode\n```\n"
    again = written(LATER, old.replace("\n", ending))
    assert again.split("<!-- ggufy:end -->")[1] == (
        "\n\nMy note about quality.\n\n## License\n\nAsk me.\n\n```\ncode\n```\n"
    )
    told = front(again)
    assert (told["license"], told["language"]) == ("bsd", "zh")
    assert told["tags"] == ["gguf", "llama-cpp", "ggufy", "imatrix"]
    assert written(LATER, again) == again


def evaluation(quant: str, tokens: int) -> Evaluation:
    zeros = dict.fromkeys(Quality.__dataclass_fields__, 0.1)
    rest = dict.fromkeys(("quant_sha256", "base", "base_sha256", "text", "text_sha256", "llama"), "")
    return Evaluation(
        quant=quant, size=1, bpw=4.0, chunks=1, tokens=tokens, quality=Quality(**zeros), speed=None, **rest
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("broken", ["no end", "no marks"])
def test_every_paragraph_of_a_card_is_known_as_ours(status: Status, broken: str) -> None:
    """So a card whose marks were taken away does not double."""
    labels = ("1.2GB-IQ3_XXS_FIT", "900MB-IQ2_M_FIT")
    request = replace(REQUEST, quant_types=("Q4_K_M", "Q6_K", "Q8_0"), targets=labels, mode="thorough", mix="rwkv")
    measured = [evaluation(f"m-{quant}.gguf", tokens) for quant, tokens in (("Q4_K_M", 9), ("Q6_K", 9), ("Q8_0", 4))]
    making = {f"m-{labels[0]}.gguf": Making(mode="fast"), "m-Q4_K_M.gguf": Making(mix="rwkv", rescaled=True)}
    for imatrix, uploaded in (
        ("auto", {}),
        ("file", {"m-Q4_K_M.gguf": 1}),
        ("none", {f"m-{x}.gguf": 1 for x in labels}),
    ):
        job = Job(request=replace(request, imatrix=imatrix), status=status, evaluations=tuple(measured))
        text = written(job, facts=replace(FACTS, making=making, uploaded=uploaded))
        left = text.replace("<!-- ggufy:end -->", "")
        left = left if broken == "no end" else re.sub("<!-- ggufy:begin.*\n", "", left)
        assert written(job, left, replace(FACTS, making=making, uploaded=uploaded)) == text


def test_a_name_cannot_end_the_card() -> None:
    source = replace(SOURCE, path="<!-- ggufy:end -->.pth", model_id="a--b/<!-- ggufy:end -->")
    job = JOB.evolve(request=replace(JOB.request, source=source))
    text = written(job)
    assert text.count("<!-- ggufy:end -->\n") == 1 and text.count("-->") <= text.count("ggufy:end -->") + 1
    assert written(job, written(job, text)) == text


def test_merging_needs_no_job() -> None:
    assert merge_readme(None, "---\na: b\n---\n\nbody\n").startswith("---\na: b\n---\n\n<!-- ggufy:begin")
    assert merge_readme("plain text, no marks\n", "---\na: b\n---\nbody").endswith("\n\nplain text, no marks\n")
