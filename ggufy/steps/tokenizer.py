"""Puts the tokenizer beside files that hold none, so that whoever runs them finds it."""

from __future__ import annotations

import shutil
from pathlib import PurePath

from ggufy.core.job import Artifact, Request
from ggufy.core.outputs import RWKVCPP
from ggufy.core.plan import Step, Workload
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.convert import pinned_vocab
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial


class TokenizerStep(LocalStep):
    """For jobs with a vocabulary of their own whose files are rwkv.cpp's."""

    kind = "tokenizer"
    product_name = "tokenizer"
    advice = "How the model reads and writes: the other files do not hold it."

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if request.output != RWKVCPP or not request.vocab_path:
            return steps
        return (*steps, cls(product=tokenizer_name(request)))

    def seconds(self, load: Workload) -> float:
        return 0.1

    def run(self, ctx: Context) -> Artifact:
        """Leaves a copy of the user's file."""
        target, source = ctx.path(self.product), pinned_vocab(ctx)
        assert source is not None
        with partial(target) as part:
            shutil.copyfile(source, part)
        return artifact_of(target)


def tokenizer_name(request: Request) -> str:
    """As ggufy/rwkvcpp/tokenizer.py finds it: a tokenizers JSON, or a vocabulary in RWKV's text format."""
    json = PurePath(request.vocab_path).suffix == ".json"
    return "tokenizer.json" if json else f"{request.name}-vocab.txt"
