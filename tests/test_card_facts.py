"""The card as a function of records: what others brought, how each file was made, how a job ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest

from ggufy.cli.terminal import results_table
from ggufy.core import errors, job_record
from ggufy.core.errors import CAUSES, DiskError, GgufyError, SourceError, TokenError, without_folders
from ggufy.core.job import Artifact, Job, Making, Request, Status
from ggufy.core.job_sharing import evaluations_for
from ggufy.core.metrics import Evaluation, Quality, Speed
from ggufy.core.plan import quant_name
from ggufy.core.source import Source
from ggufy.hub.protocol import RemoteFile
from ggufy.jobs.results import results
from ggufy.publish.card import CardFacts, pages
from ggufy.publish.card_facts import gather

pytestmark = pytest.mark.fast

SOURCE = Source(kind="checkpoint", path="/home/secret-user/models/m.pth", size=1, sha256="ab" * 32)
REQUEST = Request(
    name="m", source=SOURCE, quant_types=("Q4_K_M", "Q8_0"), outtype="f16", mix="rwkv", repo_id="alice/m-GGUF"
)
FAST, THOROUGH = "1.2GB-IQ3_XXS_FIT", "900MB-IQ2_M_FIT"


def request(*quants: str, **changes: Any) -> Request:
    types = tuple(quant for quant in quants if not quant.endswith("_FIT"))
    targets = tuple(quant for quant in quants if quant.endswith("_FIT"))
    return replace(REQUEST, quant_types=types, targets=targets, **changes)


def made(quant: str, **making: Any) -> Artifact:
    name = quant_name(REQUEST, quant)
    return Artifact(name=name, size=1000, sha256=f"sha of {quant}", making=Making(**making) if making else None)


def figures(
    quant: str, *, tokens: int = 510, tps: float = 57.0, threads: int = 2, text: str = "cd" * 32
) -> Evaluation:
    zeros = dict.fromkeys(Quality.__dataclass_fields__, 0.0)
    return Evaluation(
        quant=quant_name(REQUEST, quant),
        quant_sha256=f"sha of {quant}",
        size=1000,
        bpw=4.5,
        base="m-F16.gguf",
        base_sha256="",
        text="ggufy-evaluation.txt",
        text_sha256=text,
        llama="0c1e57098",
        chunks=tokens // 255,
        tokens=tokens,
        quality=Quality(**zeros | {"kld": 0.0123, "ppl": 12.0}),
        speed=Speed(
            threads=threads, prompt_tps=90.0, prompt_tps_error=2.0, generation_tps=tps, generation_tps_error=3.0
        ),
    )


def card_of(job: Job, *others: Job, there: tuple[str, ...] = (), folder: Path = Path("/nowhere")) -> str:
    """The card of a job without a forecast, of a repo that holds these quants."""
    sizes = {quant_name(REQUEST, quant): 1000 for quant in there}
    held = {quant_name(REQUEST, quant): RemoteFile(size=1000, sha256=f"sha of {quant}") for quant in there}
    facts = gather(job, (job, *others), sizes=sizes, file=held.get, folder=folder, forecast=None, llama_commit="now")
    return pages(job, facts)["README.md"]


def row(card: str, quant: str) -> list[str]:
    (line,) = [line for line in card.splitlines() if line.startswith("|") and f"| {quant} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


# ---- a run that ends early takes nothing away


def test_what_is_known_of_files_does_not_depend_on_a_forecast() -> None:
    """A run that failed before it: sizes, bits, recipes, the llama.cpp of then and equal files are in the records."""
    done = (
        made("Q4_K_M", bpw=4.87, mix="rwkv", recipe="r1", llama="then", rescaled=True),
        made("Q8_0", bpw=8.5, mix="rwkv", recipe="r1", llama="then"),
    )
    job = Job(request=REQUEST, artifacts=done).ended(Status.FAILED, DiskError("full"))
    card = card_of(job, there=("Q4_K_M", "Q8_0"))
    assert row(card, "Q4_K_M")[3] == "4.87"
    assert row(card, "Q8_0")[-1] == "Same tensors as Q4_K_M."
    assert "The recipes are ggufy's" in card and "are multiplied back" in card
    assert "quantized with llama.cpp then\n" in card


def test_a_record_from_before_that_says_the_same_as_the_request() -> None:
    card = card_of(Job(request=REQUEST, artifacts=(made("Q8_0"),), status=Status.FAILED), there=("Q8_0",))
    assert "The recipes are ggufy's" in card and "llama.cpp now\n" in card
    stock = Job(request=replace(REQUEST, mix="stock"), artifacts=(made("Q8_0"),))
    assert "The recipes are ggufy's" not in card_of(stock, there=("Q8_0",))


def test_how_a_file_was_made_survives_that_it_is_found_again() -> None:
    job = Job(request=REQUEST).with_artifact(made("Q8_0", bpw=8.5)).with_artifact(made("Q8_0"))
    assert job.artifacts == (made("Q8_0", bpw=8.5),)
    other = replace(made("Q8_0"), sha256="another")
    assert job.with_artifact(other).artifacts == (other,)


def test_figures_of_other_bytes_go_with_them() -> None:
    job = Job(request=REQUEST).with_artifact(made("Q8_0")).with_evaluation(figures("Q8_0"))
    assert job.with_artifact(made("Q8_0")).evaluations == (figures("Q8_0"),)
    assert job.with_artifact(replace(made("Q8_0"), sha256="another")).evaluations == ()


def test_records_keep_how_files_were_made_and_old_ones_are_read() -> None:
    job = Job(request=REQUEST, artifacts=(made("Q8_0", bpw=8.5, mix="rwkv", world=True),), cause="disk")
    job = job.with_evaluation(figures("Q8_0"))
    assert job_record.from_json(job_record.to_json(job)) == job
    text = job_record.to_json(job)
    for line in ('"throttled": null', '"cause": "disk",', '"keep_card": false'):
        assert line in text
    old = text.replace('"cause": "disk",', "").replace(',\n        "throttled": null', "")
    old = old.replace(',\n    "keep_card": false', "")
    assert job_record.from_json(old) == job.evolve(cause="")


# ---- others in the same repo


def test_each_size_to_order_is_told_by_its_own_mode() -> None:
    """Also if the job that writes the card asked for one that another had made."""
    first = Job(request=request(FAST, mode="fast"), artifacts=(made(FAST, bpw=3.1, mode="fast"),))
    second = Job(
        request=request(THOROUGH, FAST, mode="thorough"),
        artifacts=(made(THOROUGH, bpw=2.9, mode="thorough"), made(FAST)),
    )
    for card in (card_of(second, first, there=(FAST, THOROUGH)), card_of(first, second, there=(FAST, THOROUGH))):
        assert "- `1.2GB`: by the error of every tensor as every type and how much" in card
        assert "- `900MB`: by the error of every tensor as every type, 26 measurements" in card
        assert row(card, FAST)[3] == "3.10"
    alone = card_of(second.evolve(request=request(THOROUGH, mode="thorough")), there=(THOROUGH,))
    assert ", by the error of every tensor as every type, 26 measurements of this model and some of files. " in alone


def test_others_bring_files_and_figures_of_what_the_repo_holds() -> None:
    mine = Job(request=request("Q8_0"), artifacts=(made("Q8_0"),))
    other = Job(request=request("Q4_K_M", "Q2_K", evaluate=True), artifacts=(made("Q4_K_M", bpw=4.9),))
    other = other.with_evaluation(figures("Q4_K_M")).with_evaluation(figures("Q2_K"))
    card = card_of(mine, other, there=("Q8_0", "Q4_K_M"))
    assert row(card, "Q4_K_M")[3:5] == ["4.90", "0.0123 ± 0.0000"]
    assert "Q2_K" not in card
    elsewhere = other.evolve(request=replace(other.request, repo_id="alice/another"))
    unlike = other.evolve(request=replace(other.request, outtype="bf16"))
    assert "Q4_K_M |" not in card_of(mine, elsewhere, unlike, there=("Q8_0",))
    stale = other.evolve(artifacts=(replace(made("Q4_K_M", bpw=1.0), sha256="older bytes"),))
    assert "Q4_K_M |" not in card_of(mine, stale, there=("Q8_0", "Q4_K_M"))


def test_only_figures_over_the_same_tokens_share_a_table() -> None:
    few = (figures("Q2_K", tokens=255), figures("Q8_0", tokens=255, tps=9.0))
    many = (figures("Q4_K_M"), figures("Q8_0"), figures("Q6_K"))
    mine = Job(request=request("Q8_0", "Q4_K_M", "Q6_K"), evaluations=many)
    other = Job(request=request("Q2_K", "Q8_0"), evaluations=few)
    card = card_of(mine, other, there=("Q8_0", "Q4_K_M", "Q2_K", "Q6_K"))
    first, _, second = card.partition("Figures over other text or fewer tokens")
    assert "over 510 tokens" in first and "over 255 tokens" not in first and "over 255 tokens" in second
    assert row(first, "Q2_K")[4] == "" and row(first, "Q8_0")[4] == "0.0123 ± 0.0000"
    assert "m-Q2_K.gguf | 0.0123" in second and "m-Q8_0.gguf | 0.0123" in second
    assert "9.0" not in card  # one speed for one file
    swapped = card_of(
        mine.evolve(evaluations=(many[0], replace(many[1], text_sha256="another text"))), there=("Q8_0",)
    )
    assert "cannot be compared" in swapped


def test_speeds_show_their_spread_and_threads() -> None:
    rested = figures("Q2_K")
    assert rested.speed
    rested = rested.evolve(speed=replace(rested.speed, throttled=True))
    busy = figures("Q3_K_M")
    assert busy.speed
    busy = busy.evolve(speed=replace(busy.speed, throttled=False, waited=0.4))
    measured = (figures("Q4_K_M"), figures("Q8_0", tps=412.4, threads=4), rested, busy)
    asked = request("Q4_K_M", "Q8_0", "Q2_K", "Q3_K_M")
    card = card_of(Job(request=asked, evaluations=measured), there=("Q8_0",))
    assert row(card, "Q3_K_M")[8] == "" and "left out where the machine had other work" in card
    assert row(card, "Q4_K_M")[8] == "57.0 ± 3.0 (2 threads)"
    assert row(card, "Q8_0")[8] == "412 ± 3 (4 threads)"
    assert row(card, "Q2_K")[8] == ""
    alike = card_of(Job(request=request("Q4_K_M"), evaluations=measured[:1]), there=("Q4_K_M",))
    assert "left out" not in alike
    assert row(alike, "Q4_K_M")[8] == "57.0 ± 3.0" and "with 2 threads of the machine" in alike


def test_the_rows_of_a_job_come_from_its_record_too(tmp_path: Path) -> None:
    """For the terminal, the page and programs, of files that are only in their repo."""
    done = (
        made("Q4_K_M", bpw=4.87, recipe="r1"),
        made("Q8_0", bpw=8.5, recipe="r1"),
        made(FAST, bpw=3.1, mode="fast", recipe="r1"),
    )
    job = Job(request=request("Q4_K_M", "Q8_0", FAST, mode="thorough"), artifacts=done)
    job = job.evolve(evaluations=(figures("Q8_0", tokens=255), figures("Q4_K_M"), figures(FAST)))
    rows = {row["type"]: row for row in results(job, None, tmp_path)}
    assert [row["bpw"] for row in rows.values()] == [4.87, 8.5, 3.1]
    assert (rows["Q8_0"]["same_tensors_as"], rows["Q4_K_M"]["same_tensors_as"]) == ("Q4_K_M", None)
    assert rows[FAST]["mode"] == "fast" and "same_tensors_as" not in rows[FAST]
    assert ["evaluation" in row for row in rows.values()] == [True, False, True]  # over fewer tokens: no comparison
    table = results_table(list(rows.values()))
    assert "57.0 ± 3.0" in table
    assert table.endswith("figures over 510 tokens of ggufy-evaluation.txt; t/s with 2 threads")
    assert "figures over" not in results_table([{k: v for k, v in rows["Q8_0"].items()}])


# ---- how it ended


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (Status.RUNNING, "**In progress: 1 of 4 files are here**, the others follow by themselves."),
        (Status.QUEUED, "**In progress: 1 of 4 files are here**, the others follow by themselves."),
        (Status.FAILED, "**1 of 4 files are here.** The job stopped before its end: an error."),
        (Status.CANCELLED, "**1 of 4 files are here.** The job was cancelled."),
        (Status.PAUSED, "**1 of 4 files are here.** The job is paused."),
        (Status.DONE, "**1 of 4 files are here.**\n"),
    ],
)
def test_the_card_says_how_the_job_stands(status: Status, told: str) -> None:
    card = card_of(Job(request=REQUEST, status=status), there=("Q8_0",))
    assert told in card
    follows = status in (Status.RUNNING, Status.QUEUED, Status.PAUSED)
    assert row(card, "Q4_K_M")[-1] == ("to come" if follows else "not made")
    assert ("follow by themselves" in card) == (status in (Status.RUNNING, Status.QUEUED))


def test_an_end_while_all_files_are_there_is_told_too() -> None:
    job = Job(request=request("Q8_0", evaluate=True, imatrix="none"))
    sizes = {"m-F16.gguf": 2000, "m-Q8_0.gguf": 1000}

    def told(job: Job) -> str:
        return pages(job, CardFacts(uploaded=sizes))["README.md"]

    assert "**All files are here.** Their figures follow." in told(job.evolve(status=Status.RUNNING))
    stopped = job.ended(Status.FAILED, errors.ToolError("llama-perplexity failed"))
    assert "**All files are here.** The job stopped before its end: a program of llama.cpp failed." in told(stopped)
    paused = job.ended(Status.PAUSED, TokenError("the token hf_secret is expired."))
    assert "paused and waits for its owner: its token may not write any more." in told(paused)
    assert "**" not in told(job.evolve(status=Status.RUNNING, evaluations=(figures("Q8_0"),)))
    assert "**" not in told(job.evolve(status=Status.DONE)) and "**" not in told(job.evolve(status=Status.CANCELLED))


def test_an_error_that_nobody_thought_of_has_words() -> None:
    job = Job(request=REQUEST).ended(Status.FAILED, ZeroDivisionError("at /home/secret-user/x.py"))
    assert (job.status, job.cause) == (Status.FAILED, "unexpected")
    assert job.error == "unexpected error, please report it: ZeroDivisionError: at x.py"
    assert "an error that nobody thought of" in card_of(job)
    assert Job(request=REQUEST).ended(Status.FAILED, PermissionError("x")).cause == "machine"
    assert Job(request=REQUEST, error="old", cause="disk").ended(Status.CANCELLED).error == ""


@pytest.mark.parametrize("kind", [kind for kind, _ in CAUSES if issubclass(kind, GgufyError)])
def test_every_cause_has_words_of_its_own(kind: Callable[[str], GgufyError]) -> None:
    job = Job(request=REQUEST).ended(Status.FAILED, kind("nothing"))
    assert ("before its end: an error." in card_of(job)) == (job.cause == "other")


# ---- nothing of this machine


PRIVATE = "/home/secret-user/my things"


@pytest.mark.parametrize(
    "sentence",
    [
        f"{PRIVATE}/own vocab.txt changed since the job was made: put the file back.",
        f"the imatrix {PRIVATE}/im.gguf is gone.",
        f"there is no calibration text {PRIVATE}/notes.txt: give a file.",
        f"1 GB are needed in {PRIVATE}/out/m-GGUF and 0 GB are free.",
        f"no permission to write {PRIVATE}/cache/texts/a.txt.",
        "no permission to write /home/secret-user: choose another folder.",
        "[Errno 2] No such file or directory: '/home/secret-user/.cache/x.json'",
        "~secret-user/x.txt and C:\\Users\\secret-user\\x.txt",
    ],
)
@pytest.mark.parametrize("status", list(Status))
def test_no_path_of_this_machine_is_published(sentence: str, status: Status) -> None:
    """However it comes in: the record's sentence has no folder, and the card has nothing of the sentence."""
    private = replace(
        REQUEST,
        vocab_path=f"{PRIVATE}/own vocab.txt",
        imatrix="auto",
        imatrix_path=f"{PRIVATE}/im.gguf",
        calibration=f"{PRIVATE}/notes.txt",
        evaluation_text="private/held out.txt",
        evaluate=True,
    )
    folders = (PurePath(PRIVATE, "out"), PurePath(PRIVATE, "cache"), PurePath("/home/secret-user"))
    job = Job(request=private).ended(status, SourceError(sentence), folders)
    card = card_of(job, there=("Q8_0",))
    for told in (job.error, card):
        assert "secret-user" not in told and "my things" not in told, told
    assert "private/" not in card and "notes.txt" in card and "`m.pth`" in card
    forgotten = card_of(job.evolve(error=f"{sentence} hf_token"), there=("Q8_0",))
    assert forgotten == card  # whoever writes an error past `ended` tells the card nothing


