"""The verdicts of the mixes' bench: what it calls reached, and which texts it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.mixes import Given, check_texts, reached, shortfall
from ggufy.core.errors import CalibrationError
from tests import small


def test_a_mix_that_is_worse_than_stock_is_never_reached() -> None:
    assert reached([0.5, 0.5, 0.9, 0.3], "Q2_K")
    assert not reached([0.5, 0.5, 1.01, 0.3], "Q2_K")
    assert not reached([0.8, 0.5, 0.9, 0.3], "Q2_K")
    assert not reached([0.5, 0.5, 0.9, 0.4], "Q2_K") and reached([0.5, 0.5, 0.9, 0.4], "IQ3_XXS")


def test_the_largest_shortfall_counts() -> None:
    assert shortfall([(1000, 1000), (1000, 998)]) == "  sizes hit within 0.20%, never above  bar 0.5% reached"
    assert shortfall([(1000, 990), (1000, 998)]).endswith("within 1.00%, never above  bar 0.5% MISSED")
    assert shortfall([(1000, 1001), (1000, 998)]) == "  sizes hit within 0.20%  bar 0.5% MISSED"


def test_the_calibration_text_is_checked_or_said_not_to_be(tmp_path: Path) -> None:
    base = small.matrices(tmp_path / "base.gguf", {"output.weight": (64, 256)})
    texts = {name: tmp_path / f"{name}.txt" for name in ("probe", "test", "calibration")}
    for name, path in texts.items():
        path.write_text("".join(f"This is sentence {number} of the {name} text.\n" for number in range(99)))
    imatrix = small.imatrix(tmp_path / "imatrix.gguf", base)  # from a text.txt
    given = Given(base, imatrix, texts["probe"], texts["test"])
    assert "NOT CHECKED" in check_texts(given, tmp_path)
    assert "NOT CHECKED" not in check_texts(given._replace(calibration=texts["calibration"]), tmp_path)
    for part in ("probe", "test"):
        with pytest.raises(CalibrationError, match="share"):
            check_texts(given._replace(calibration=texts[part]), tmp_path)
    pinned = tmp_path / "texts" / "0123456789abcdef" / "text.txt"
    pinned.parent.mkdir(parents=True)
    pinned.write_text(texts["test"].read_text())
    with pytest.raises(CalibrationError, match="share"):
        check_texts(given, tmp_path)
    with pytest.raises(CalibrationError, match="share"):
        check_texts(given._replace(test=texts["probe"]), tmp_path / "nothing")
