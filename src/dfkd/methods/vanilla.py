"""Vanilla knowledge distillation on the real training images: the upper bound, not data-free.

Geoffrey Hinton, Oriol Vinyals, Jeff Dean. Distilling the Knowledge in a Neural Network. 2015. In the form of the CMI
family's harness: ``L = α τ² KL(σ_τ(T) ‖ σ_τ(S)) + β CE(S, y)``, crop and flip, SGD.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task
from dfkd.engine.limits import Positive, Whole
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images
from dfkd.types import Batch, Scalar

__all__ = ["VanillaKD", "VanillaState"]


@dataclass
class VanillaState(State):
    """Nothing is remembered: the images belong to the task."""


@final
@dataclass(frozen=True)
class VanillaKD(Method[VanillaState]):
    """Hyper-parameters of the yardstick with data; the paper's symbol follows each."""

    alpha: float = 1.0  # α, weight of the KL term
    beta: float = 0.1  # β, weight of the labels
    temperature: Positive = 20.0  # τ
    pad: Whole = 4  # random crop
    flip: bool = True  # random mirror

    default_plan: ClassVar[Plan] = Plan(
        rounds=200, steps=391, batch_size=128, lr=0.1, weight_decay=1e-4, schedule="step", milestones=(120, 150, 180)
    )

    def needs(self) -> frozenset[Need]:
        """Real training images."""
        return frozenset({Need.REAL})

    def setup(self, task: Task, plan: Plan) -> VanillaState:
        """Nothing to build."""
        return VanillaState()

    def synthesize(self, task: Task, state: VanillaState, clock: Clock) -> Metrics:
        """Nothing is made."""
        return {}

    def batch(self, task: Task, state: VanillaState, clock: Clock) -> Batch:
        """Real images, drawn uniformly with replacement and augmented, with their labels."""
        if task.real is None:
            raise RuntimeError("vanilla distillation needs real images; the driver checks that before setup")
        (images, labels), rng = task.real, task.runtime.generator
        rows = torch.randint(len(images), (clock.plan.batch_size,), device=task.runtime.device, generator=rng)
        return Batch(as_images(crop_flip(images[rows], rng, self.pad, self.flip)), labels[rows], rows)

    def loss(self, task: Task, state: VanillaState, batch: Batch) -> Scalar:
        """``α τ² KL + β CE``."""
        if batch.labels is None:
            raise RuntimeError("vanilla distillation needs labels in its batches")
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        s = task.student(batch.images).logits
        return self.alpha * knowledge_distillation(t, s, self.temperature) + self.beta * cross_entropy(s, batch.labels)
