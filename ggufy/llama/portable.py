"""`python -m ggufy.llama.portable DIR`: the pinned llama.cpp for any CPU of this kind, to be carried elsewhere.

The Dockerfile calls it in a stage that has a compiler, and copies DIR into the image, where GGUFY_LLAMA_DIR names it.
It needs nothing but the standard library, pip, cmake and ninja, and of this package only what the Dockerfile copies
for it, so that a change elsewhere does not compile llama.cpp again.
"""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

from ggufy.core.errors import GgufyError
from ggufy.llama.install import build_portable
from ggufy.llama.server_program import server_program
from ggufy.system import resources
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)


def main(folder: Path) -> None:
    """Builds it there and says how far it is, in steps of ten percent. Raises as `build_portable` does."""
    told = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal told
        if not total:
            logger.info("%s", text)
        elif done * 10 // total > told:
            told = done * 10 // total
            logger.info("%d of %d: %s", done, total, text)

    settings = Settings.from_env()
    threads = max(1, math.floor(resources.allowed_cpus()))
    llama = build_portable(folder, threads=threads, pip_environment=settings.pip_environment, progress=progress)
    server_program(llama, resources.child_environment(threads=1, home=folder))  # where it is carried is no compiler
    logger.info("llama.cpp %s (%s) in %s", llama.version, llama.commit, llama.bin)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ggufy.llama.portable DIR")
    try:
        main(Path(sys.argv[1]))
    except GgufyError as error:
        sys.exit(f"ggufy: {error}")
