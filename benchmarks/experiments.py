"""What is measured: experiments, each a list of rows (teacher, student, method, plan) on one data set.

A row is run once per seed by ``python -m benchmarks.run EXPERIMENT`` and leaves one record per seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dfkd
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.methods import NAYER, NoiseInput, VanillaKD


@dataclass(frozen=True)
class Data:
    """A data set: sources of its two splits, its image shape, and how its teacher is taught."""

    name: str
    source: str
    shape: tuple[int, int, int]
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    pad: int = 4
    flip: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    teacher: str
    student: str
    method: Method[Any]
    plan: Plan
    paper: str = ""  # the paper's figure, on its own data, teacher and budget
    inputs: Mapping[str, Any] = field(default_factory=dict)  # more arguments of dfkd.distill


DIGITS = Data("digits", "digits", (1, 8, 8), epochs=60, pad=1)
MNIST = Data("mnist", "mnist", (1, 28, 28), epochs=8, pad=2)

DIGITS_NAYER = NAYER(
    steps=20, synthesis_batch=200, batches=1, warmup_batches=2, width=256, channels=32, alpha_bn=1.0, pad=1, flip=False
)
DIGITS_PLAN = Plan(rounds=16, warmup=2, steps=50, batch_size=128, lr=0.1)

MNIST_NAYER = NAYER(
    steps=20, synthesis_batch=200, batches=2, warmup_batches=4, width=256, channels=32, alpha_bn=1.0, pad=2, flip=False
)
MNIST_PLAN = Plan(rounds=30, warmup=2, steps=60, batch_size=128, lr=0.1)


def _nayer_mechanism() -> list[Row]:
    """The paper's Table 4 on digits: what the noisy layer is for."""
    variants: list[tuple[str, dict[str, Any], str]] = [
        ("full (K-to-1)", {}, "93.48"),
        ("1-to-1", {"group": "one"}, "93.42"),
        ("no re-initialisation", {"redraw": False}, "14.82"),
        ("LTE only", {"code": "lte"}, "13.52"),
        ("one-hot", {"code": "onehot"}, "12.35"),
        ("noise z", {"code": "z"}, "90.14"),
        ("without BN in the noisy layer", {"norm": False}, "91.15"),
        ("LTE + noise, beta 0.1", {"code": "sum", "beta": 0.1}, "18.92"),
        ("LTE + noise, beta 1", {"code": "sum", "beta": 1.0}, "90.15"),
        ("LTE, noise concatenated", {"code": "concat"}, "13.29"),
    ]
    return [
        Row(label, "wrn16-2", "wrn16-1", replace(DIGITS_NAYER, **change), DIGITS_PLAN, paper)
        for label, change, paper in variants
    ]


def _digits() -> list[Row]:
    return [
        Row("NAYER", "wrn16-2", "wrn16-1", DIGITS_NAYER, DIGITS_PLAN),
        Row("noise input", "wrn16-2", "wrn16-1", NoiseInput(), DIGITS_PLAN),
        Row(
            "vanilla KD (real data)",
            "wrn16-2",
            "wrn16-1",
            VanillaKD(pad=1, flip=False),
            DIGITS_PLAN,
            "",
            {"real": "digits"},
        ),
    ]


def _mnist_nayer() -> list[Row]:
    return [Row("NAYER", "wrn16-1", "resnet8", MNIST_NAYER, MNIST_PLAN)]


EXPERIMENTS: Mapping[str, tuple[Data, Callable[[], list[Row]]]] = {
    "digits": (DIGITS, _digits),
    "digits-nayer-mechanism": (DIGITS, _nayer_mechanism),
    "mnist-nayer": (MNIST, _mnist_nayer),
}


def statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a data set."""
    return dfkd.STATISTICS[data.name]
