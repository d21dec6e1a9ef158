"""The texts of a job, pinned: what it is measured on; and the writing systems that its model speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufy.core.errors import UsageError, VocabError
from ggufy.core.job import EvaluationText, Request
from ggufy.formats.gguf import GgufHead
from ggufy.jobs.options import JobOptions
from ggufy.models.chat_format import has_world_vocabulary
from ggufy.models.vocab import load_vocab
from ggufy.sources.format import SourceFormat
from ggufy.steps.outputs import output_of
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_file, user_path
from ggufy.texts import calibration, writing
from ggufy.texts.overlap import check_disjoint


def evaluation_fields(
    options: JobOptions, request: Request, settings: Settings, *, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Fields of the request, pinned so far, that say over which texts its quants are measured. Raises a GgufyError for
    a text that cannot be used, and Cancelled."""
    if not options.evaluate or not output_of(request).measured:  # figures come with quants that can be measured
        return {}
    if options.evaluation_chunks < 1:
        raise UsageError("the figures need at least one chunk of text: give a larger number of evaluation chunks.")
    read = calibration.pinned(settings.cache, request.calibration_sha256) if request.imatrix == "auto" else None
    others = [read] if read else []
    if request.mode:
        others.append(calibration.ensure_texts(settings.cache, stopped=stopped).probe)
    texts: dict[str, EvaluationText] = {}
    for choice in split_texts(options.evaluation):
        text = calibration.pin_text(choice, settings.cache, token=settings.hf_token, use="evaluation", stopped=stopped)
        for other in others:
            check_disjoint(text.path, other)
        shares = writing.shares_read(text.path, options.evaluation_chunks)
        texts.setdefault(text.sha256, EvaluationText(choice=choice, sha256=text.sha256, writing=shares))
    first, *more = texts.values()
    return {
        "evaluate": True,
        "evaluation_text": first.choice,
        "evaluation_sha256": first.sha256,
        "evaluation_chunks": options.evaluation_chunks,
        "evaluation_writing": first.writing,
        "evaluation_more": tuple(more),
    }


def split_texts(choice: str) -> list[str]:
    """As `named_texts`; the name of a file here is one text, whatever commas it has."""
    return [choice] if user_file(choice) else named_texts(choice)


def named_texts(choice: str) -> list[str]:
    """The texts that were named, with commas between them; what begins as an address is one."""
    if choice.startswith(("http://", "https://")):
        return [choice]
    return [word.strip() for word in choice.split(",") if word.strip()] or [choice]


def spoken_systems(options: JobOptions, form: SourceFormat, head: GgufHead | None) -> tuple[str, ...]:
    """The writing systems that the model speaks, as its languages or its vocabulary tell; none if that is not here."""
    if form.carries or not form.converts:
        metadata = head.metadata if head else {}
        world = writing.WORLD_SPEAKS if has_world_vocabulary(metadata) else ()
        return writing.systems_of_metadata(metadata) or world
    if options.vocab is None:
        return writing.WORLD_SPEAKS
    try:
        return writing.systems_of_vocabulary(load_vocab(user_path(options.vocab)))
    except VocabError:
        return ()  # converting says what is wrong with it
