"""A job's record as JSON text, and what an older, damaged or hostile one is worth."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from ggufy.core import metrics
from ggufy.core.job import PLAIN, Artifact, EvaluationText, FrontierPoint, Job, Making, Request, Status
from ggufy.core.messages import Message
from ggufy.core.outputs import GGUF, OUTPUT_NAMES
from ggufy.core.scrub import scrub
from ggufy.core.source import PinnedAdapter, Source, SourceFile
from ggufy.core.writing import WritingShare, check_writing

VERSION = 3
_ONLY_GGUF = 2  # the version of records whose quants are GGUFs, which older programs read
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0-\x1f\ud800-\udfff]+")
_MOST_NAME = 240  # bytes, with room for what a file is called while it is made
_REPO_ID = re.compile(r"(?:ms:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]*")  # becomes a folder's name in the cache


def to_json(job: Job) -> str:
    """The job as JSON text, with the oldest version that has it all."""
    version = _ONLY_GGUF if job.request.output == GGUF else VERSION
    record = {"version": version, **dataclasses.asdict(job)}
    if not job.request.source.files:
        del record["request"]["source"]["files"]  # as in records that are older than it
    if not job.request.adapters:
        del record["request"]["adapters"]  # likewise
    if not job.request.copies:
        del record["request"]["copies"]  # likewise
    if not job.request.awq:
        del record["request"]["awq"]  # likewise
    if job.request.rounding == PLAIN:
        del record["request"]["rounding"]  # likewise
    if not job.request.mmproj:
        del record["request"]["mmproj"]
    if job.request.mtp == "base":
        del record["request"]["mtp"]
    if not job.request.lora_files:
        del record["request"]["lora_files"]
    if not job.request.chat_format:
        del record["request"]["chat_format"]  # likewise
    if isinstance(job.error, Message):
        record["error_message"] = job.error.to_record()
    return scrub(json.dumps(record, indent=2, ensure_ascii=False)) + "\n"


def _with_mix(record: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew only llama-quantize's own recipes, and no sizes to order, which are none by default."""
    request = record.get("request")
    return record | {"request": {"mix": "stock"} | request} if isinstance(request, dict) else record


# One function per version step: UPGRADES[1] turns a version-1 record into a version-2 one. Version 2 knew no other
# format than GGUF.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _with_mix, 2: lambda record: record}


def _artifact(*, making: dict[str, Any] | None = None, **fields: Any) -> Artifact:
    return Artifact(making=Making(**making) if making else None, **fields)


def _source(*, files: Iterable[dict[str, Any]] = (), **fields: Any) -> Source:
    return Source(files=tuple(SourceFile(**one) for one in files), **fields)


def _adapter(*, source: dict[str, Any], init: dict[str, Any] | None = None, **fields: Any) -> PinnedAdapter:
    return PinnedAdapter(source=_source(**source), init=_source(**init) if init else None, **fields)


def _evaluation_text(*, writing: list[dict[str, Any]], **fields: Any) -> EvaluationText:
    return EvaluationText(writing=tuple(WritingShare(**one) for one in writing), **fields)


def from_json(text: str) -> Job:
    """Reads what `to_json` wrote, in this version or an older one. Raises ValueError for anything else."""
    record = json.loads(text)
    version = record.pop("version", None) if isinstance(record, dict) else None
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"not a job record of version 1 to {VERSION}")
    while version < VERSION:
        record = UPGRADES[version](record)
        version += 1
    try:
        request = record.pop("request")
        request["source"] = _source(**request["source"])
        request["adapters"] = tuple(_adapter(**one) for one in request.get("adapters", ()))
        request["lora_files"] = tuple(_adapter(**one) for one in request.get("lora_files", ()))
        request["quant_types"] = tuple(request["quant_types"])
        request["targets"] = tuple(request.get("targets", ()))
        request["copies"] = tuple(request.get("copies", ()))
        request["mmproj"] = tuple(request.get("mmproj", ()))
        for name in ("calibration_writing", "evaluation_writing"):
            request[name] = tuple(WritingShare(**one) for one in request.get(name, ()))
        request["evaluation_more"] = tuple(_evaluation_text(**one) for one in request.get("evaluation_more", ()))
        request["speaks"] = tuple(request.get("speaks", ()))
        artifacts = tuple(_artifact(**a) for a in record.pop("artifacts"))
        status = Status(record.pop("status"))
        measured = tuple(metrics.from_record(e) for e in record.pop("evaluations", ()))
        frontier = tuple(FrontierPoint(**point) for point in record.pop("frontier", ()))
        pinned = Request(**request)
        _check_names(pinned, artifacts)
        if message := record.pop("error_message", None):
            record["error"] = Message.from_record(message)
        return Job(
            request=pinned,
            status=status,
            artifacts=artifacts,
            evaluations=measured,
            frontier=frontier,
            **record,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a job record: {error}") from error


def _check_names(request: Request, artifacts: tuple[Artifact, ...]) -> None:
    """Raises ValueError for texts that would make paths to elsewhere: a record may come from the Hub, or from anybody
    who can write into the folder."""
    if request.output not in OUTPUT_NAMES:
        raise ValueError(f"of a later version of ggufy, with quants in the format {request.output[:80]!r}")
    names = [request.name, request.outtype, *request.quants]
    names += [artifact.name for artifact in artifacts]
    names += [one.path.rpartition("/")[2] for source in request.sources if source.remote for one in source.each()]
    for text in names:
        if not _FILE_NAME.fullmatch(text) or len(text.encode()) > _MOST_NAME:
            raise ValueError(f"not a job record: {text[:80]!r} is no part of a file's name")
    more = request.evaluation_more
    shares = [one for text in more for one in text.writing]
    check_writing(request.speaks, (*request.calibration_writing, *request.evaluation_writing, *shares))
    for repo in request.repos:
        if not _REPO_ID.fullmatch(repo):
            raise ValueError(f"not a job record: {repo[:80]!r} is no repo")
    digests = [request.calibration_sha256, request.evaluation_sha256, request.imatrix_sha256]
    digests += [text.sha256 for text in more]
    for digest in (*digests, *(one.key for one in request.sources)):
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a job record: {digest[:80]!r} is no digest")
