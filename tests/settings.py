"""One row per method: the smallest settings that exercise everything it does. The contract suite runs every row.

A new method adds one row to ``SETTINGS`` and its page to ``tests/pages``. Rows stand alone: what a method needs beyond
a pair of networks (unlabelled or real images) is part of its row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.engine.core import Method, Task
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.methods.cmi import CMI
from dfkd.methods.d3k import D3K
from dfkd.methods.dafl import DAFL
from dfkd.methods.dfnd import DFND
from dfkd.methods.kd3 import KD3
from dfkd.methods.nayer import NAYER
from dfkd.methods.noise import NoiseInput
from dfkd.methods.spaceship import SpaceshipNet
from dfkd.methods.stts import STTS
from dfkd.methods.vanilla import VanillaKD
from dfkd.nets.zoo import build
from dfkd.prepare import build_task

__all__ = ["SETTINGS", "Setting", "mostly_slow", "tiny_plan", "tiny_task"]


def mostly_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """All names as cases of a test; those that are not ``quick`` belong to the slow suite."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


def tiny_plan(rounds: int = 3, warmup: int = 0, **changes: Any) -> Plan:
    """Three rounds of two student steps on batches of 12."""
    settings: dict[str, Any] = {"steps": 2, "batch_size": 12, "lr": 0.05, "weight_decay": 1e-3, **changes}
    return Plan(rounds=rounds, warmup=warmup, **settings)


@dataclass(frozen=True)
class Setting:
    """How the contract suite runs one method.

    Attributes:
        method: the instance under test, with the smallest sensible sizes.
        plan: at least three rounds, so that a run can stop after one and after two.
        page: the module of ``tests/pages`` that says the same in plain loops.
        teacher, student: names of the zoo. The default pair has equal heads (64) and equal stage sizes (8, 4, 2).
        image_shape: (c, h, w).
        classes: of both networks.
        web: unlabelled images the task offers; 0 for none.
        real: labelled real images the task offers; 0 for none.
    """

    method: Method[Any]
    plan: Plan
    page: str
    teacher: str = "wrn10-1"
    student: str = "resnet8"
    image_shape: tuple[int, int, int] = (1, 8, 8)
    classes: int = 4
    web: int = 0
    real: int = 0


SETTINGS: dict[str, Setting] = {
    "CMI": Setting(
        CMI(
            steps=3,
            synthesis_batch=10,
            batches=2,
            bank=25,  # both rings wrap around
            negatives=15,
            head_width=6,
            width=8,
            channels=4,
            pad=1,
            memory=48,
        ),
        tiny_plan(rounds=3, warmup=1),
        page="cmi",
    ),
    "D3K": Setting(
        D3K(steps=3, synthesis_batch=10, batches=2, widths=(3, 7), width=8, pad=1, hash_pool=2, memory=48),
        tiny_plan(rounds=3, warmup=1),
        page="d3k",
    ),
    "DAFL": Setting(DAFL(width=8, channels=4), tiny_plan(steps=4, turns=2), page="dafl"),
    "DFND": Setting(DFND(selected=20, pad=1, block=16, lr=0.05), tiny_plan(), page="dfnd", web=60),
    "KD3": Setting(
        KD3(v_th=0.25, select_every=2, pool_share=0.8, head_width=6, pad=1, block=16),
        tiny_plan(),
        page="kd3",
        web=60,
    ),
    "NAYER": Setting(
        NAYER(
            steps=2,
            synthesis_batch=10,
            batches=2,
            warmup_batches=1,
            width=12,
            channels=4,
            pad=1,
            renew=2,
            memory=32,  # smaller than what is made: the ring wraps around
        ),
        tiny_plan(rounds=3, warmup=1),
        page="nayer",
    ),
    "NoiseInput": Setting(NoiseInput(), tiny_plan(), page="noise"),
    "SpaceshipNet": Setting(
        SpaceshipNet(steps=3, synthesis_batch=10, width=8, channels=4, p=0.6, pad=1, memory=32),
        tiny_plan(rounds=4, warmup=1),
        page="spaceship",
    ),
    "STTS": Setting(
        STTS(steps=3, synthesis_batch=10, batches=2, lr=0.05, pad=2, init_std=0.5),
        tiny_plan(warmup=2),
        page="stts",
        teacher="lenet5",
        student="lenet5-half",
        image_shape=(1, 32, 32),
    ),
    "VanillaKD": Setting(VanillaKD(pad=1), tiny_plan(), page="vanilla", real=40),
}


def tiny_task(
    setting: Setting, seed: int = 0, *, compile: bool = False, precision: str = "fp32", runtime: Runtime | None = None
) -> Task:
    """A fresh task for a row; networks and data depend on the row alone, the random streams on ``seed``.

    The teacher's BatchNorm layers hold statistics that no batch of noise has, so that every statistics loss is busy.
    """
    stream = torch.Generator().manual_seed(1234)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        teacher = build(setting.teacher, setting.classes, setting.image_shape[0]).net
        student = build(setting.student, setting.classes, setting.image_shape[0]).net
    with torch.no_grad():
        for name, buffer in teacher.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=stream)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=stream)
    if runtime is None:
        runtime = Runtime(device="cpu", seed=seed, compile=compile, precision=precision, backend="eager")
    channels, k = setting.image_shape[0], setting.classes
    return build_task(
        teacher,
        student,
        image_size=setting.image_shape,
        mean=[0.4] * channels,
        std=[0.3] * channels,
        classes=k,
        text=torch.randn(k, 7, generator=stream),
        web=_pictures(setting.web, setting.image_shape, stream) if setting.web else None,
        real=_labelled(setting, stream) if setting.real else None,
        runtime=runtime.launch(),
    )


def _pictures(n: int, image_shape: tuple[int, int, int], stream: torch.Generator) -> Tensor:
    return torch.randint(256, (n, *image_shape), dtype=torch.uint8, generator=stream)


def _labelled(setting: Setting, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(setting.real) % setting.classes
    return _pictures(setting.real, setting.image_shape, stream), labels
