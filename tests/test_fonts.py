"""Letters of pictures: Latin ones need nothing of the machine, others come from a font that has them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageFont

from ggufy.publish import fonts
from ggufy.publish.kld_plot import Point, Words
from ggufy.publish.plot_png import png

pytestmark = pytest.mark.fast
POINTS = [Point(name="Q8_0", size=200, kld=0.001), Point(name="Q4_K_M", size=100, kld=0.01)]
WORDS = Words(size="size", kld="KLD", title="plot")


def picture(name: str) -> bytes:
    return png(POINTS, WORDS, [name])


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    fonts._best.cache_clear()
    yield
    fonts._best.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all fonts of the machine are."""
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path), str(tmp_path / "not there")))
    monkeypatch.setattr(fonts, "_font_files", fonts._font_files.__wrapped__)
    return tmp_path


def test_chinese_letters_are_no_boxes() -> None:
    """Two that are missing look the same, so that their order would change nothing."""
    if not shutil.which("fc-list"):
        pytest.skip("no fc-list, which says whether this machine has a font with Chinese letters")
    if not subprocess.run(["fc-list", ":lang=zh", "file"], capture_output=True, check=True).stdout:
        pytest.skip("no font with Chinese letters: Debian, Ubuntu: apt-get install fonts-wqy-microhei")
    assert picture("模型") != picture("型模")


def test_latin_letters_are_those_that_pillow_carries(folder: Path) -> None:
    (folder / "other.ttf").symlink_to(next(iter(fonts_here()), folder))
    own = ImageFont.load_default(22)
    assert isinstance(own, fonts.Font)
    found = fonts.font_for("rwkv7-g1 1.5B, \t~", 22)
    assert isinstance(found, fonts.Font) and found.getname() == own.getname()


def test_without_a_font_that_has_them_there_are_boxes_and_no_error(folder: Path) -> None:
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "empty.otf").touch()
    assert picture("模型") == picture("型模") != picture("")


def test_of_several_fonts_it_is_one_that_has_most(folder: Path) -> None:
    """Cyrillic is in one of these two, in the other nothing that Pillow's own lacks."""
    rich = next((path for path in fonts_here() if path.name == "DejaVuSans.ttf"), None)
    if rich is None:
        pytest.skip("no DejaVu Sans on this machine")
    (folder / "a broken.ttf").write_bytes(b"no font")
    (folder / "deep").mkdir()
    (folder / "deep" / "rich.TTF").symlink_to(rich)
    found = fonts.font_for("Модель \U0010fffe", 22)
    assert isinstance(found, fonts.Font) and found.getname() == ("DejaVu Sans", "Book")


def fonts_here() -> list[Path]:
    return sorted(Path("/usr/share/fonts").rglob("*.ttf"))
