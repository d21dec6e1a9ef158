"""How the tensors of a file are named and laid out, told from their names and shapes alone."""

from __future__ import annotations

from ggufy.models.architecture import Shapes
from ggufy.models.origin import Origin, identity


def origins_of(shapes: Shapes) -> dict[str, Origin]:
    """Where each tensor under BlinkDL's name comes from, in a file with these tensors.

    A tensor that the layout does not know keeps its own name. Raises CheckpointError for a layout that cannot be read.
    """
    return identity(shapes)
