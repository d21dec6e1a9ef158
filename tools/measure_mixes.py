"""Measures what ggufy's recipes for RWKV follow from, and prints it as it stands in the code.

    python -m tools.measure_mixes                                 LOSSES of ggufy/quantize/search/mixes.py
    python -m tools.measure_mixes BASE.gguf                       the recipes of that model, role by role
    python -m tools.measure_mixes BASE.gguf --harmless            what the harmless roles follow from
    python -m tools.measure_mixes BASE.gguf --probes RECORD.json  the sensitivities in its file in ggufy/models

- Losses are measured with ggml's own kernels on normally distributed weights with log-normal importances.
- For the harmless ones every low-rank role of the model is put into Q8_0, alone, and compared to the base over the
  probe text.
- How much each role matters is measured by probing a trained model, which this script does not do: RECORD.json is what
  `python -m ggufy mix BASE.gguf --like Q4_K_M --mode thorough --json` prints, or only a table of sensitivities (group
  -> c, in nats). The table of RWKV-6 was made so; that of RWKV-7 is derived from published figures, and that of
  transformers is set by hand, as is said there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import PROBE_CHUNKS
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama.ggml import Ggml, load
from ggufy.llama.install import Llama, ensure
from ggufy.llama.tools import ToolRun
from ggufy.models import registry
from ggufy.models.architecture import Architecture, Arrangement
from ggufy.quantize.recipe import stock_recipe
from ggufy.quantize.search.loss import Kernels, relative_error
from ggufy.quantize.search.mixes import LOSSES, mixed
from ggufy.quantize.search.roles import OTHER, Depth, roles
from ggufy.steps.evaluate import EvaluationConfig
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts

_ROWS, _COLUMNS = 256, 1024
_STD = 0.02
_BLOCK = 32  # of Q8_0


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


def symbols(head: GgufHead, architecture: Architecture) -> dict[str, int]:
    """What the symbols of the architecture's table stand for in a model of two blocks or more."""
    found: dict[str, int] = {}
    for row in (*architecture.before, *architecture.block, *architecture.after):
        shape = head.tensors[row.target if row.target in head.tensors else f"blk.1.{row.target}"].shape
        if row.layout in (Arrangement.AS_IS, Arrangement.TRANSPOSED):  # GGUF lists the innermost dimension first
            found |= zip(row.shape.split(), shape[:: 1 if row.layout is Arrangement.TRANSPOSED else -1], strict=True)
    return found


def keys(sensitivities: Mapping[str, float]) -> dict[str, float]:
    """The c of groups (`roles.groups`) under the keys that `roles.sensitivity` looks for.

    A role without a depth stands for all depths without a key of their own, so it takes what was measured of middle
    blocks, or of all but the first. Roles that shared a probe under `other` get no key.
    """
    found = {}
    for group, c in sensitivities.items():
        role, _, depth = group.partition("@")
        if role != OTHER:
            found[role if depth in (Depth.MIDDLE, "rest") else group] = c
    return found


def probed_tables(head: GgufHead, record: Mapping[str, Any]) -> str:
    """The model's sensitivities, and its sizes, from a record of `ggufy mix` or a table of sensitivities."""
    architecture = registry.of_tensors(head.tensors)
    assert architecture is not None, "transformers have no table of their own"
    table = keys(record.get("sensitivities", record))
    priors = "".join(f'        "{key}": {1e9 * c:.3g},\n' for key, c in table.items())
    return f"    sensitivities={{\n{priors}    }},\n    measured_at={symbols(head, architecture)},"


def harmless(recipe_search: RecipeSearch) -> dict[str, float]:
    """Mean KLD from the base, in nats, of each low-rank role in Q8_0, of all harmless ones together, and of the stock
    Q6_K file. Rows that are no multiple of 32 stay as they are."""
    small: dict[str, list[str]] = {}
    for name, role in roles(recipe_search.head.tensors).items():
        shape = recipe_search.head.tensors[name].shape
        if role.low_rank and len(shape) == 2 and shape[0] % _BLOCK == 0:
            small.setdefault(role.name, []).append(name)
    architecture = registry.of_tensors(recipe_search.head.tensors)
    known = architecture.harmless if architecture else ()
    rows = small | {" + ".join(known): [name for role in known for name in small.get(role, ())]}
    found = {row: recipe_search.divergence(dict.fromkeys(names, "Q8_0"), label=row) for row, names in rows.items()}
    return found | {"stock Q6_K": recipe_search.divergence(recipe_search.stock("Q6_K"), label="Q6_K", stock=True)}


def measured_harmless(base: Path, llama: Llama, settings: Settings, *, text: Path, chunks: int) -> dict[str, float]:
    """`harmless` over a text, with nothing left behind. Q8_0 and Q6_K need no imatrix."""
    threads = max(1, math.floor(resources.allowed_cpus()))
    environment = resources.child_environment(threads=threads, home=settings.home)
    with tempfile.TemporaryDirectory(prefix="ggufy-measure-") as folder:
        config = EvaluationConfig(
            text=text,
            folder=Path(folder),
            llama=llama,
            environment=environment,
            threads=threads,
            chunks=chunks,
        )
        return harmless(RecipeSearch(base=base, imatrix_path=None, config=config))


def recipe_lines(base: Path, llama: Llama, settings: Settings) -> list[str]:
    """For each quant type and role, which types its tensors get and how many get each."""
    head, lines = read_head(base), []
    run = ToolRun(environment=resources.child_environment(threads=1, home=settings.home), cwd=base.absolute().parent)
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
    parser.add_argument("--harmless", action="store_true")
    parser.add_argument("--probes", type=Path, metavar="RECORD.json")
    args = parser.parse_args()
    if (args.probes or args.harmless) and not args.base:
        parser.error("--probes and --harmless need the BASE.gguf that is meant.")
    settings = Settings.from_env()
    if args.probes:
        print(probed_tables(read_head(args.base), json.loads(args.probes.read_text(encoding="utf-8"))))
        return
    environment = settings.pip_environment
    llama = ensure(settings.cache, override=settings.llama_dir, threads=1, pip_environment=environment, types=BY_NAME)
    if args.harmless:
        text = ensure_texts(settings.cache).probe
        found = measured_harmless(args.base, llama, settings, text=text, chunks=PROBE_CHUNKS)
        print("".join(f"{kld:.6f}  {row}\n" for row, kld in found.items()), end="")
    elif args.base:
        print("\n".join(recipe_lines(args.base, llama, settings)))
    else:
        print("".join(f'    "{kind}": {loss:.3g},\n' for kind, loss in losses(load(llama.bin)).items()))


if __name__ == "__main__":
    main()
