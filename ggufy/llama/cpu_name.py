"""What a build is named after: it runs only on a CPU with the abilities of the one that it was made on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Collection
from pathlib import Path

_CPU_KEYS = {"model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"}


def cpu_name(flags: Collection[str] = (), *, root: Path = Path("/")) -> str:
    """Machine and a hash of the CPU's model and abilities (and `flags`): a build runs only where this is the same."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in _CPU_KEYS:
                facts.setdefault(key.strip(), " ".join(sorted(value.split())))
    text = json.dumps([sorted(facts.items()), list(flags)])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
