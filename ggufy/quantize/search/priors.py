"""The shipped sensitivities of a model (see `Priors`): those of its architecture, in its file in `models`, or those of
transformers, which follow what the mixes of llama.cpp protect, and were not measured here."""

from __future__ import annotations

from collections.abc import Iterable

from ggufy.models import registry
from ggufy.models.architecture import Priors

TRANSFORMER = Priors(
    sensitivities={
        "embedding": 20.0,
        "tied_embedding": 60.0,
        "head": 60.0,
        "attn_v": 40.0,
        "attn_qkv": 30.0,
        "attn_output": 30.0,
        "attn_k": 20.0,
        "attn_q": 15.0,
        "ffn_down": 40.0,
        "ffn_up": 20.0,
        "ffn_gate": 15.0,
    }
)


def priors_of(names: Iterable[str]) -> Priors:
    """Those of the model that has these tensors."""
    architecture = registry.of_tensors(names)
    return architecture.priors if architecture else TRANSFORMER
