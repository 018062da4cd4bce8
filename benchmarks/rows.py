"""What experiments are made of: data sets, rows, and the settings that several of them share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dfkd
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.methods import CMI, DAFL


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
    precision: Literal["fp32", "bf16"] = "fp32"  # of the networks
    stages: tuple[str, ...] = ()  # of teacher and student, where not those of the zoo


DIGITS = Data("digits", "digits", (1, 8, 8), epochs=60, pad=1)
MNIST = Data("mnist", "mnist", (1, 28, 28), epochs=8, pad=2)
# LeNet-5 takes 32 pixels: zero-padded. A rate of 0.05 kills most filters of its second convolution.
MNIST32 = Data("mnist", "mnist", (1, 32, 32), epochs=15, lr=0.01, pad=2)
MNIST32_BN = replace(MNIST32, epochs=4, lr=0.1)
MNIST_PLAIN = replace(MNIST, lr=0.02)  # a network without BatchNorm loses filters to higher rates
CIFAR10 = Data("cifar10", "cifar10", (3, 32, 32), epochs=14, flip=True)
WEB = {"web": ".data/web32.npy"}  # 50,000 unlabelled natural images; grey where the task is
CIFAR10_16 = Data("cifar10", "cifar10", (3, 16, 16), epochs=14, pad=2, flip=True)
HALF_JUNK = {"web": ".data/halfjunk32.npy"}  # every second image shows nothing: drawn by `benchmarks.junk`
STROKES = {"web": ".data/strokes32.npy"}  # their edges, by `python -m benchmarks.strokes`: closer to handwriting

# Generators and heads of a size for a CPU.
SMALL_CMI = CMI(steps=60, lr=5e-3, alpha_bn=0.1, head_width=64, width=64, channels=32)
SMALL_DAFL = DAFL(alpha_cls=1.0, alpha_act=0.1, alpha_ie=5.0, lr=5e-3, width=100, channels=32)

# Aligned features give small gradients: KD3's short runs learn with Adam.
KD3_STUDENT: dict[str, Any] = {"optimizer": "adam", "lr": 3e-3, "weight_decay": 0.0}
STTS_STUDENT: dict[str, Any] = {"optimizer": "adam", "lr": 5e-3, "weight_decay": 0.0}  # its loss is without τ²


def half(rows: Iterable[Row]) -> list[Row]:
    """The same rows with networks in bfloat16."""
    return [replace(row, precision="bf16") for row in rows]


def statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a data set."""
    return dfkd.STATISTICS[data.name]
