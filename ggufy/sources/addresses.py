"""Addresses that people type: their parts, and which repo and file of ModelScope one is of."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ggufy.core.errors import SourceError
from ggufy.core.hosts import MODELSCOPE
from ggufy.core.messages import Message
from ggufy.core.words import brief
from ggufy.net.modelscope import hosts_of
from ggufy.net.session import Reference
from ggufy.system.user_paths import user_text

_LONGEST_ADDRESS = 4096  # letters; signed ones have some hundred
_SITES = ("modelscope.cn", "modelscope.ai")  # with or without www.


def split_address(text: str) -> SplitResult:
    """The parts of an address. Raises SourceError for what is none."""
    try:
        if "\0" in text or len(text) > _LONGEST_ADDRESS:
            raise ValueError(Message("it holds a zero byte") if "\0" in text else Message("it is too long"))
        return urlsplit(user_text(text).strip())
    except ValueError as error:
        raise SourceError(
            "{text} is no address that can be fetched ({reason}): check it.",
            text=brief(text).replace(chr(0), ""),
            reason=error,
        ) from error


def is_modelscope(host: str) -> bool:
    """True for a host (with its port) of ModelScope: one of its two sites, or where MODELSCOPE_ENDPOINT leads."""
    return host.lower().removeprefix("www.") in _SITES or host.lower() in hosts_of()


def modelscope_reference(url: SplitResult) -> Reference:
    """What an address of ModelScope names: the page of a model, of its files or of one of them, or a file itself.

    Raises SourceError for any other, and for one of the site that is not asked.
    """
    text = url.geturl()
    if url.netloc.lower() not in hosts_of():
        raise SourceError(
            "{host} is another site of ModelScope than the one that is asked: set MODELSCOPE_ENDPOINT to {address}.",
            host=url.hostname or "",
            address=f"https://{url.netloc}",
        )
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if parts[:2] == ["api", "v1"]:
        parts = parts[2:]
    if len(parts) < 3 or parts[0] != "models" or not (parts[1] and parts[2]):
        raise SourceError(
            "{text} is not the address of a model on ModelScope: write ms:owner/repo:file.pth.", text=brief(text)
        )
    repo, rest = "/".join(parts[1:3]), parts[3:]
    if rest == ["repo"]:  # a file, as programs ask for it
        asked = parse_qs(url.query)
        revision, file = (asked.get(name, [""])[0] for name in ("Revision", "FilePath"))
        return Reference(repo_id=repo, host=MODELSCOPE, revision=revision or None, file=file)
    if rest[:2] == ["file", "view"]:
        rest = rest[1:]
    if rest[:1] in (["view"], ["resolve"]) and len(rest) > 2:
        return Reference(repo_id=repo, host=MODELSCOPE, revision=rest[1], file="/".join(rest[2:]))
    if rest in ([], ["summary"], ["files"]):
        return Reference(repo_id=repo, host=MODELSCOPE)
    raise SourceError(
        "{text} is a page of {repo}, not a file: write {example}.",
        text=brief(text),
        repo=f"{MODELSCOPE}:{repo}",
        example=f"{MODELSCOPE}:{repo}:file.pth",
    )
