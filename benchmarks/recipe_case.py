"""A packaged recipe, or one of your own, as a case that can be measured anywhere: no data, no trained weights.

Networks, batch sizes and image shape are the recipe's; weights are random, and so are web images, real images and text
embeddings, which changes no time. A round is one synthetic batch of a few steps and a few student steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dfkd.cli.config import Distill
from dfkd.cli.job import Job, prepare_job
from dfkd.cli.parse import flags
from dfkd.cli.setup import resolve, with_recipe
from dfkd.engine.core import Method, Need, Task
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.methods.stts import STTS
from dfkd.prepare import build_task

__all__ = ["RecipeCase", "recipe_case"]

TEXT = 384  # length of the shipped embeddings


@dataclass(frozen=True)
class RecipeCase:
    """What is measured.

    Attributes:
        job: the recipe's networks and facts.
        method: the recipe's, with one batch a round and as many steps for it as are measured.
        plan: the recipe's optimiser and batch size, with as many student steps a round.
    """

    job: Job
    method: Method[Any]
    plan: Plan

    @property
    def teacher(self) -> str:
        """Its name."""
        return self.job.teacher.name

    @property
    def student(self) -> str:
        """Its name."""
        return self.job.student.name

    @property
    def batch(self) -> int:
        """Images in a student step."""
        return self.plan.batch_size

    def task(self) -> Task:
        """The pair on the CPU. The teacher's BatchNorm layers hold what a batch of noise left there."""
        job, needs, n = self.job, self.method.needs(), 4 * self.plan.batch_size
        machine = job.settings.runtime
        with torch.no_grad():
            job.teacher.classifier.net.train()(torch.randn(8, *job.facts.image_size))
        noise = torch.randint(256, (n, *job.facts.image_size), dtype=torch.uint8)
        return build_task(
            job.teacher.classifier,
            job.student.classifier,
            data=replace(
                job.data,
                web=noise if Need.WEB in needs else None,
                real=(noise, torch.arange(n) % job.facts.classes) if Need.REAL in needs else None,
            ),
            text=torch.randn(job.facts.classes, TEXT) if Need.TEXT in needs else "index",
            runtime=Runtime(
                device="cpu", precision=machine.precision, channels_last=machine.channels_last, seed=machine.seed
            ).launch(),
        )


def recipe_case(recipe: str, changes: Sequence[str], steps: int) -> RecipeCase:
    """A case from the name (or the file) of a recipe.

    Args:
        recipe: as ``dfkd distill`` takes it.
        changes: settings put over it, as ``section.name=value``.
        steps: of the generator (or of the pixels) for its one batch, and of the student.

    Raises:
        UserError: no such recipe, or a setting that does not fit.
    """
    tree = flags([recipe, *(f"--{change}" for change in changes)], Distill, "recipe", ("method",))
    job = prepare_job(*resolve(Distill, with_recipe(tree)), trained=False)
    method: Any = job.method
    named = vars(method)
    fewer: dict[str, Any] = {name: n for name, n in (("steps", steps), ("batches", 1)) if name in named}
    if "memory" in named:  # no more than is looked at: a whole run's features would not fit
        fewer["memory"] = 2 * named["synthesis_batch"]
    warmup = 2 if isinstance(job.method, STTS) else 0  # STTS makes its images there, the others do less then
    turns = steps if job.plan.turns > 1 else 1  # one generator step a turn
    plan = replace(job.plan, rounds=400, warmup=warmup, steps=steps, turns=turns)
    return RecipeCase(job, replace(method, **fewer), plan)
