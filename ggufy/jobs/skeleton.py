"""The base of a source that was looked at, foreseen: its head with a hole in place of its weights, from which all
sizes follow. Some formats know it themselves, others ask llama.cpp's converter, which takes seconds then."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ggufy.core.errors import Cancelled, ToolError
from ggufy.llama.converter import Converter
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.sources.format import Report, SkeletonTask
from ggufy.sources.registry import format_of
from ggufy.system import resources
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)
_CONVERTER_S = 600.0  # to fetch what it needs, and run over heads: seconds, unless others keep the machine busy


def write_skeleton(
    report: Report,
    target: Path,
    settings: Settings,
    *,
    llama: Llama | None,
    outtype: str,
    vocab: Path | None,
    name: str,
) -> bool:
    """Writes it to `target`, in a folder that is nobody else's; False where it cannot be foreseen.

    Raises SourceError for what cannot be converted.
    """
    form = format_of(report.kind)
    if not (form.forecasts or (llama and report.companions)):
        return False

    def run_converter(folder: Path, hollow: Path) -> None:
        assert llama is not None
        until, log = time.monotonic() + _CONVERTER_S, settings.cache / "logs" / "forecast.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = resources.child_environment(threads=1, home=settings.home)
        run = ToolRun(environment=environment, cwd=target.parent, log=log, stopped=lambda: time.monotonic() > until)
        converter = Converter(llama=llama, cache=settings.cache, pip_environment=settings.pip_environment, run=run)
        converter.convert(folder, hollow, outtype=outtype, weights=False)

    try:
        form.write_described(
            report, target, SkeletonTask(outtype=outtype, vocab=vocab, name=name, run_converter=run_converter)
        )
    except (ToolError, Cancelled) as error:
        logger.warning("no sizes of %s: %s", report.source, error)
        return False
    return True