def test_what_is_no_path_stays() -> None:
    told = "alice/m-GGUF: https://host.example/a/b.pth?x and/or owner/repo:dir/file.txt, 3/4 done"
    assert without_folders(told, (PurePath("bundled"),)) == told
    assert without_folders("put back /srv/data/x.pth.") == "put back x.pth."
    here = Job(request=replace(REQUEST, repo_id="")).ended(Status.FAILED, DiskError(f"full: {PRIVATE}/out"))
    assert here.error == f"full: {PRIVATE}/out"  # nobody but its user reads it


@pytest.mark.parametrize(
    ("named", "public"),
    [
        ("bundled", "bundled"),
        ("calibration_datav3", "calibration_datav3"),
        ("owner/name:dir/file.txt", "owner/name:dir/file.txt"),
        ("https://user:key@host.example/a/b.txt?token=key#x", "https://host.example/a/b.txt"),
        ("/home/secret-user/t.txt", "t.txt"),
        ("~/t.txt", "t.txt"),
        ("secret-user/t.txt", "t.txt"),
        ("C:\\Users\\secret-user\\t.txt", "t.txt"),
    ],
)
def test_how_a_text_is_called_in_public(named: str, public: str) -> None:
    job = Job(request=replace(REQUEST, calibration=named, calibration_sha256="ef" * 32))
    assert f" of the calibration text {public} (sha256" in card_of(job)


