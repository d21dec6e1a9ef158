"""`ggufy page`: the page, in the place of this process, so that signals reach it."""

from __future__ import annotations

import argparse
import os
import sys

from ggufy.system.settings import Settings


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Does not come back. The page reads its settings from the environment, as in a Space."""
    os.execv(sys.executable, [sys.executable, "-m", "ggufy.ui.start"])
