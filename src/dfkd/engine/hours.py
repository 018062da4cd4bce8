"""A plan for the time there is: as many of its rounds as fit, by what the first ones took.

Rounds are left out, and warm-up and milestones move with them; a round stays what it is. Fewer student steps in each
round would leave the synthesis as long as it was, and would be another method: what a student learns from one batch of
images before the next is made is the method's. The learning rate goes by the rounds of the plan that is decided on, so
a cosine comes to its end (``docs/stopping.md`` says what that is worth).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfkd.engine.core import Method, Task
from dfkd.engine.driver import Watch
from dfkd.engine.estimate import Estimate, estimator
from dfkd.engine.plan import Plan
from dfkd.errors import UserError

__all__ = ["Fit", "fit_plan", "most_rounds", "shorten"]

RESERVE = 0.1
"""Share of the time for what is not in an estimate: held-out images and the agreement on them, figures, export."""


@dataclass(frozen=True)
class Fit:
    """A plan that fits ``hours``, what it will take, and the plan it was made from."""

    plan: Plan
    estimate: Estimate
    hours: float
    asked: Plan


def fit_plan(task: Task, method: Method[Any], plan: Plan, watch: Watch, hours: float, out: Path | None = None) -> Fit:
    """Measure the first rounds, and shorten ``plan`` until it fits what is left of ``hours``; it is never lengthened.

    Every process gets the plan of process 0. The student and the random streams are put back.

    Args:
        task, method, plan, watch, out: as :func:`~dfkd.engine.estimate.estimate` takes them.
        hours: for the measurement, the run, and what comes after its last round.

    Raises:
        UserError: not even one round fits; and whatever the run itself would refuse.
    """
    began = time.monotonic()
    estimate_of = estimator(task, method, plan, watch, out)
    seconds = (1 - RESERVE) * 3600 * hours - (time.monotonic() - began)
    rounds = most_rounds(plan, seconds, lambda shorter: estimate_of(shorter).total)
    if task.runtime.world > 1:  # every process measured for itself
        own_rounds = float(rounds) if task.runtime.rank == 0 else 0.0
        rounds = int(task.runtime.total(torch.tensor(own_rounds, dtype=torch.float64, device=task.runtime.device)))
    if rounds == 0:
        least = estimate_of(shorten(plan, 1)).total
        raise UserError(
            f"stop.hours needs time for at least one round, got {hours:g}, of which {max(seconds, 0) / 3600:.2g} are "
            f"left for rounds and the shortest plan takes about {least / 3600:.2g}; raise it, or lower plan.steps"
        )
    fitted = shorten(plan, rounds)
    return Fit(fitted, estimate_of(fitted), hours, plan)


def most_rounds(plan: Plan, seconds: float, total: Callable[[Plan], float]) -> int:
    """The most rounds, up to those of ``plan``, whose plan takes at most ``seconds``; 0: not even one.

    ``total`` says what a plan takes, and grows with its rounds.
    """
    fits, over = 0, plan.rounds + 1
    while over - fits > 1:
        middle = plan.rounds if over > plan.rounds else (fits + over) // 2
        fits, over = (middle, over) if total(shorten(plan, middle)) <= seconds else (fits, middle)
    return fits


def shorten(plan: Plan, rounds: int) -> Plan:
    """``plan`` with ``rounds`` rounds, and as large a share of its warm-up; milestones keep their place in the whole.

    A warm-up keeps one round at least, and no milestone moves before the second round.
    """
    if rounds == plan.rounds:
        return plan
    milestones = tuple(max(min(1, at), round(at * rounds / plan.rounds)) for at in plan.milestones)
    warmup = max(1, plan.warmup * rounds // plan.rounds) if plan.warmup else 0
    return replace(plan, rounds=rounds, warmup=warmup, milestones=milestones)
