"""The architectures that there are, and which one a checkpoint or a GGUF is of. A new one is a file like rwkv7.py, and
its name in `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Iterable

from ggufy.core.errors import CheckpointError
from ggufy.core.messages import Message
from ggufy.models.architecture import TIME_STATE, Architecture, Hyperparameters, Shapes, block_numbers, brief
from ggufy.models.rwkv import older_version
from ggufy.models.rwkv5 import UPGRADED, upgraded_shapes
from ggufy.models.rwkv6 import RWKV6
from ggufy.models.rwkv7 import RWKV7

ARCHITECTURES: tuple[Architecture, ...] = (RWKV7, RWKV6)


# RWKVs that llama.cpp has no graph for, by a name that no other has, the more special first. The names are those of
# rwkv_v7a_demo.py, rwkv_v7b_demo.py, rwkv_v8_rc00_demo.py and rwkv_v8_rc00_hybrid_demo.py in BlinkDL/RWKV-LM.
_NO_GRAPH = {
    ".qkv.ennk.": Message("RWKV-8 hybrid, with attention and an embedding of every token in each block"),
    ".ffn.enn.": Message("RWKV-8, with an embedding of every token in each block"),
    ".qkv.k_emb.": Message("RWKV-7b, an RWKV-7 with DeepEmbed and DeepEmbedAttention"),
    ".ffn.s_emb.": Message("RWKV-7a, an RWKV-7 with DeepEmbed"),
}
OLDER = {
    "4": Message("its state is no matrix, so no newer version can stand for it"),
    "5": Message("it has no gate, without which RWKV-6 cannot stand for it"),
}


def detect(shapes: Shapes) -> Hyperparameters:
    """What the tensors of a checkpoint (BlinkDL's names to torch shapes) are; an RWKV-5 with a gate is the RWKV-6 that
    it becomes (see rwkv5.py).

    Raises CheckpointError for anything but a whole model of a known architecture: a tuned state, another RWKV, another
    model, a missing tensor or a wrong shape (with its name, and what was found and expected), one too many.
    """
    check_rwkv(shapes)
    if architecture := _marked(shapes):
        return architecture.measure(shapes)
    version = older_version(shapes)
    if version in UPGRADED:
        return RWKV6.measure(upgraded_shapes(shapes))
    if version:
        raise CheckpointError(
            "this is RWKV-{version}, which llama.cpp cannot run, and {reason}: make files of rwkv.cpp of it with "
            "{RWKVCPP}, or choose an RWKV-6 or RWKV-7 checkpoint.",
            version=version,
            reason=OLDER[version],
        )
    raise CheckpointError("this is a variety of RWKV that ggufy does not know: choose an RWKV-6 or RWKV-7 checkpoint.")


def check_rwkv(shapes: Shapes) -> None:
    """Raises CheckpointError for what is no RWKV, or a tuned state, or one of the varieties that nothing here runs."""
    if shapes and all(name.endswith(TIME_STATE) for name in shapes):
        raise CheckpointError(
            "this is a tuned state, not a model: give the model that it was tuned on, and this with `ggufy state`."
        )
    if not block_numbers(shapes):
        found = ", ".join(brief(name) for name in list(shapes)[:3])
        raise CheckpointError(
            "this is not an RWKV checkpoint (its first tensors are {names}): choose an RWKV-6 or RWKV-7 .pth.",
            names=found,
        )
    for mark, model in _NO_GRAPH.items():
        if any(mark in name for name in shapes):
            raise CheckpointError(
                "this is {model}, for which llama.cpp has no graph: choose a plain RWKV-6 or RWKV-7 checkpoint.",
                model=model,
            )


def version_of(shapes: Shapes) -> str:
    """The version of RWKV that the names belong to: 4, 5, 5.1, 5.2, 6 or 7, or nothing if it is none of these."""
    found = _marked(shapes)
    return found.version if found else older_version(shapes)


def named(name: object) -> Architecture | None:
    """The architecture that a GGUF names as its own (general.architecture)."""
    return next((one for one in ARCHITECTURES if one.name == name), None)


def related(name: str) -> Architecture | None:
    """As `named`, and for a hybrid with a transformer (arwkv7, rwkv6qwen2) the architecture that it is named after."""
    return next((one for one in ARCHITECTURES if name.removeprefix("a").startswith(one.name)), None)


def of_tensors(names: Iterable[str]) -> Architecture | None:
    """The architecture that the tensors of a GGUF belong to, also those of a hybrid; None for transformers."""
    stems = {name.split(".", 2)[-1] for name in names}
    return next((one for one in ARCHITECTURES if stems.intersection(one.gguf_marks)), None)


def _marked(shapes: Shapes) -> Architecture | None:
    return next((one for one in ARCHITECTURES if any(map(one.mark.search, shapes))), None)
