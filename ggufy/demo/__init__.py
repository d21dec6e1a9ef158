"""The demo: a small trained RWKV-7, its vocabulary, and texts for calibration and evaluation."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = "RWKV-x070-Demo-7M"
CHECKPOINT = FOLDER / f"{MODEL}.pth"
VOCAB = FOLDER / f"{MODEL}.vocab.txt"
FACTS = FOLDER / f"{MODEL}.json"  # how it was trained, and its held-out loss
CALIBRATION = FOLDER / "calibration.txt"
