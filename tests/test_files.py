"""Products appear whole or not at all; locks hold."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from ggufy.cli.main import build_parser
from ggufy.core import words
from ggufy.core.errors import BusyError, DiskError, UsageError
from ggufy.sources.locate import local_file
from ggufy.system import files, locks
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path
from ggufy.texts.calibration import pin_text


def test_a_product_gets_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.gguf"
    with files.partial(target) as part:
        part.write_bytes(b"x")
        assert not target.exists()
    assert target.read_bytes() == b"x"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_product_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.partial(target) as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_stale_part_is_not_built_upon(tmp_path: Path) -> None:
    target = tmp_path / "a"
    (tmp_path / "a.part").write_bytes(b"left by a kill")
    with files.partial(target) as part:
        assert not part.exists()
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_full_disk_and_no_permission_are_ours(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="full"), files.partial(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(DiskError, match="--out"), files.partial(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")


def test_digest_and_its_progress(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 3_000_000)
    seen: list[int] = []
    assert files.sha256(path, seen.append) == hashlib.sha256(b"abc" * 3_000_000).hexdigest()
    assert seen[-1] == 9_000_000


def test_a_lock_holds_across_processes_and_falls_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = "import sys,time; from pathlib import Path; from ggufy.system import locks\n"
    code += "with locks.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match="who"), locks.lock(path, message="who"):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with locks.lock(path, wait_s=5):
        pass


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (14_600_000, "14.6 MB"), (123e6, "123 MB"), (28e9, "28.00 GB")],
)
def test_sizes(size: float, text: str) -> None:
    assert words.human_size(size) == text


@pytest.mark.parametrize(
    ("s", "text"), [(3.44, "3.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")]
)
def test_times(s: float, text: str) -> None:
    assert words.human_time(s) == text


def test_paths_as_people_write_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path(Path("~")) == tmp_path
    assert user_path("a/~b") == Path("a/~b")
    for text in ("", " ", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UsageError, match="no path|no home folder"):
            user_path(text)


def test_every_path_of_the_environment_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_env({"GGUFY_OUT": "~/o", "GGUFY_CACHE": "~/c", "GGUFY_LLAMA_DIR": "~/l"})
    assert (settings.out, settings.cache, settings.llama_dir) == (tmp_path / "o", tmp_path / "c", tmp_path / "l")


def test_every_path_of_the_command_line_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    args = build_parser().parse_args(["evaluate", "~/b.gguf", "~/q.gguf", "--out=~/x"])
    assert (args.base, args.quants, args.out) == (tmp_path / "b.gguf", [tmp_path / "q.gguf"], tmp_path / "x")
    args = build_parser().parse_args(["mix", "demo", "--text=~/t.txt", "--out=~/x.gguf"])
    assert (args.text, args.out) == (tmp_path / "t.txt", tmp_path / "x.gguf")
    text = tmp_path / "t.txt"
    text.write_text("some words of a text. " * 200, encoding="utf-8")
    assert pin_text("~/t.txt", tmp_path / "cache").name == "t"
    with pytest.raises(UsageError, match="no home folder"):
        local_file("~nobody-of-this-name/x.pth")
