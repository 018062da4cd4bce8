"""Noise input: the lower bound. The student imitates the teacher on pure noise, drawn anew for every step.

Used as a yardstick by STTS's paper (Table 2, "noise input"): x ~ N(0, 1) per pixel in normalised space, no
optimisation, and the student's loss of the method it is compared with: here τ² KL, as of NAYER and D3K. The paper's
students are trained on augmented images; noise augmented as STTS's set is no longer quite noise, and teaches more.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch

from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task
from dfkd.engine.limits import NotNegative, Positive, Whole
from dfkd.engine.plan import Plan
from dfkd.errors import UserError
from dfkd.losses.divergence import knowledge_distillation
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.augment import crop_flip
from dfkd.types import Batch, Images, Scalar

__all__ = ["NoiseInput", "NoiseState"]


@dataclass
class NoiseState(State):
    """Nothing is remembered."""


@final
@dataclass(frozen=True)
class NoiseInput(Method[NoiseState]):
    """Hyper-parameters of the noise yardstick."""

    # The yardstick's
    kind: Literal["normal", "uniform"] = "normal"  # N(0, 1) in normalised space, or U(0, 1) in pixel space
    clip: bool = True  # keep normal noise inside [0, 1], as every image is
    temperature: Positive = 20.0  # τ
    # As STTS augments its transfer set
    degrees: NotNegative = 0.0  # augmentation: largest rotation (STTS: 15)
    scale: NotNegative = 0.0  # augmentation: size between 1 - scale and 1 + scale (STTS: 0.1)
    shift: NotNegative = 0.0  # augmentation: largest translation, as a share of the side (STTS: 0.1)
    crop: Whole = 0  # augmentation: random crop, from a frame of so many pixels (STTS: pad 4)
    noise: NotNegative = 0.0  # augmentation: standard deviation of additive noise (STTS: 0.05)

    default_plan: ClassVar[Plan] = Plan(rounds=200, steps=400, batch_size=256, lr=0.1, weight_decay=1e-4)

    def check_values(self) -> None:
        """The zoom is below 1."""
        if self.scale >= 1:
            raise UserError(f"NoiseInput needs a scale below 1, got {self.scale}; lower it")

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
        """Fresh noise, augmented where that is asked for."""
        size, rng = (clock.plan.batch_size, *task.image_shape), task.runtime.generator
        if self.kind == "uniform":
            return Batch(self.augment(torch.rand(size, generator=rng, device=task.runtime.device), rng))
        images = task.teacher.denormalise(torch.randn(size, generator=rng, device=task.runtime.device))
        return Batch(self.augment(images.clamp(0, 1) if self.clip else images, rng))

    def augment(self, x: Images, rng: torch.Generator) -> Images:
        """Turned, scaled, shifted, cropped and made noisy, each image by its own draw; as STTS augments its set."""
        if self.degrees or self.scale or self.shift:
            x = affine(x, draw_affine(len(x), rng, self.degrees, self.scale, self.shift))
        if self.crop:
            x = crop_flip(x, rng, self.crop, flip=False)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=rng, device=x.device)
            x = x.clamp(0, 1) if self.clip else x
        return x

    def loss(self, task: Task, state: NoiseState, batch: Batch) -> Scalar:
        """``τ² KL(T ‖ S)``."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        return knowledge_distillation(t, task.student(batch.images).logits, self.temperature)
