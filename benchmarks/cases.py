"""What the speed measurements run on: the three methods with a generator, each with a small and a large pair."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

import dfkd
from dfkd.data.readers import STATISTICS
from dfkd.engine.core import Method, Task
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.prepare import build_task

__all__ = ["CASES", "Case"]

SHAPE = (3, 32, 32)  # CIFAR
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A pair at CIFAR shapes.

    Attributes:
        method: with the paper's settings, but for the batch size and the number of generator steps measured.
        teacher, student: names of the zoo; weights are random, which changes no time.
        batch: images in every generator step and every student step.
    """

    method: Method[Any]
    teacher: str
    student: str
    batch: int

    @property
    def plan(self) -> Plan:
        """The method's own optimiser, at this batch size, without warm-up."""
        return replace(type(self.method).default_plan, rounds=400, warmup=0, steps=4, batch_size=self.batch)

    def task(self, seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32") -> Task:
        """A fresh task of fresh networks. The teacher's BatchNorm layers hold what a batch of noise left there."""
        torch.manual_seed(seed)
        nets = [dfkd.build(name, classes=CLASSES, channels=SHAPE[0]).net for name in (self.teacher, self.student)]
        mean, std = STATISTICS["cifar10"]
        with torch.no_grad():
            nets[0].train()(torch.randn(32, *SHAPE))
        return build_task(
            nets[0],
            nets[1],
            image_size=SHAPE,
            mean=mean,
            std=std,
            classes=dfkd.class_list("cifar10"),
            text="shipped",
            runtime=Runtime(device="cpu", seed=seed, precision=precision).launch(),
        )


SIZES = {"small": ("wrn16-1", "resnet8", 128), "large": ("wrn40-2", "wrn16-2", 64)}


def _cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for size, (teacher, student, batch) in SIZES.items():
        methods: dict[str, Method[Any]] = {
            "nayer": dfkd.NAYER(steps=STEPS, synthesis_batch=batch, batches=1, memory=20_000),
            "spaceship": dfkd.SpaceshipNet(steps=STEPS, synthesis_batch=batch, memory=512),
            "d3k": dfkd.D3K(steps=STEPS, synthesis_batch=batch, memory=20_000, widths=(128, 128), kernels=(3,)),
        }
        found |= {f"{name}-{size}": Case(method, teacher, student, batch) for name, method in methods.items()}
    return found


STEPS = 4  # generator steps per measurement: what a batch costs once is spread over 4 steps, not over 30 or 200
CASES = _cases()
