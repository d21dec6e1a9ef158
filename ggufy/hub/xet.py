"""Uploads of large files to the Hub's Xet storage, with progress, and with an end when the job is stopped.

The client library uploads too, but shows its progress only as bars on a terminal and cannot be stopped. So this does
its work with the same parts, and leaves the file marked as uploaded, as the library's own `preupload_lfs_files` does.
The bytes go from the path straight to hf_xet: a file object would not use Xet at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import hf_xet
from huggingface_hub import CommitOperationAdd, get_session

from ggufy.core.errors import HubAway
from ggufy.core.messages import Message
from ggufy.net.hub_private import get_xet_session, hf_raise_for_status
from ggufy.net.session import check_stopped, short

_POLL_S, _END_S = 0.2, 5.0
_SILENCE_S = 600.0  # without a byte moved; hf_xet's own limits end most silences sooner


def upload(
    additions: Sequence[CommitOperationAdd],
    *,
    token_url: str,
    headers: dict[str, str],
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """Brings the files to the storage; what it holds already, in whole or in parts, is not sent.

    Raises one of the client library's errors if the Hub refuses, HubAway if the upload breaks off, Cancelled.
    """
    bare = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    try:
        session = get_xet_session()  # type: ignore[no-untyped-call]
        commit = session.new_upload_commit(
            token_refresh_url=token_url, token_refresh_headers=headers, custom_headers=bare
        )
        handles = [_begin(commit, add) for add in additions]
        _wait(commit, progress=progress, stopped=stopped)
        for add, handle in zip(additions, handles, strict=True):
            add.upload_info.sha256 = bytes.fromhex(handle.result().xet_info.sha256)
            add._is_uploaded = True
    except (OSError, RuntimeError) as error:
        # hf_xet tells only a status: the Hub's own words, if it was the Hub, come with the same question asked again.
        hf_raise_for_status(get_session().get(token_url, headers=headers))
        raise HubAway(
            "the upload broke off ({reason}): it is tried again later, nothing is lost.", reason=short(error)
        ) from error


def _begin(commit: hf_xet.XetUploadCommit, add: CommitOperationAdd) -> hf_xet.XetFileUpload:
    known = add.upload_info.sha256.hex() if add.upload_info.is_hashed else hf_xet.COMPUTE_SHA256
    if isinstance(add.path_or_fileobj, bytes):
        return commit.start_upload_bytes(add.path_or_fileobj, sha256=known)
    return commit.start_upload_file(str(add.path_or_fileobj), sha256=known)


def _wait(commit: hf_xet.XetUploadCommit, *, progress: Callable[[int], None], stopped: Callable[[], bool]) -> None:
    """Waits for the upload in a thread of its own, so that it can be watched and stopped from here."""
    failure: list[BaseException] = []

    def finish() -> None:
        try:
            commit.wait_to_finish()
        except BaseException as error:  # raised again below, in the thread that asked
            failure.append(error)

    thread = threading.Thread(target=finish, name="ggufy-upload", daemon=True)
    thread.start()
    try:
        _watch(commit, thread, progress=progress, stopped=stopped)
    except BaseException:
        commit.abort()
        thread.join(_END_S)
        raise
    if failure:
        raise failure[0]


def _watch(
    commit: hf_xet.XetUploadCommit,
    thread: threading.Thread,
    *,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    before, silent_s = (-1, -1), 0.0
    while thread.is_alive():
        check_stopped(stopped)
        report = commit.progress()
        now = (report.total_bytes_completed, report.total_transfer_bytes_completed)
        silent_s = 0.0 if now != before else silent_s + _POLL_S
        if silent_s > _SILENCE_S:
            raise TimeoutError(Message("nothing moved for {seconds} s", seconds=f"{_SILENCE_S:.0f}"))
        if now != before:
            progress(now[0])
        before = now
        thread.join(_POLL_S)
