"""What people's machines are like: tokens, proxies, home folders, terminals and disks that are not as expected.

Most tests run the real program in a child process, as these are faults of whole processes.
"""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from ggufy.cli import terminal
from ggufy.core.errors import (
    BusyError,
    Cancelled,
    DiskError,
    GgufyError,
    HubAway,
    SourceAway,
    SourceError,
    TokenError,
    UsageError,
)
from ggufy.core.job import Request
from ggufy.core.job_record import to_json
from ggufy.core.progress import Snapshot, StepProgress
from ggufy.core.scrub import remember, scrub
from ggufy.core.source import Source
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import Watch, make_job
from ggufy.net.hub_errors import ask, hub_error, is_passing
from ggufy.net.session import ClientError, reason, short
from ggufy.steps import plan
from ggufy.system import files, locks, settings
from ggufy.system.files import BackgroundWriter, disk_errors
from ggufy.system.settings import Settings
from tests import tiny

ROOT = Path(__file__).parent.parent
TOKEN = "hf_" + "aZ09" * 9


def run(*arguments: object, line: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ggufy ARGUMENTS`, or that as `$ggufy` in a line for the shell, without the network's variables."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"PYTHONPATH": str(ROOT), "ggufy": f"{sys.executable} -m ggufy"} | environment
    command = ["bash", "-c", line] if line else [sys.executable, "-m", "ggufy", *map(str, arguments)]
    return subprocess.run(
        command, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=300, cwd=ROOT
    )


# ---- the token


@pytest.mark.parametrize("text", [f"{TOKEN}\n", f" {TOKEN}\t", f'"{TOKEN}"', f"'{TOKEN}'\r\n", f'" {TOKEN} "'])
def test_a_token_comes_without_what_copying_brings_along(text: str) -> None:
    assert Settings.from_env({"HOME": "/", "HF_TOKEN": text}).hf_token == TOKEN


@pytest.mark.parametrize("text", ["", " ", "\n", '""', "' '"])
def test_white_space_is_no_token(text: str) -> None:
    assert Settings.from_env({"HOME": "/", "HF_TOKEN": text}).hf_token is None


@pytest.mark.parametrize(
    "text", ["“hf_abcdef”", "hf_abc def", "hf_abc\ndef", "hf_abcdéf", "hf_abc\x7fdef", "hf_abc\0d"]
)
def test_no_token_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(UsageError, match="^HF_TOKEN holds a character that no token has: paste it again.$"):
        Settings.from_env({"HOME": "/", "HF_TOKEN": text})


def test_a_secret_is_in_no_text_that_leaves(tmp_path: Path) -> None:
    secret = "s3cret-of-nobody"
    remember(secret)
    for text in (f"Illegal header value b'Bearer {secret}\\n'", f"socks://me:{secret}@host:1", TOKEN):
        error = GgufyError(f"cannot ({text}): try.")
        assert secret not in str(error)
        assert TOKEN not in str(error)
    assert scrub("https://me:pw123456@host/x@y") == "https://***@host/x@y"
    assert scrub("Bearer abcdefgh'") == "Bearer ***'"
    assert scrub("a/b@main and hf_model-0.1B.pth") == "a/b@main and hf_model-0.1B.pth"
    path, vocab = tiny.checkpoint(tmp_path, "7")
    options = JobOptions(source=str(path), vocab=str(vocab), quant_types=("Q8_0",), imatrix="none")
    job = make_job(options, Settings.from_env({"HOME": str(tmp_path), "GGUFY_OUT": str(tmp_path / "o")}))
    assert secret not in to_json(job.evolve(error=f"unexpected error: {secret}"))
    done = run("inspect", "a/b", HF_TOKEN=secret, HF_ENDPOINT=f"http://{secret}.invalid", HF_HUB_OFFLINE="0")
    assert secret not in done.stdout + done.stderr


def test_a_leak_into_a_log_or_a_traceback_is_masked() -> None:
    code = (
        "import logging, sys; from ggufy.core import scrub; from ggufy.system import streams;"
        "scrub.remember('s3cret-of-nobody');"
        "streams.guard(results=True); logging.basicConfig();"
        "logging.warning('said %s', 's3cret-of-nobody'); print('s3cret-of-nobody');"
        "raise ValueError('s3cret-of-nobody')"
    )
    done = run(line=f'{sys.executable} -c "{code}"')
    assert done.stderr.count("***") >= 2
    assert done.stdout == "***\n"
    assert "s3cret" not in done.stderr.replace(code, "").replace("raise ValueError('s3cret-of-nobody')", "")


REQUEST = httpx2.Request("GET", "https://huggingface.co/api/models/a/b")
HEADER = httpx2.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}\\n'", request=REQUEST)
ENCODED = UnicodeEncodeError("ascii", f"Bearer {TOKEN}é", 43, 44, "ordinal not in range(128)")


@pytest.mark.parametrize("error", [HEADER, ENCODED])
def test_what_no_request_can_hold_does_not_pass(error: Exception) -> None:
    assert isinstance(hub_error(error, "a/b", "model"), TokenError)
    assert not is_passing(error)
    assert TOKEN not in short(error) + reason(error) + str(hub_error(error, "a/b", "model"))
    with pytest.raises(SourceError, match="address|token") as caught:
        ask(fails(error), None, token=None, shown="https://x.org/a.pth")
    assert not isinstance(caught.value, SourceAway)


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("silent"),
        json.JSONDecodeError("no", "<html>", 0),
        RuntimeError("Cannot send a request, as the client has been closed."),
    ],
)
def test_what_passes_is_told_from_what_does_not(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufy.net.session.pause", lambda *_: None)
    with pytest.raises(SourceAway):
        ask(fails(error), None, token=None, shown="https://x.org/a.pth")
    if not isinstance(error, RuntimeError):
        assert isinstance(hub_error(error, "a/b", "model"), HubAway)


@pytest.mark.parametrize("error", [ClientError("x"), httpx2.UnsupportedProtocol("x"), httpx2.InvalidURL("x")])
def test_what_is_wrong_for_good_is_not_away(error: Exception) -> None:
    assert not isinstance(hub_error(error, "a/b", "model"), HubAway)
    with pytest.raises(SourceError) as caught:
        ask(fails(error), None, token=None, shown="x")
    assert not isinstance(caught.value, SourceAway)


def fails(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_an_address_of_the_hub_without_its_scheme_is_named() -> None:
    done = run("inspect", "a/b", HF_ENDPOINT="hf-mirror.com")
    assert "HF_ENDPOINT is hf-mirror.com, which is no address: write https:// in front of it." in done.stderr


# ---- proxies


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks://me:s3cret@127.0.0.1:7890", "ALL_PROXY (socks://…) cannot be used: write socks5://… or"),
        ("all_proxy", "socks4://127.0.0.1:7890", "all_proxy (socks4://…) cannot be used: write socks5://… or unset"),
        (
            "https_proxy",
            "http://127.0.0.1:port",
            "https_proxy (http://…) cannot be used: write it as http://host:port",
        ),
        ("HTTPS_PROXY", "://", "HTTPS_PROXY"),
    ],
)
def test_a_proxy_that_cannot_be_used(variable: str, value: str, said: str) -> None:
    done = run("inspect", "a/b", **{variable: value})
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert run("status", "--out", "nowhere", **{variable: value}).returncode == 0  # it is not needed for all


def test_a_proxy_that_is_not_needed_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual line of proxy programs, with one that works for https."""
    monkeypatch.setattr(settings, "_unusable", {"all_proxy": "wrong"})
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:7890")
    assert settings.proxy_fault() == ""
    monkeypatch.delenv("https_proxy")
    assert settings.proxy_fault() == "wrong"


def test_a_socks_proxy_is_used() -> None:
    pytest.importorskip("socksio", reason="socksio is not installed: run `make setup` again")
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []

        def serve() -> None:
            with server.accept()[0] as client:
                client.recv(100)
                client.sendall(b"\x05\x00")
                asked.append(client.recv(300))
                client.sendall(b"\x05\x01\x00\x01" + bytes(6))  # a failure, after which the client gives up

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        code = (
            "from ggufy.net.session import use_timeouts; from huggingface_hub import get_session\n"
            "use_timeouts()\ntry: get_session().get('http://hub.invalid/x')\n"
            "except Exception as error: print(error)"
        )
        address = f"socks5://127.0.0.1:{server.getsockname()[1]}"
        done = run(line=f'{sys.executable} -c "{code}"', ALL_PROXY=address)
        thread.join(10)
    assert b"hub.invalid" in asked[0], done.stderr


def test_gradio_can_be_imported_beside_any_proxy() -> None:
    """It makes a client of its own then."""
    code = (
        "from ggufy.system.settings import Settings, prepare_process; prepare_process(Settings.from_env());"
        "import ggufy.ui.build"
    )
    wrong = {"ALL_PROXY": "socks5://:7890", "all_proxy": "socks://127.0.0.1:1", "https_proxy": "http://127.0.0.1:port"}
    done = run(line=f'{sys.executable} -c "{code}"', **wrong)
    assert done.returncode == 0, done.stderr


# ---- home


def test_home_is_looked_for_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    found = Settings.from_env({"GGUFY_CACHE": str(tmp_path)})
    assert found.cache == found.home == tmp_path
    with pytest.raises(UsageError, match="set HOME or GGUFY_CACHE"):
        Settings.from_env({"GGUFY_OUT": "x"})


def test_an_error_names_the_setting_that_chose_the_place(tmp_path: Path) -> None:
    """/proc takes no folders, not even root's."""
    done = run("setup", HOME="/proc")
    assert "choose another folder with GGUFY_CACHE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("convert", tiny.checkpoint(tmp_path, "7")[0], "/proc/x/y.gguf", "--vocab", tmp_path / "vocab.txt")
    assert "choose another folder with OUT." in done.stderr


# ---- disks


@pytest.fixture(scope="module")
def odd_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes one folder lie on a disk which lacks something."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, to make a disk that lacks something")
    library = tmp_path_factory.mktemp("odd") / "odd.so"
    source = Path(__file__).with_name("odd_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


ODD = """
import sys
from pathlib import Path
from ggufy.core.errors import BusyError, GgufyError
from ggufy.system.files import write_text
from ggufy.system.locks import is_locked, lock
here = Path(sys.argv[1])
try:
    with lock(here / ".lock"):
        print(is_locked(here / ".lock"))
        try:
            with lock(here / ".lock"):
                print("twice")
        except BusyError:
            print("once")
        write_text(here / "x", "y")
    print(is_locked(here / ".lock"), (here / "x").read_text())
except GgufyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("call", "error", "kind", "said"),
    [
        ("flock", "ENOSYS", "any", "True\nonce\nFalse y\n"),
        ("flock", "ENOLCK", "any", "True\nonce\nFalse y\n"),
        ("flock", "EOPNOTSUPP", "any", "True\nonce\nFalse y\n"),
        ("fsync", "EINVAL", "folder", "True\nonce\nFalse y\n"),
        ("fsync", "EIO", "folder", "True\nonce\nFalse y\n"),
        ("fsync", "ENOSYS", "any", "True\nonce\nFalse y\n"),
        ("fsync", "EIO", "file", "True\nonce\n{}/x cannot be written (Input/output error): choose another folder "),
        ("write", "ENOTCONN", "file", "True\nonce\n{}/x cannot be written (Transport endpoint is not connected): "),
        ("write", "EFBIG", "file", "True\nonce\n{}/x cannot be written (File too large): choose another folder "),
        ("rename", "ESTALE", "any", "True\nonce\n{}/x cannot be written (Stale file handle): choose another folder "),
    ],
)
def test_a_disk_that_lacks_something(
    odd_disk: Path, tmp_path: Path, call: str, error: str, kind: str, said: str
) -> None:
    import errno

    env = {"LD_PRELOAD": str(odd_disk), "ODD_CALL": call, "ODD_ERROR": str(getattr(errno, error)), "ODD_KIND": kind}
    env |= {"ODD_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT), "TMPDIR": str(odd_disk.parent)}
    done = subprocess.run([sys.executable, "-c", ODD, tmp_path], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(said.format(tmp_path)), done.stderr
    warnings = [line for line in done.stderr.splitlines() if "has no locks" in line]
    assert len(warnings) == (call == "flock")


def test_out_that_is_no_folder(tmp_path: Path) -> None:
    """A file, or the link to a disk that was unplugged."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with (
            pytest.raises(DiskError, match=f"/{name} is no folder: choose one with --out"),
            files.partial(tmp_path / name / "new" / "x") as part,
        ):
            part.touch()


def test_an_error_that_is_no_disk_s_stays_what_it_is(tmp_path: Path) -> None:
    for error in (ConnectionResetError(104, "reset"), TimeoutError("nothing moved")):
        with pytest.raises(type(error)), disk_errors(tmp_path / "x"):
            raise error
    with pytest.raises(DiskError, match="b.gguf is gone"), disk_errors(tmp_path / "new" / "x"):
        (tmp_path / "b.gguf").open()


def test_status_only_reads(tmp_path: Path) -> None:
    job = {"folder": tmp_path / "m-GGUF"}
    job["folder"].mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert not locks.is_locked(job["folder"] / ".lock")
    with locks.lock(job["folder"] / ".lock"):
        assert locks.is_locked(job["folder"] / ".lock")
    assert run("status", "--out", tmp_path).returncode == 0
    assert sorted(tmp_path.rglob("*")) == [*before, job["folder"] / ".lock"]


# ---- threads


class Broken:
    """A sink whose second block fails as it likes."""

    def __init__(self, error: BaseException):
        self.error, self.blocks = error, 0

    def write(self, block: object, /) -> None:
        self.blocks += 1
        if self.blocks == 2:
            raise self.error


@pytest.mark.parametrize("error", [MemoryError(), ValueError("x"), OSError(28, "full"), SystemExit(1)])
@pytest.mark.parametrize("blocks", [2, 50])
def test_a_writer_hands_every_error_on(error: BaseException, blocks: int) -> None:
    """More blocks than the queue takes, and an error that only the end can tell."""
    with pytest.raises(type(error)), BackgroundWriter(Broken(error)) as writer:
        for _ in range(blocks):
            writer.write(b"x")


def test_waits_can_be_given_up(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(Cancelled):
        files.sha256(tmp_path / "x", stopped=lambda: True)
    options = JobOptions(source=str(tiny.checkpoint(tmp_path, "7")[0]), quant_types=("Q8_0",), imatrix="none")
    with pytest.raises(Cancelled):
        make_job(options, Settings.from_env({"HOME": str(tmp_path)}), Watch(stopped=lambda: True))
    with locks.lock(tmp_path / "l"), pytest.raises(Cancelled), locks.lock(tmp_path / "l", 600, stopped=lambda: True):
        pass
    with locks.lock(tmp_path / "l"), pytest.raises(BusyError), locks.lock(tmp_path / "l"):
        pass


# ---- streams


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$ggufy doctor --json | true; exit ${PIPESTATUS[0]}", None, ""),
        ("$ggufy status --out nowhere >/dev/full", 1, "stdout cannot be written (No space left on device)"),
        ("PYTHONIOENCODING=ascii $ggufy doctor", None, ""),
        ("$ggufy status --out nowhere 2>&-", 0, ""),
        ("$ggufy status --out nowhere 2>/dev/full", 0, ""),
        ("$ggufy status --out nowhere >&- 2>&-", 0, ""),
        ("$ggufy inspect 模型.pth 2>/dev/full", 1, ""),
        ("PYTHONIOENCODING=latin-1 $ggufy inspect 模型.pth", 1, "does not exist"),
    ],
)
def test_what_cannot_be_said_is_not_the_work_s_fault(line: str, code: int | None, said: str) -> None:
    done = run(line=line)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert said in done.stderr
    if code is not None:
        assert done.returncode == code, done.stderr


def test_stdout_is_for_the_result_alone() -> None:
    """A library's native code writes to descriptor 1, whatever Python's stdout is."""
    code = (
        "import os, subprocess; from ggufy.system import streams; streams.guard(results=True);"
        "os.write(1, b'noise'); subprocess.run(['echo', 'more']); print('result')"
    )
    done = run(line=f'{sys.executable} -c "{code}"')
    assert done.stdout == "result\n"
    assert "noise" in done.stderr
    assert "more" in done.stderr


def test_json_stays_json_in_any_encoding(tmp_path: Path) -> None:
    for encoding in ("ascii", "latin-1", "gbk"):
        done = run("inspect", tmp_path / "模型😀é.pth", "--json", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert json.loads(done.stdout)["source"].endswith("模型😀é.pth")


def test_a_stream_that_was_closed_is_no_file_of_ours(tmp_path: Path) -> None:
    """Else the next file that is opened is descriptor 2, and gets what is written to stderr."""
    code = (
        "import os; from ggufy.system import streams; streams.guard(results=True);"
        f"f = open('{tmp_path}/x', 'w'); os.write(2, b'noise'); f.close()"
    )
    assert run(line=f'{sys.executable} -c "{code}" 2>&- <&-').returncode == 0
    assert (tmp_path / "x").read_text() == ""


# ---- terminals


@pytest.fixture
def tty() -> Iterator[tuple[io.TextIOWrapper, int]]:
    """A terminal of 40 columns: the side of a program, and the descriptor that shows what it wrote."""
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream, ours
    os.close(ours)


def test_a_line_that_is_drawn_over_fits_the_terminal(tty: tuple[io.TextIOWrapper, int]) -> None:
    assert terminal.fitted("模" * 60, tty[0]) == "模" * 19
    assert terminal.fitted("x" * 60, tty[0]) == "x" * 39
    assert terminal.fitted("x" * 60, io.StringIO()) == "x" * 60


@pytest.mark.parametrize(("term", "moves"), [("dumb", False), ("xterm", True), ("", False)])
def test_no_codes_for_a_dumb_terminal(
    tty: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch, term: str, moves: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    assert terminal.LiveDisplay(Snapshot, tty[0]).moving is moves


def test_a_display_that_cannot_be_drawn_does_not_end_the_work() -> None:
    class ProcessExited(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(5, "Input/output error")

    source = Source(kind="checkpoint", path="/m.pth", size=10, sha256="ab" * 32)
    due = plan(Request(name="m", source=source, quant_types=("Q8_0",), outtype="f16"))
    steps = Snapshot(steps=tuple(StepProgress(step=step, state="done") for step in due))
    taken = iter([Snapshot()])
    with terminal.LiveDisplay(lambda: next(taken, steps), ProcessExited(), interval_s=0) as display:
        display._thread.join(10)  # it has tried, and given up
