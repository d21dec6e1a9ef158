"""ModelScope's API: questions about repos, files, and what its answers mean.

Most answers are JSON with `Code`, `Success` and `Data`, and some that refuse have HTTP status 200. A repo's list of
files has the SHA-256 of every file, and at most MOST_LISTED entries, silently. Large files are redirected to storage
of other hosts, by signed addresses that expire; parts of these can be had. Small ones come from the API itself, always
whole. The token goes to the hosts of `identity` and to nobody else.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError

from ggufy.core.errors import SourceError
from ggufy.net.session import Origin, Reference, identify, origin, pause, use_timeouts
from ggufy.system.clock import never
from ggufy.system.settings import modelscope_endpoint

MASTER = "master"  # the branch that every repo begins with
PUBLIC, PRIVATE = 5, 1  # visibility of a repo
SMALL = 1 << 20  # bytes: files below may be such that come whole, whatever part was asked for
MOST_LISTED = 3000
NOT_FOUND, BAD_TOKEN = 10010205001, 10010103009  # what `Code` says
# A licence as ModelScope shows it, and as the Hub and most others write it.
LICENSES = {
    "Apache License 2.0": "apache-2.0",
    "MIT License": "mit",
    "MIT": "mit",
    "GPL-2.0": "gpl-2.0",
    "GPL-3.0": "gpl-3.0",
    "LGPL-2.1": "lgpl-2.1",
    "LGPL-3.0": "lgpl-3.0",
    "AFL-3.0": "afl-3.0",
    "ECL-2.0": "ecl-2.0",
}
_GATED = 1  # of ProtectedMode
_MOST_LISTINGS = 100  # of one repo's folders, if it has more files than one list holds
_ODD_TRIES, _ODD_S = 3, 1.0  # of a list that was refused for nothing, and seconds between them
_COMMIT, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class ModelScopeRefusal(HfHubHTTPError):
    """ModelScope refuses; an error as the other hub's client raises it, with what the answer's body says."""

    def __init__(self, response: httpx2.Response, body: Mapping[str, Any]):
        said = str(body.get("Message") or body.get("message") or "")
        super().__init__(said, response=response, server_message=said)
        code = str(body.get("Code", body.get("code", "")))
        self.code = int(code) if code.isdecimal() and len(code) < 20 else 0


@dataclass(frozen=True, kw_only=True)
class TreeFile:
    """A file of a repo."""

    path: str
    size: int  # bytes
    sha256: str  # hex digest
    lfs: bool  # kept apart, so that parts of it can be had


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A repo at one commit."""

    commit: str  # its sha, or the branch that was asked for if ModelScope does not name it
    files: Mapping[str, TreeFile]  # by path


def identity(token: str | None, endpoint: str | None = None) -> tuple[dict[str, str], frozenset[Origin]]:
    """The headers that tell ModelScope whose request it is, and the hosts that get them: its own and the two for
    uploads."""
    url = httpx2.URL(endpoint or modelscope_endpoint())
    bare = url.host.removeprefix("www.")
    hosts = {origin(url), *(origin(url.copy_with(host=f"{name}.{bare}")) for name in ("lfs", "pre-lfs"))}
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    return headers, frozenset(hosts)


def hosts_of(endpoint: str | None = None) -> set[str]:
    """Names (and ports) of the sites where the repos are."""
    host = urlsplit(endpoint or modelscope_endpoint()).netloc.lower()
    return {host, host.removeprefix("www."), f"www.{host.removeprefix('www.')}"}


def modelscope_file(
    wanted: Reference, *, token: str | None, endpoint: str | None
) -> tuple[str, dict[str, str], frozenset[Origin]]:
    """Address of a file, headers, and who gets them."""
    revision, path = quote(wanted.revision or MASTER, safe=""), quote(wanted.file, safe="")
    base = endpoint or modelscope_endpoint()
    url = f"{base}/api/v1/models/{wanted.repo_id}/repo?Revision={revision}&FilePath={path}"
    return (url, *identity(token, endpoint))


@contextlib.contextmanager
def sent(request: httpx2.Request, headers: Mapping[str, str], origins: frozenset[Origin]) -> Iterator[httpx2.Response]:
    """The answer to a request, its body not read yet, after the redirect of a question (not of an upload)."""
    identify(request, headers, origins)
    response = get_session().send(request, stream=True, follow_redirects=False)
    with contextlib.closing(response):
        if request.method != "GET" or response.next_request is None:
            yield response
            return
        again = response.next_request
    identify(again, headers, origins)
    with contextlib.closing(get_session().send(again, stream=True, follow_redirects=False)) as response:
        yield response


def call(
    method: str,
    path: str,
    *,
    token: str | None,
    endpoint: str | None = None,
    params: Mapping[str, str] | None = None,
    body: Any = None,
    timeout: float | None = None,
) -> Any:
    """The `Data` of an answer; `timeout` is in seconds of silence. Raises one of session.FAILURES, of which a refusal
    is a ModelScopeRefusal."""
    use_timeouts()
    url = f"{endpoint or modelscope_endpoint()}{path}"
    request = get_session().build_request(method, url, params=params, json=body, timeout=timeout)
    with sent(request, *identity(token, endpoint)) as response:
        response.read()
        return data_of(response)


