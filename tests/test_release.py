"""What a release needs: the program's name and version, completion in a shell, checks that find what is wrong."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ggufy import __version__
from ggufy.cli.main import main
from tools import release_check
from tools.release_check import NotReady

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"ggufy {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("ggufy qua", "quantize"), ("ggufy quantize --typ", "--types"), ("ggufy chat mod", "model.gguf")],
)
def test_bash_completes_commands_options_and_files(
    typed: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").touch()
    assert main(["completion", "bash"]) == 0
    words = typed.split()
    ask = (
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{typed}'; COMP_POINT={len(typed)}; "
        f"_shtab_ggufy ggufy {words[-1]} {words[-2]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    script = f"{capsys.readouterr().out}\n{ask}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert offered in done.stdout.split(), done


def test_the_page_is_started_from_the_command_line_and_says_what_is_wrong(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "GGUFY_THREADS": "none"}
    words = [sys.executable, "-m", "ggufy", "page"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0 and "GGUFY_THREADS" in done.stderr and "Traceback" not in done.stderr


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in (*names, "ggufy-1.dist-info/METADATA"):
            file.writestr(name, "")
    return path


def test_a_wheel_is_whole(tmp_path: Path) -> None:
    tracked = ["ggufy/__init__.py", "ggufy/ui/page.css"]
    release_check.check_wheel(wheel(tmp_path / "a.whl", *tracked), tracked)
    with pytest.raises(NotReady, match=r"lacks ggufy/ui/page\.css"):
        release_check.check_wheel(wheel(tmp_path / "b.whl", tracked[0]), tracked)
    with pytest.raises(NotReady, match=r"has tests/a\.py"):
        release_check.check_wheel(wheel(tmp_path / "c.whl", *tracked, "tests/a.py"), tracked)


@pytest.mark.parametrize("licence", ["", "GPL-3.0-or-later", "License :: Other/Proprietary License"])
def test_a_licence_that_needs_a_look(licence: str) -> None:
    release_check.check_licences({"a 1": "Apache-2.0 OR MIT", "b 2": "License :: OSI Approved :: BSD License"})
    with pytest.raises(NotReady, match="a 1"):
        release_check.check_licences({"a 1": licence})


def test_the_version_to_be_released(tmp_path: Path) -> None:
    (tmp_path / "ggufy").mkdir()
    (tmp_path / "ggufy" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    changelog = "# Changelog\n\n## [1.2.3] - 2027-01-01\n"
    assert release_check.check_version(changelog, tmp_path, "1.2.3") == "1.2.3"
    assert release_check.check_version("## [Unreleased]\n", tmp_path, None) == "1.2.3"
    with pytest.raises(NotReady, match="the changelog Unreleased"):
        release_check.check_version("## [Unreleased]\n", tmp_path, "1.2.3")
    with pytest.raises(NotReady, match="the program says 1.2.3"):
        release_check.check_version("## [1.3.0]\n", tmp_path, "1.3.0")
