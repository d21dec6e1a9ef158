"""What every kind of step has that makes something on this machine. Each kind is one file here, and one line of
`STEPS` in ggufy/steps/__init__.py."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import Step
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast
from ggufy.system.files import allocated_bytes, part_of


class LocalStep(Step):
    """A step that the runner runs. It may run twice without harm, and knows nothing of queues, repos or pages."""

    product_name: ClassVar[str] = ""  # what people call its product, unless that is a quant
    advice: ClassVar[str] = ""  # one line about that product, for the card
    is_model: ClassVar[bool] = False  # the product is a model: the base, or a quant
    stays: ClassVar[bool] = True  # the product is needed here to the end of the job, even if the output repo has it
    lies_beside: ClassVar[bool] = False  # what it leaves is no file of the result, and lies beside the base to the end
    on_card: ClassVar[bool] = False  # the card says what it found, although that is no file
    comes_first: ClassVar[bool] = False  # sizes can be forecast when it is done, not before

    @classmethod
    @abstractmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """The plan so far, with the steps of this kind in their places."""

    @abstractmethod
    def run(self, ctx: Context) -> Artifact | None:
        """Writes the product aside, verifies it and renames it; None if it is no file of the result."""

    def check(self, ctx: Context) -> None:
        """Raises, before anything is made, what would only be met hours later."""

    def size(self, forecast: JobForecast) -> int:
        """Bytes of the product."""
        return 0

    def spare(self, ctx: Context) -> bool:
        """Sees to it that the product takes no room on the disk, if the job can do without; else False."""
        return False

    def left_bytes(self, ctx: Context, forecast: JobForecast) -> int:
        """What the product, or what is worked with, still needs on the disk: an earlier run may have left a part."""
        return max(0, self.size(forecast) - allocated_bytes(part_of(ctx.path(self.product))))
