"""The architectures that there are, and which one a checkpoint or a GGUF is of. A new one is a file like rwkv7.py, and
its name in `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Iterable

from ggufy.core.errors import CheckpointError
from ggufy.models.architecture import Architecture, Hyperparameters, Shapes, block_numbers
from ggufy.models.rwkv import older_version
from ggufy.models.rwkv6 import RWKV6
from ggufy.models.rwkv7 import RWKV7

ARCHITECTURES: tuple[Architecture, ...] = (RWKV7, RWKV6)


def detect(shapes: Shapes) -> Hyperparameters:
    """What the tensors of a checkpoint (names to torch shapes) are.

    Raises CheckpointError for anything but a whole model of a known architecture: an older RWKV, DeepEmbed, another
    model, a missing tensor or a wrong shape (with its name, and what was found and expected).
    """
    if not block_numbers(shapes):
        found = ", ".join(repr(name[:80])[1:-1] for name in list(shapes)[:3])  # a stranger's texts: keep them tame
        raise CheckpointError(
            "this is not an RWKV checkpoint (its first tensors are {names}): choose an RWKV-6 or RWKV-7 .pth.",
            names=found,
        )
    if any(".ffn.s_emb" in name for name in shapes):
        raise CheckpointError(
            "this is an RWKV-7 with DeepEmbed, which llama.cpp cannot run: choose a checkpoint without DeepEmbed."
        )
    if architecture := _marked(shapes):
        return architecture.measure(shapes)
    if version := older_version(shapes):
        raise CheckpointError(
            "this is RWKV-{version}, which llama.cpp cannot run: choose an RWKV-6 or RWKV-7 checkpoint.",
            version=version,
        )
    raise CheckpointError("this is a variety of RWKV that ggufy does not know: choose an RWKV-6 or RWKV-7 checkpoint.")


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
