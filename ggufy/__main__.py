"""`python -m ggufy`."""

from __future__ import annotations

import sys

from ggufy.cli.main import program

sys.exit(program())
