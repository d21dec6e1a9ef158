"""Measures the tables that ggufy's recipes for RWKV follow from, and prints them as they stand in the code.

    python -m tools.measure_mixes                                     LOSSES of ggufy/quantize/mixes.py
    python -m tools.measure_mixes BASE.gguf                           the recipes of that model, role by role
    python -m tools.measure_mixes BASE.gguf --probes SENSITIVITY.json PRIORS and REFERENCE of ggufy/quantize/priors.py

What each type loses is measured with ggml's own kernels on weights of a normal distribution, under importances of a
log-normal one. What each role matters is measured by probing a trained model (`python -m ggufy mix`): the JSON file
has a sensitivity c by `role` or `role@depth`, in nats.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from ggufy import throttle
from ggufy.catalog import BY_NAME
from ggufy.llama.ggml import Ggml, load
from ggufy.llama.install import Llama, ensure
from ggufy.llama.tools import ToolRun
from ggufy.quantize.loss import Kernels, relative_error
from ggufy.quantize.mixes import LOSSES, mixed
from ggufy.quantize.recipe import stock_recipe
from ggufy.quantize.roles import family, roles
from ggufy.settings import Settings
from ggufy.sources.gguf import GgufHead, read_head

_ROWS, _COLUMNS = 256, 1024
_STD = 0.02


def losses(ggml: Ggml) -> dict[str, float]:
    """The relative error of every type, always on the same weights."""
    random = np.random.default_rng(0)
    weights = (random.standard_normal((1, _ROWS, _COLUMNS)) * _STD).astype(np.float32)
    importance = np.exp(random.standard_normal((1, _COLUMNS))).astype(np.float32)

    def quantize(rows: np.ndarray, kind: str, columns: np.ndarray | None) -> np.ndarray:
        made = ggml.quantize(rows, kind, columns)
        assert made is not None
        return made

    kernels = Kernels(quantize=quantize, build=ggml.sha256)
    return {kind: relative_error(weights, kind, importance, kernels=kernels) for kind in LOSSES}


def reference(head: GgufHead) -> dict[str, int]:
    """The number of weights of a tensor of each role."""
    return {role.name: head.tensors[name].elements for name, role in roles(head.tensors).items()}


def recipe_lines(base: Path, llama: Llama, settings: Settings) -> list[str]:
    """For each quant type and role, which types its tensors get and how many get each."""
    head, lines = read_head(base), []
    run = ToolRun(environment=throttle.child_environment(threads=1, home=settings.home), cwd=base.absolute().parent)
    found = roles(head.tensors)
    for name in BY_NAME:
        stock = stock_recipe(llama.tool("llama-quantize"), run, base, name)
        recipe = mixed(head, name, stock=stock)
        by_role: dict[str, Counter[str]] = {}
        for tensor, kind in recipe.items():
            if len(head.tensors[tensor].shape) == 2 and kind != "F32":
                by_role.setdefault(found[tensor].key, Counter())[kind] += 1
        types = (f"{k}: {' '.join(f'{t}×{n}' for t, n in c.most_common())}" for k, c in sorted(by_role.items()))
        lines.append(f"{name}\n    " + "\n    ".join(types))
    return lines


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("--probes", type=Path)
    args = parser.parse_args()
    settings = Settings.from_env()
    if args.probes:
        head = read_head(args.base)
        table = json.loads(args.probes.read_text(encoding="utf-8"))
        sizes = reference(head)
        print(f'    "{family(head.tensors)}": {{')
        print("".join(f'        "{key}": {1e9 * c:.3g},\n' for key, c in table.items()) + "    },")
        print("".join(f'        "{role}": {sizes[role]},\n' for role in dict.fromkeys(k.split("@")[0] for k in table)))
        return
    environment = settings.pip_environment
    llama = ensure(settings.cache, override=settings.llama_dir, threads=1, pip_environment=environment, types=BY_NAME)
    if args.base:
        print("\n".join(recipe_lines(args.base, llama, settings)))
    else:
        print("".join(f'    "{kind}": {loss:.3g},\n' for kind, loss in losses(load(llama.bin)).items()))


if __name__ == "__main__":
    main()
