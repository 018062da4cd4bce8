"""How long, how many student steps, which optimiser and schedule. Plain values; this module does not import torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from dfkd.engine.limits import Count, NotNegative, Whole, check
from dfkd.errors import UserError

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The budget of a run and the student's optimiser.

    Attributes:
        rounds: rounds with student steps (the papers' epochs, E).
        warmup: rounds before them that only synthesise.
        steps: student steps per round.
        turns: syntheses per round, with ``steps / turns`` student steps after each: as many as ``steps`` where
            generator and student alternate step by step.
        batch_size: images per student step and per process.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: initial learning rate.
        momentum, nesterov: of SGD.
        weight_decay: of the student's optimiser.
        schedule: ``"cosine"`` over ``rounds``, ``"step"`` at ``milestones``, or ``"constant"``; changes once a round.
        lr_min: end of the cosine.
        milestones: rounds (warm-up not counted) at which the rate is multiplied by ``gamma``.
        gamma: factor of the rate at every milestone of ``schedule="step"``.
        clip: largest norm of the gradient, or None.
    """

    rounds: Count = 200
    warmup: Whole = 0
    steps: Count = 400
    batch_size: Count = 256
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: NotNegative = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    lr_min: NotNegative = 0.0
    milestones: tuple[int, ...] = ()
    gamma: NotNegative = 0.1
    clip: float | None = None
    turns: Count = 1

    def __post_init__(self) -> None:
        for item in fields(self):  # numbers of NumPy and torch: a checkpoint would not give them back
            value = getattr(self, item.name)
            if getattr(value, "ndim", None) == 0:
                object.__setattr__(self, item.name, value.item())
        check(self, "plan")
        if self.steps % self.turns:
            raise UserError(
                f"plan needs steps to be a multiple of turns={self.turns}, got {self.steps!r}; change steps or turns"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"plan needs clip to be above 0, got {self.clip!r}; leave it out for no limit")
        if not 0 <= self.momentum < 1 or (self.nesterov and self.momentum == 0):
            least = "above 0 with nesterov" if self.nesterov else "at least 0"
            raise UserError(f"plan needs momentum to be {least} and below 1, got {self.momentum!r}; change momentum")
        if not isinstance(self.milestones, tuple | list) or not all(isinstance(m, int) for m in self.milestones):
            raise UserError(f"plan needs milestones to be whole numbers, got {self.milestones!r}; change milestones")

    @property
    def total(self) -> int:
        """All rounds, warm-up included."""
        return self.warmup + self.rounds

    @property
    def steps_in_turn(self) -> int:
        """Student steps between two syntheses."""
        return self.steps // self.turns

    def steps_in(self, round: int) -> int:
        """Student steps in this round (counted from 0, warm-up included)."""
        return 0 if round < self.warmup else self.steps

    def rate(self, round: int) -> float:
        """The learning rate of this round (counted from 0, warm-up included)."""
        e = max(round - self.warmup, 0)
        if self.schedule == "cosine":
            return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * e / self.rounds)) / 2
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(e >= milestone for milestone in self.milestones)
        return self.lr
