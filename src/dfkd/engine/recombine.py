"""Images by one method, the student's loss by another: the papers' ablations, without a flag in either."""

from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from dfkd.data.pool import Pool
from dfkd.engine.around import Around
from dfkd.engine.core import Method, Need, State, Task
from dfkd.engine.plan import Plan
from dfkd.errors import UserError
from dfkd.types import Batch, Scalar

__all__ = ["Recombine", "RecombinedState"]


@dataclass
class RecombinedState(State):
    """Both methods' states. ``pool`` is the one the images come from, so that it is saved and shown."""

    images: State
    learning: State
    pool: Pool | None


@final
@dataclass(frozen=True)
class Recombine(Around[RecombinedState]):
    """``synthesize`` and ``batch`` of one method, ``loss`` of another.

    ``Recombine(NAYER(), SpaceshipNet())`` trains on NAYER's images with Spaceship-Net's activation regions. The loss
    has to be content with the batches it gets: one that contrasts two views wants a method that makes both. And the
    method of the images has to leave the student's weights to the loss: one that fixes its classifier does not.
    """

    images_from: Method[Any]  # the method that makes the images, with its own settings
    loss_from: Method[Any]  # the method whose loss the student minimises, with its own settings

    @property
    def inner(self) -> Method[Any]:
        """The method that makes the images: plan, measures and views are its own."""
        return self.images_from

    def inner_state(self, state: RecombinedState) -> State:
        """That of ``images_from``."""
        return state.images

    def needs(self) -> frozenset[Need]:
        """What either method needs."""
        return self.images_from.needs() | self.loss_from.needs()

    def fit(self, teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> nn.Module:
        """As both methods do."""
        return self.loss_from.fit(teacher, self.images_from.fit(teacher, student, image_size), image_size)

    def setup(self, task: Task, plan: Plan) -> RecombinedState:
        """Both setups; the loss's one for a single round, since what it would synthesise is never made."""
        images = self.images_from.setup(task, plan)
        fixed, name = images.fixed_parameters, type(self.images_from).__name__
        learning = self.loss_from.setup(task, replace(plan, rounds=1, warmup=1))
        if not set(fixed) <= set(learning.fixed_parameters):
            raise UserError(
                f"Recombine needs images_from to leave the student's weights alone, got {name}, which sets "
                f"{', '.join(fixed)}; turn that off (where it is a choice: share_head=False)"
            )
        pool = getattr(images, "pool", None)
        return RecombinedState(
            images,
            learning,
            pool,
            joint=learning.joint,
            fixed_parameters=learning.fixed_parameters,
            optimizers=learning.optimizers,
        )

    def loss(self, task: Task, state: RecombinedState, batch: Batch) -> Scalar:
        """Of ``loss_from``."""
        return self.loss_from.loss(task, state.learning, batch)
