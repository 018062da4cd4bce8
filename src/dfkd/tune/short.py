"""Methods and plans made short and small, for trials that take a minute."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dfkd.engine.core import Method
from dfkd.engine.plan import Plan

__all__ = ["shrunk_method", "trial_plan"]

# A trial's synthesis, where the method has such a setting and its own is larger.
SIZES: Mapping[str, int] = {
    "steps": 30,
    "synthesis_batch": 64,
    "batches": 1,
    "warmup_batches": 2,
    "memory": 4096,
    "channels": 16,
    "width": 256,
}
BANKS: Mapping[str, int] = {"bank": 1024, "negatives": 256, "block": 128}
STEPS, BATCH, WARMUP = 20, 64, 2  # of a trial's plan: student steps a round, images a step, warm-up rounds at most


def shrunk_method(method: Method[Any], side: int) -> Method[Any]:
    """``method`` with the sizes of a trial, for images of this side: they are shifted by an eighth of it at most."""
    values = {item.name: getattr(method, item.name) for item in fields(method)}  # type: ignore[arg-type]
    less = {
        name: most
        for name, most in {**SIZES, **BANKS, "pad": side // 8}.items()
        if name in values and not isinstance(values[name], bool) and (values[name] is None or values[name] > most)
    }
    return replace(method, **less)  # type: ignore[type-var]


def trial_plan(budget: Plan, rounds: int) -> Plan:
    """A method's plan made short; how often generator and student alternate stays."""
    each = budget.steps_in_turn
    turns = max(1, min(budget.turns, STEPS // each)) if budget.turns > 1 else 1
    return replace(
        budget,
        rounds=rounds,
        warmup=min(budget.warmup, WARMUP),
        steps=turns * each if budget.turns > 1 else min(budget.steps, STEPS),
        turns=turns,
        batch_size=min(budget.batch_size, BATCH),
        schedule="constant" if budget.schedule == "constant" else "cosine",
        milestones=(),
    )
