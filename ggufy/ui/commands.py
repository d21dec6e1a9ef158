"""Lines to copy that run a finished file: what its repo's card says, for the file where it is. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufy.core.hosts import HUGGING_FACE, RepoName
from ggufy.core.job import Request
from ggufy.core.plan import base_type
from ggufy.jobs.results import models
from ggufy.models.chat_format import TEMPLATE_FILE, RwkvFormat, llama_flags
from ggufy.sources.registry import format_of
from ggufy.steps.outputs import output_of_row
from ggufy.steps.outputs.gguf import GGUF


def commands(request: Request, row: Mapping[str, Any], path: Path, chat: RwkvFormat | None) -> dict[str, str]:
    """By program; `path` is where whoever copies them has the file, and `chat` how an RWKV is talked to."""
    if output_of_row(row) is not GGUF or not models([row]):
        return {}
    flags = llama_flags(chat, converted=format_of(request.source.kind).converts) if chat else []
    repo = RepoName.of(request.repo_id) if request.repo_id else None
    if repo and repo.host == HUGGING_FACE:
        name = f"{repo.repo_id}:{row.get('type', base_type(request)).rpartition('-')[2]}"
        run = " ".join([f"-hf {name}", *flags])
        return {
            "llama-cli": f"llama-cli {run}",
            "llama-server": f"llama-server {run}",
            "ollama": f"ollama run hf.co/{name}",
        }
    run = " ".join([f"-m {shlex.quote(str(path))}", *flags])
    model = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model"
    file = shlex.quote(str(path.with_suffix(".Modelfile")))
    steps = [
        f"python -m ggufy ollama {shlex.quote(str(path))}",
        f"ollama create {model} -f {file}",
        f"ollama run {model}",
    ]
    llama = {} if TEMPLATE_FILE in run else {"llama-cli": f"llama-cli {run}", "llama-server": f"llama-server {run}"}
    return llama | {"ollama": " && ".join(steps)}