# ---- figures are shared


MEASURED = dict(evaluate=True, evaluation_sha256="cd" * 32, evaluation_chunks=2)


def test_what_another_job_measured_is_not_measured_again() -> None:
    first = Job(request=request("Q8_0", FAST, mode="fast", **MEASURED), created="2026-01-01")
    first = first.with_artifact(made("Q8_0")).with_artifact(made(FAST, mode="fast"))
    first = first.with_evaluation(figures("Q8_0")).with_evaluation(figures(FAST))
    wanted = request("Q8_0", "Q4_K_M", FAST, mode="thorough", **MEASURED)
    assert evaluations_for(wanted, [first]) == (figures("Q8_0"), figures(FAST))
    again = first.evolve(
        request=request("Q8_0", **MEASURED), created="2026-02-02", evaluations=(figures("Q8_0", tps=9),)
    )
    assert evaluations_for(wanted, [again, first])[0].speed == figures("Q8_0").speed  # the first that measured it
    for change in (
        {"evaluate": False},
        {"evaluation_sha256": "00" * 32},
        {"evaluation_chunks": 4},
        {"outtype": "bf16"},
    ):
        assert evaluations_for(replace(wanted, **change), [first]) == ()
    elsewhere = replace(wanted, repo_id="")
    assert evaluations_for(elsewhere, [first]) == (figures("Q8_0"), figures(FAST))  # the same bytes, to another place


def test_only_figures_of_the_same_bytes_are_shared() -> None:
    first = Job(request=request("Q8_0", FAST, mode="fast", **MEASURED))
    first = first.with_evaluation(figures("Q8_0")).with_evaluation(figures(FAST))
    assert evaluations_for(request("Q8_0", FAST, mode="thorough", **MEASURED), [first]) == (figures("Q8_0"),)
    mine = Job(request=request("Q8_0", "Q6_K", **MEASURED), artifacts=(replace(made("Q8_0"), sha256="others"),))
    assert evaluations_for(mine.request, [first, mine]) == ()
    halved = first.evolve(evaluations=(figures("Q8_0"), figures("Q4_K_M", tokens=255)))
    wanted = request("Q8_0", "Q4_K_M", **MEASURED)
    assert evaluations_for(wanted, [halved]) == (figures("Q8_0"),)
