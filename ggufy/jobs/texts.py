"""The texts of a job, pinned: what it is measured on; and the writing systems that its model speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufy.core.errors import UsageError, VocabError
from ggufy.core.job import Request
from ggufy.formats.gguf import GgufHead
from ggufy.jobs.options import JobOptions
from ggufy.models.chat_format import has_world_vocabulary
from ggufy.models.vocab import load_vocab
from ggufy.sources.format import SourceFormat
from ggufy.steps.outputs import output_of
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path
from ggufy.texts import calibration, writing
from ggufy.texts.overlap import check_disjoint


def evaluation_fields(
    options: JobOptions, request: Request, settings: Settings, *, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Fields of the request, pinned so far, that say over which text its quants are measured. Raises a GgufyError for
    a text that cannot be used, and Cancelled."""
    if not options.evaluate or not output_of(request).measured:  # figures come with quants that can be measured
        return {}
    if options.evaluation_chunks < 1:
        raise UsageError("the figures need at least one chunk of text: give a larger number of evaluation chunks.")
    text = calibration.pin_text(
        options.evaluation, settings.cache, token=settings.hf_token, use="evaluation", stopped=stopped
    )
    read = calibration.pinned(settings.cache, request.calibration_sha256) if request.imatrix == "auto" else None
    if read is not None:
        check_disjoint(text.path, read)
    if request.mode:
        check_disjoint(text.path, calibration.ensure_texts(settings.cache, stopped=stopped).probe)
    return {
        "evaluate": True,
        "evaluation_text": options.evaluation,
        "evaluation_sha256": text.sha256,
        "evaluation_chunks": options.evaluation_chunks,
        "evaluation_writing": writing.shares_read(text.path, options.evaluation_chunks),
    }


def spoken_systems(options: JobOptions, form: SourceFormat, head: GgufHead | None) -> tuple[str, ...]:
    """The writing systems that the model speaks, as its languages or its vocabulary tell; none if that is not here."""
    if not form.converts:
        metadata = head.metadata if head else {}
        world = writing.WORLD_SPEAKS if has_world_vocabulary(metadata) else ()
        return writing.systems_of_metadata(metadata) or world
    if options.vocab is None:
        return writing.WORLD_SPEAKS
    try:
        return writing.systems_of_vocabulary(load_vocab(user_path(options.vocab)))
    except VocabError:
        return ()  # converting says what is wrong with it
