"""What a card says on ModelScope instead of what it says on the Hub. Pure.

Its front matter names licences in another way and knows the task; a base model is one of ModelScope. `llama-cli -hf`
does not reach ModelScope: the file is fetched first. Ollama knows the site by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ggufy.net.modelscope import LICENSES

# In what ModelScope itself writes as the README.md of a new repo, in Chinese, older and newer, and in English. A repo
# with that is shown to nobody but its owner.
_DEFAULTS = (
    "当前模型的贡献者未提供更加详细",
    "该模型当前使用的是默认介绍模版",
    "You are viewing the default Readme template",
)
_SHOWN = {name: shown for shown, name in reversed(LICENSES.items())}
TASK = "text-generation"


def is_default(readme: str) -> bool:
    """True for a README.md that nobody has written."""
    return any(text in readme for text in _DEFAULTS) and "quantized_by: ggufy" not in readme


def license_name(name: str) -> str:
    """The licence as ModelScope calls it."""
    return _SHOWN.get(name.lower(), name)


def how_to_run(lines: Sequence[str], repo_id: str, label: str, file: str) -> list[str]:
    """Lines that say how to run the quant `label` of a repo on the Hub, for the same on ModelScope, where it is the
    file `file`."""
    here = [line.replace(f"-hf {repo_id}:{label}", f"-m {file}") for line in lines]
    here = [line.replace(f"hf.co/{repo_id}:", f"modelscope.cn/{repo_id}:") for line in here]
    fetched = re.compile(rf"^hf download {re.escape(repo_id)} (\S+) --local-dir \.$")
    here = [fetched.sub(lambda file: _fetch(repo_id, file[1]), line) for line in here]
    return ["The file first (`pip install modelscope`):", "", "```sh", _fetch(repo_id, file), "```", "", *here]


def _fetch(repo_id: str, file: str) -> str:
    return f"modelscope download --model {repo_id} {file} --local_dir ."
