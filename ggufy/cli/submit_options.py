"""The options of `submit` that are about the machine. What it does is in submit.py, which loads the Hub's client."""

from __future__ import annotations

import argparse


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Those of the machine, beside the job's."""
    parser.add_argument("--flavor", required=True, metavar="NAME", help="kind of machine: cpu-upgrade, cpu-xl, …")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="divide the quants among so many Jobs (1)")
    parser.add_argument("--space", metavar="OWNER/NAME", help="Space whose image runs (yours, called ggufy)")
    parser.add_argument("--hours", type=int, default=12, metavar="N", help="when it is ended at the latest (12)")
    parser.add_argument("--yes", action="store_true", help="start it without asking")
    parser.add_argument("--follow", action="store_true", help="tell how it goes, until it ends")
    parser.add_argument("--cancel", action="store_true", help="end the Jobs that the same command has started")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
