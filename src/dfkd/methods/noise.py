"""Noise input: the lower bound. The student imitates the teacher on pure noise, drawn anew for every step.

Used as a yardstick by STTS's paper (Table 2, "noise input"): x ~ N(0, 1) per pixel in normalised space, no
optimisation, and the student's loss of the method it is compared with: here τ² KL, as of NAYER and D3K.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch

from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task
from dfkd.engine.limits import Positive
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import knowledge_distillation
from dfkd.types import Batch, Scalar

__all__ = ["NoiseInput", "NoiseState"]


@dataclass
class NoiseState(State):
    """Nothing is remembered."""


@final
@dataclass(frozen=True)
class NoiseInput(Method[NoiseState]):
    """Hyper-parameters of the noise yardstick."""

    kind: Literal["normal", "uniform"] = "normal"  # N(0, 1) in normalised space, or U(0, 1) in pixel space
    clip: bool = True  # keep normal noise inside [0, 1], as every image is
    temperature: Positive = 20.0  # τ

    default_plan: ClassVar[Plan] = Plan(rounds=200, steps=400, batch_size=256, lr=0.1, weight_decay=1e-4)

    def needs(self) -> frozenset[Need]:
        """Nothing: that is the point."""
        return frozenset()

    def setup(self, task: Task, plan: Plan) -> NoiseState:
        """Nothing to build."""
        return NoiseState()

    def synthesize(self, task: Task, state: NoiseState, clock: Clock) -> Metrics:
        """Nothing is made ahead."""
        return {}

    def batch(self, task: Task, state: NoiseState, clock: Clock) -> Batch:
        """Fresh noise."""
        size, rng = (clock.plan.batch_size, *task.image_shape), task.runtime.generator
        if self.kind == "uniform":
            return Batch(torch.rand(size, generator=rng, device=task.runtime.device))
        images = task.teacher.denormalise(torch.randn(size, generator=rng, device=task.runtime.device))
        return Batch(images.clamp(0, 1) if self.clip else images)

    def loss(self, task: Task, state: NoiseState, batch: Batch) -> Scalar:
        """``τ² KL(T ‖ S)``."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        return knowledge_distillation(t, task.student(batch.images).logits, self.temperature)
