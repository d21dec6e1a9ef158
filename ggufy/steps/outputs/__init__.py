"""What quants can be: one file for each format, and one line of `OUTPUTS`.

The format of a job is in its request; everybody else asks the format what its files are, how they are made, and what
can be done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.core.job import Request
from ggufy.steps.outputs.gguf import GGUF
from ggufy.steps.outputs.output_format import OutputFormat
from ggufy.steps.outputs.rwkvcpp import RWKVCPP_OUTPUT

OUTPUTS: dict[str, OutputFormat] = {output.name: output for output in (GGUF, RWKVCPP_OUTPUT)}


def output_of(request: Request) -> OutputFormat:
    """The format of a job's quants."""
    return OUTPUTS[request.output]


def output_of_row(row: Mapping[str, Any]) -> OutputFormat:
    """The format of a file, from one of `ggufy.jobs.results.results`'s records."""
    return OUTPUTS[row.get("format", GGUF.name)]
