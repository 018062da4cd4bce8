"""All packaged recipes, one row each: who is distilled into whom, and what differs from the method's defaults.

The defaults of a method are its published CIFAR-10 setting and budget, so most rows are short.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PAIRS", "ROWS", "Plain", "Row"]

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One recipe.

    Attributes:
        method: a name of ``METHODS``.
        data: a preset of the command line.
        teacher, student: names of networks.
        settings, plan: what differs from the method's defaults.
        paper: the paper's accuracy in percent, or None where it has no such row.
        note: what else to know.
        inputs: further settings of the section ``data``.
        text: settings of the section ``text``.
        variant: what differs from the recipe of the same name without it, or "".
    """

    method: str
    data: str
    teacher: str
    student: str
    settings: Plain = field(default_factory=dict)
    plan: Plain = field(default_factory=dict)
    paper: float | None = None
    note: str = ""
    inputs: Plain = field(default_factory=dict)
    text: Plain = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        """<method>/<data>-<teacher>-<student>, and +<variant> where there is one."""
        short = (net.replace("torchvision:", "") for net in (self.teacher, self.student))
        pair = "-".join([f"{self.method.lower()}/{self.data}", *short])
        return f"{pair}+{self.variant}" if self.variant else pair


# The pairs that the papers share.
PAIRS = (
    ("resnet34", "resnet18"),
    ("vgg11", "resnet18"),
    ("wrn40-2", "wrn16-1"),
    ("wrn40-2", "wrn40-1"),
    ("wrn40-2", "wrn16-2"),
)

_SMALL: Plain = {"synthesis_batch": 200, "width": 256, "channels": 32, "alpha_bn": 1.0, "flip": False}
_DIGITS_NAYER: Plain = {**_SMALL, "steps": 20, "batches": 1, "warmup_batches": 2, "pad": 1}
_COSINE: Plain = {"batch_size": 128, "lr": 0.1, "schedule": "cosine", "lr_min": 0.0, "milestones": []}
_DIGITS_PLAN: Plain = {"rounds": 16, "warmup": 2, "steps": 50, **_COSINE}
_MNIST_PLAN: Plain = {"rounds": 30, "warmup": 2, "steps": 60, **_COSINE}
_MNIST: Plain = {"image_size": [1, 28, 28]}


def _pairs(method: str, data: str, papers: tuple[float, ...], settings: Plain | None = None) -> Iterator[Row]:
    for (teacher, student), paper in zip(PAIRS, papers, strict=True):
        yield Row(method, data, teacher, student, settings or {}, {}, paper)


def _nayer() -> Iterator[Row]:
    """Published: best epoch on the test images, E = 300."""
    yield Row("NAYER", "digits", "wrn16-2", "wrn16-1", _DIGITS_NAYER, _DIGITS_PLAN, note="the demo")
    small = {**_SMALL, "steps": 20, "batches": 2, "warmup_batches": 4, "pad": 2}
    yield Row("NAYER", "mnist", "wrn16-1", "resnet8", small, _MNIST_PLAN, note="minutes on a CPU", inputs=_MNIST)
    yield from _pairs("NAYER", "cifar10", (95.21, 92.37, 91.94, 94.15, 94.07))
    yield from _pairs("NAYER", "cifar100", (77.54, 71.75, 62.23, 71.80, 71.72), {"steps": 40})
    tiny = {"steps": 60, "batches": 4, "synthesis_batch": 200, "warmup_batches": 20}
    plan = {"steps": 1000, "batch_size": 256, "lr": 0.1}
    yield Row("NAYER", "tiny-imagenet", "resnet34", "resnet18", tiny, plan, 64.17)
    note = "no settings were released for ImageNet: these are a starting point"
    large = {"steps": 50, "synthesis_batch": 100, "temperature": 5.0}
    plan = {"batch_size": 100, "lr": 0.1}
    yield Row("NAYER", "imagenet", "torchvision:resnet50", "torchvision:resnet50", large, plan, 68.92, note)


def _spaceship() -> Iterator[Row]:
    """Published: R34 to R18 has released settings, the others only final numbers."""
    yield Row(
        "SpaceshipNet",
        "digits",
        "wrn16-2",
        "wrn16-1",
        {"steps": 60, "synthesis_batch": 200, "width": 64, "channels": 32, "pad": 1, "flip": False},
        {"rounds": 16, "steps": 50, "batch_size": 128},
    )
    yield from _pairs("SpaceshipNet", "cifar10", (95.39, 92.27, 90.38, 93.56, 93.25))
    yield from _pairs("SpaceshipNet", "cifar100", (77.41, 71.41, 58.06, 68.78, 69.95))
    yield Row("SpaceshipNet", "tiny-imagenet", "resnet34", "resnet18", {}, {"rounds": 400}, 64.04)