def data_of(response: httpx2.Response) -> Any:
    """What an answer holds. Raises ModelScopeRefusal, JSONDecodeError."""
    try:
        body = response.json()
    except json.JSONDecodeError:
        if response.is_success:
            raise
        body = {}
    told = body if isinstance(body, dict) else {}
    if not response.is_success or told.get("Success", told.get("success", True)) is False:
        raise ModelScopeRefusal(response, told)
    return told.get("Data", told.get("data", body))


def repo_info(wanted: Reference, *, token: str | None, endpoint: str | None, timeout: float | None) -> dict[str, Any]:
    """What ModelScope tells about a repo; raises as `call`."""
    path = f"/api/v1/models/{wanted.repo_id}"
    found = call("GET", path, token=token, endpoint=endpoint, timeout=timeout)
    return found if isinstance(found, dict) else {}


def is_gated(info: Mapping[str, Any]) -> bool:
    return bool(info.get("ProtectedMode") == _GATED)


def is_public(info: Mapping[str, Any]) -> bool:
    """True if anybody can read the repo's files."""
    return info.get("Visibility") == PUBLIC and not is_gated(info)


def repo_tree(
    wanted: Reference,
    *,
    token: str | None,
    endpoint: str | None = None,
    timeout: float | None = None,
    stopped: Callable[[], bool] = never,
) -> Tree:
    """Every file of a repo at a revision. Raises as `call`; SourceError if there is no such revision, or if there are
    more files than can be listed."""
    asked = 0
    heads: list[Mapping[str, Any]] = []

    def listing(root: str, *, recursive: bool) -> list[Mapping[str, Any]]:
        nonlocal asked
        if (asked := asked + 1) > _MOST_LISTINGS:
            raise SourceError("{repo} has more files than can be listed: choose another repo.", repo=wanted.name)
        params = {"Revision": wanted.revision or MASTER, "Recursive": str(recursive)} | (
            {"Root": root} if root else {}
        )
        path = f"/api/v1/models/{wanted.repo_id}/repo/files"
        data = _unless_odd(
            lambda: call("GET", path, token=token, endpoint=endpoint, params=params, timeout=timeout), stopped
        )
        if not isinstance(data, dict) or not isinstance(data.get("Files"), list):
            raise SourceError(
                "{repo} has no revision {revision}: look at {page}.",
                repo=wanted.name,
                revision=wanted.revision or MASTER,
                page=wanted.files_page,
            )
        heads.append(data)
        return [entry for entry in data["Files"] if isinstance(entry, dict)]

    def below(root: str) -> list[Mapping[str, Any]]:
        found = listing(root, recursive=True)
        if len(found) < MOST_LISTED:
            return found
        found = listing(root, recursive=False)
        folders = [str(entry.get("Path")) for entry in found if entry.get("Type") == "tree"]
        return found + [entry for folder in folders for entry in below(folder)]

    entries = below("")
    files = {file.path: file for file in map(_file, entries) if file is not None}
    return Tree(commit=_commit(heads[0], entries) or wanted.revision or MASTER, files=files)


def _unless_odd(ask: Callable[[], Any], stopped: Callable[[], bool]) -> Any:
    """Lists are now and then refused to somebody who may have them: then asked again."""
    for tries in range(1, _ODD_TRIES + 1):
        try:
            return ask()
        except ModelScopeRefusal as error:
            if error.response.status_code != 403 or tries == _ODD_TRIES:
                raise
        pause(_ODD_S, stopped)
    raise AssertionError("unreachable")


def _file(entry: Mapping[str, Any]) -> TreeFile | None:
    """A file of a list; None for a folder, and for what has no usable name, size or digest."""
    path, size, digest = entry.get("Path"), entry.get("Size"), str(entry.get("Sha256") or "").lower()
    if entry.get("Type") != "blob" or not isinstance(path, str) or not isinstance(size, int) or size < 0:
        return None
    parts: Sequence[str] = path.split("/")
    if not _SHA256.fullmatch(digest) or "\\" in path or any(part in ("", ".", "..") for part in parts):
        return None
    return TreeFile(path=path, size=size, sha256=digest, lfs=entry.get("IsLFS") is True)


def _commit(data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """The full sha of the commit that a list is of. It is seldom told in full: most often by its beginning, and in
    full beside the files that it changed. Empty if it cannot be known."""
    head = data.get("LatestCommitter")
    told = head if isinstance(head, dict) else {}
    begin = str(told.get("Id") or told.get("ShortId") or "").lower()
    if _COMMIT.fullmatch(begin):
        return begin
    known = {str(entry.get("Revision") or "").lower() for entry in entries}
    found = [commit for commit in known if len(begin) >= 7 and commit.startswith(begin) and _COMMIT.fullmatch(commit)]
    return found[0] if len(found) == 1 else ""
