"""The recipe of a teacher. Plain values; this module does not import torch."""

import math
from dataclasses import dataclass
from typing import Literal

from dfkd.errors import UserError

__all__ = ["TeachPlan"]


@dataclass(frozen=True)
class TeachPlan:
    """How a teacher is trained; the defaults are those of published CIFAR teachers.

    Weight decay matters: with 1e-4 instead of 5e-4 the same networks end one to three points lower, and mixup-like
    augmentation makes teachers that distil badly.
    """

    epochs: int = 200  # passes over the training images
    batch_size: int = 128  # images per step
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1  # initial learning rate
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # by step; "step" divides at the milestones
    milestones: tuple[int, ...] = (100, 150)  # epochs, for schedule="step"
    gamma: float = 0.1  # factor at every milestone
    pad: int | None = None  # random crop after padding by so many pixels; None: an eighth of the image side
    flip: bool = True  # random mirror; wrong for digits and letters

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("pad", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"teach needs {name} to be at least {least}, got {value}; raise it")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"teach needs {name} to be a finite number of at least 0, got {value}; change it")

    def rate(self, done: float) -> float:
        """The learning rate after ``done`` epochs (a fraction counts: the cosine changes with every step)."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done / self.epochs)) / 2
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)
        return self.lr