def _d3k() -> Iterator[Row]:
    """Published: mean of six runs."""
    note = "the paper leaves batch, steps and temperature open: these are those of CMI"
    yield Row(
        "D3K",
        "digits",
        "wrn16-2",
        "wrn16-1",
        {"steps": 60, "synthesis_batch": 200, "width": 64, "widths": [16, 64], "pad": 1, "flip": False, "hash_pool": 1},
        {"rounds": 16, "steps": 50, "batch_size": 128},
    )
    yield Row("D3K", "mnist", "resnet18", "resnet8", {"flip": False}, {}, 99.22, note)
    yield from _pairs("D3K", "cifar10", (95.07, 91.77, 90.90, 93.27, 93.50))
    yield from _pairs("D3K", "cifar100", (77.06, 71.05, 60.39, 69.95, 69.92))
    svhn = (("resnet34", "resnet18", 95.96), ("vgg11", "resnet18", 95.55))
    wide = (("wrn40-2", "wrn16-1", 96.44), ("wrn40-2", "wrn40-1", 96.78))
    for teacher, student, paper in (*svhn, *wide):
        yield Row("D3K", "svhn", teacher, student, {"flip": False}, {}, paper, inputs={"test": None})


def _kd3() -> Iterator[Row]:
    """Published: its Table 1 and the other pairs of Table 3. Needs web images: --data.web."""
    note = "give unlabelled images: --data.web"
    adam = {"rounds": 40, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"}
    lenet = {"pad": 0, "flip": False}
    yield Row("KD3", "mnist", "lenet5", "lenet5-half", lenet, adam, 98.76, note)
    both = (
        ("resnet34", "resnet18", 95.21, 78.44),
        ("vgg16", "vgg13", 94.13, 74.21),
        ("resnet32x4", "resnet8x4", 93.05, 73.17),
        ("resnet32x4", "mobilenetv2", 92.16, 69.40),
        ("resnet32x4", "shufflenetv1", 93.24, 72.15),
        ("resnet32x4", "shufflenetv2", 93.53, 73.14),
        ("resnet110x2", "resnet110", 94.59, 73.59),
        ("resnet110x2", "resnet116", 94.57, 73.75),
        ("resnet110x2", "shufflenetv1", 93.24, 72.15),
        ("resnet110x2", "shufflenetv2", 93.46, 72.93),
    )
    for teacher, student, ten, hundred in both:
        yield Row("KD3", "cifar10", teacher, student, {}, {}, ten, note)
        yield Row("KD3", "cifar100", teacher, student, {}, {}, hundred, note)
    for teacher, student, paper in (("resnet34", "resnet18", 66.24), ("vgg16", "vgg13", 61.98)):
        yield Row("KD3", "tiny-imagenet", teacher, student, {}, {}, paper, note)


def _yardsticks() -> Iterator[Row]:
    """STTS with its lower and upper bounds, which its Table 2 lists beside it."""
    lenet, alex = ("lenet5", "lenet5-half"), ("alexnet", "alexnet-half")
    adam = {
        "rounds": 2000,
        "steps": 78,
        "batch_size": 512,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
    }
    yield Row("STTS", "mnist", *lenet, {"sigma": 1.5, "lambda_a": 0.05}, {}, 99.08)
    yield Row("STTS", "cifar10", *alex, {}, {}, 73.91)
    yield Row("STTS", "cifar10", "resnet34", "resnet18", {"lambda_a": 0.1}, {}, 93.31, "the paper gives no sigma here")
    yield Row("NoiseInput", "digits", "wrn16-2", "wrn16-1", {}, _DIGITS_PLAN, note="the lower bound of the demo")
    yield Row("NoiseInput", "mnist", *lenet, {}, adam, 87.58)
    yield Row("NoiseInput", "cifar10", *alex, {}, adam, 36.49)
    yield Row("NoiseInput", "cifar10", "resnet34", "resnet18", {}, adam, 19.49)
    note = "not data-free: the upper bound; give --data.real"
    digits = {"pad": 1, "flip": False}
    yield Row("VanillaKD", "digits", "wrn16-2", "wrn16-1", digits, _DIGITS_PLAN, note=note, inputs={"real": "digits"})
    for (teacher, student), paper in zip(PAIRS, (77.87, 75.07, 64.06, 68.58, 70.79), strict=True):
        yield Row("VanillaKD", "cifar100", teacher, student, {}, {}, paper, note, {"real": "cifar100"})


ROWS: tuple[Row, ...] = (*_nayer(), *_spaceship(), *_d3k(), *_kd3(), *_yardsticks())
"""Every row; those whose method is not in ``METHODS`` are left out by ``dfkd.recipes.names``."""
