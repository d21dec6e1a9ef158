"""Run as a script by the download step: fetches one URL into one new file with hf_transfer, and prints how far it is.

It is a process of its own because hf_transfer holds Python's lock from the first byte to the last (sources/url.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

PARALLEL, RANGE_BYTES = 4, 10 << 20  # requests at a time and bytes in each; memory is their product
FAILURES, TRIES = 3, 5  # requests that may be failing at a time, and tries of each


def command(url: str, target: Path) -> list[str]:
    """How it is run: fetches what is at `url` into `target`, which must not exist, and prints `<bytes so far>` now and
    then."""
    return [sys.executable, "-I", __file__, url, str(target)]


def main(url: str, target: str) -> None:
    """Exits with 1 and a line on stderr if the file cannot be had; nothing is left then."""
    import hf_transfer  # type: ignore[import-untyped]  # noqa: PLC0415 - nothing else needs it

    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()

    try:
        hf_transfer.download(
            url,
            target,
            max_files=PARALLEL,
            chunk_size=RANGE_BYTES,
            parallel_failures=FAILURES,
            max_retries=TRIES,
            callback=more,
        )
    except Exception as error:  # it raises plain Exceptions
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
