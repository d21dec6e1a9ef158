"""What all types of an RWKV-7 G1 would take on 1, 4 and 16 Hugging Face Jobs: `python -m bench.jobs_on_paper`.

Nothing is run: times are those of the cost model that `submit` tells, whose speeds were measured on one CPU; a core of
another is as fast here. The table is in docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ggufy.core.words import human_time
from ggufy.jobs.estimate import BaseOptions, EstimateOptions, preview, work_seconds
from ggufy.llama.install import find
from ggufy.sources.format import Report
from ggufy.steps.covariance import most_bytes
from ggufy.system.settings import Settings

GB = 1e9
VOCAB, HEAD = 65536, 64
MODELS = {  # layers, width, ranks of decay, learning rate, value and gate
    "1.5B": (24, 2048, (96, 96, 64, 256)),
    "7.2B": (32, 4096, (128, 128, 96, 480)),
    "13.3B": (61, 4096, (192, 192, 128, 384)),
}
FLAVORS = {"cpu-basic": (2, 16, 0.01), "cpu-upgrade": (8, 32, 0.03), "cpu-xl": (16, 124, 1.00)}  # CPUs, GB, $ an hour
COUNTS = (1, 4, 16)
PASSES = 4  # as of steps/covariance.py


def main() -> None:
    settings = Settings.from_env()
    llama = find(settings.cache, settings.llama_dir)
    assert llama is not None, "run `ggufy setup` first"
    print("| model | machine | codes | " + " | ".join(f"{n} Job{'s' * (n > 1)}" for n in COUNTS) + " |")
    print("|---|---|---|" + "---|" * len(COUNTS))
    for name, (layers, width, ranks) in MODELS.items():
        shapes = shapes_of(layers, width, ranks)
        size = 2 * sum(map(math.prod, shapes.values()))
        report = Report(source=name, kind="checkpoint", path=f"rwkv7-g1-{name}.pth", shapes=shapes, size=size)
        compensated = preview(report, settings, BaseOptions(), llama=llama).sizes
        assert compensated is not None and compensated.gguf is not None
        for flavor, (cpus, memory, price) in FLAVORS.items():
            base, sums = compensated.base_size, most_bytes(compensated.gguf)
            if base > memory * GB:
                print(
                    f"| {name} | {flavor} | no imatrix: the base's {base / GB:.0f} GB are more than its memory | | | |"
                )
                continue
            fits = sums <= PASSES * max(0.5 * GB, memory * GB / 2 - base)
            sizes = compensated if fits else replace(compensated, compensated=False)
            order = EstimateOptions(quant_types=tuple(sizes.quants))
            cells = []
            for count in COUNTS:
                seconds = work_seconds(report, sizes, order, threads=cpus, machines=count)
                cells.append(f"{human_time(seconds)}, ${count * price * seconds / 3600:.2f}")
            print(f"| {name} | {flavor} | {'compensated' if fits else 'plain'} | {' | '.join(cells)} |")


def shapes_of(layers: int, width: int, ranks: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of BlinkDL's checkpoint."""
    vectors = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
    found: dict[str, tuple[int, ...]] = {"emb.weight": (VOCAB, width), "head.weight": (VOCAB, width)}
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(layers):
        block = f"blocks.{i}"
        norms += [f"{block}.ln1", f"{block}.ln2", f"{block}.att.ln_x"]
        found |= {f"{block}.att.{name}": (1, 1, width) for name in vectors}
        for letter, rank in zip("wavg", ranks, strict=True):
            found |= {f"{block}.att.{letter}1": (width, rank), f"{block}.att.{letter}2": (rank, width)}
        found |= {f"{block}.att.{name}.weight": (width, width) for name in ("receptance", "key", "value", "output")}
        found |= {f"{block}.att.r_k": (width // HEAD, HEAD), f"{block}.ffn.x_k": (1, 1, width)}
        found |= {f"{block}.ffn.key.weight": (4 * width, width), f"{block}.ffn.value.weight": (width, 4 * width)}
    for name in ("v0", "v1", "v2"):
        del found[f"blocks.0.att.{name}"]
    return found | {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}


if __name__ == "__main__":
    main()
