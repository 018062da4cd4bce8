"""All packaged recipes, one row each: who is distilled into whom, and what differs from the method's defaults.

The defaults of a method are its published CIFAR-10 setting and budget, so most rows are short.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
        stages: paths of the stages in teacher and student, where the search should not decide.
        variant: what differs from the recipe of the same name without it, or "".
        part: stands for the preset in the name, where only some of its classes are taken, or smaller images.
        bits: such as "W4A4": the teacher is quantized to so many, and is its own student; "" where it is distilled.
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
    stages: tuple[str, ...] = ()
    variant: str = ""
    part: str = ""
    bits: str = ""

    @property
    def name(self) -> str:
        """<method>/<data>-<teacher>-<student or bits>, and +<variant> where there is one."""
        last = self.bits.lower() or self.student
        short = (net.replace("torchvision:", "") for net in (self.teacher, last))
        pair = "-".join([f"{self.method.lower()}/{self.part or self.data}", *short])
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


def _pairs(
    method: str, data: str, papers: tuple[float, ...], settings: Plain | None = None, note: str = ""
) -> Iterator[Row]:
    for (teacher, student), paper in zip(PAIRS, papers, strict=True):
        yield Row(method, data, teacher, student, settings or {}, {}, paper, note)


def _nayer() -> Iterator[Row]:
    """Published: best epoch on the test images, E = 300."""
    yield Row("NAYER", "digits", "wrn16-2", "wrn16-1", _DIGITS_NAYER, _DIGITS_PLAN, note="the demo")
    small = {**_SMALL, "steps": 20, "batches": 2, "warmup_batches": 4, "pad": 2}
    yield Row("NAYER", "mnist", "wrn16-1", "resnet8", small, _MNIST_PLAN, note="minutes on a CPU", inputs=_MNIST)
    clip = "the figure is CLIP's; the shipped vectors are MiniLM's (+clip, +sbert)"
    yield from _pairs("NAYER", "cifar10", (95.21, 92.37, 91.94, 94.15, 94.07), note=clip)
    yield from _pairs("NAYER", "cifar100", (77.54, 71.75, 62.23, 71.80, 71.72), {"steps": 40}, clip)
    tiny = {"steps": 60, "batches": 4, "synthesis_batch": 200, "warmup_batches": 20}
    plan = {"steps": 1000, "batch_size": 256, "lr": 0.1}
    yield Row("NAYER", "tiny-imagenet", "resnet34", "resnet18", tiny, plan, 64.17)
    note = "no settings were released for ImageNet: these are a starting point"
    large = {"steps": 50, "synthesis_batch": 100, "temperature": 5.0, "augmentation": "imagenet", "labels": "permuted"}
    plan = {"batch_size": 100, "lr": 0.1}
    yield Row("NAYER", "imagenet", "torchvision:resnet50", "torchvision:resnet50", large, plan, 68.92, note)


def _quantization_rows() -> Iterator[Row]:
    """Published: NAYER's Table 3, E = 300. What it leaves open (quantizer, rates, loss) is ZAQ's and NAYER's own."""
    note = (
        "quantizer, rates and loss are not published: ZAQ's quantizer, NAYER's settings; the paper's networks in "
        "float32 are at 92.39, 93.49, 69.58, 77.38 %; ZAQ's VGG-19 has three linear layers, this one has one"
    )
    for data, net, bits, paper in (
        ("cifar10", "mobilenetv2-cifar", "W6A6", 92.23),
        ("cifar10", "vgg19", "W4A8", 93.15),
        ("cifar100", "resnet20", "W5A5", 68.23),
        ("cifar100", "resnet18", "W4A4", 73.32),
    ):
        settings = {"steps": 40} if data == "cifar100" else {}
        yield Row("NAYER", data, net, net, settings, {}, paper, note, bits=bits)
    plan = {"rounds": 6, "warmup": 2, "steps": 50, **_COSINE, "lr": 0.02}
    note = "minutes on a CPU"  # with a rate that leaves trained weights where they are
    for bits in ("W4A4", "W3A3", "W2A2"):
        yield Row("NAYER", "digits", "wrn16-2", "wrn16-2", _DIGITS_NAYER, plan, None, note, bits=bits)
    small = {**_SMALL, "steps": 10, "synthesis_batch": 100, "batches": 1, "warmup_batches": 2, "width": 64}
    small |= {"channels": 16, "pad": 2}
    short = {**plan, "rounds": 4, "steps": 40}
    yield Row("NAYER", "mnist", "resnet8", "resnet8", small, short, None, note, _MNIST, bits="W3A3")
    colour = Row("NAYER", "cifar10", "resnet20", "resnet20", {**small, "flip": True}, short, None, note, bits="W3A3")
    yield replace(colour, inputs={"image_size": [3, 16, 16]}, part="cifar10-16px")


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
    for row in (
        *_pairs("SpaceshipNet", "cifar10", (95.39, 92.27, 90.38, 93.56, 93.25)),
        *_pairs("SpaceshipNet", "cifar100", (77.41, 71.41, 58.06, 68.78, 69.95)),
    ):
        yield _r2(row)
    yield Row("SpaceshipNet", "tiny-imagenet", "resnet34", "resnet18", {}, {"rounds": 400}, 64.04)
    # A sample's features take 10 MB at 224 pixels, so the pool needs a limit.
    large = {"synthesis_batch": 64, "memory": 4096}
    nets, note = ("torchvision:resnet34", "torchvision:resnet18"), "no settings were released at 224 pixels"
    groups = ("layer1", "layer2", "layer3", "layer4")  # a search would add the stem's map
    start = f"{note}: these are a start"
    yield Row("SpaceshipNet", "imagenette", *nets, large, {"batch_size": 64}, 80.59, start, stages=groups)
    note = f"{note}, nor which 100 classes: give yours, --data.classes"
    hundred = Row(
        "SpaceshipNet", "imagenet", *nets, large, {"batch_size": 64}, 65.40, note, {"classes": 100}, stages=groups
    )
    yield replace(hundred, part="imagenet100")


def _r2(row: Row) -> Row:
    """The layers of the authors' "R2" networks: Grad-CAM before the last map, which serves CAM alone.

    For wide ResNets Grad-CAM is at what the three groups return, before any activation, and CAM after the last
    BatchNorm and ReLU; for VGG-11 and ResNet-18 at the first three stages, and CAM at the fourth. ResNet-34 to
    ResNet-18 has released settings, with Grad-CAM at all four.
    """
    if row.teacher.startswith("wrn"):
        return replace(row, settings={"gradcam_last": False}, stages=(*(f"stages.{i}" for i in range(3)), "relu"))
    return replace(row, settings={"gradcam_last": False}) if row.teacher.startswith("vgg") else row


def _d3k() -> Iterator[Row]:
    """Published: mean of six runs."""
    note = "the paper leaves batch, steps and temperature open: these are those of CMI"
    small = {"steps": 60, "synthesis_batch": 100, "pad": 1, "flip": False}
    yield Row(
        "D3K",
        "digits",
        "wrn16-2",
        "wrn16-1",
        {**small, "width": 64, "widths": [64, 256], "lr": 5e-3, "alpha": 0.1, "hash_pool": 1},
        {"rounds": 16, "steps": 50, "batch_size": 128},
    )
    yield Row("D3K", "mnist", "resnet18", "resnet8", {"flip": False}, {}, 99.22, note)
    yield from _pairs("D3K", "cifar10", (95.07, 91.77, 90.90, 93.27, 93.50), note=note)
    yield from _pairs("D3K", "cifar100", (77.06, 71.05, 60.39, 69.95, 69.92), note=note)
    svhn = (("resnet34", "resnet18", 95.96), ("vgg11", "resnet18", 95.55))
    wide = (("wrn40-2", "wrn16-1", 96.44), ("wrn40-2", "wrn40-1", 96.78))
    for teacher, student, paper in (*svhn, *wide):
        yield Row("D3K", "svhn", teacher, student, {"flip": False}, {}, paper, note, inputs={"test": None})


def _cmi() -> Iterator[Row]:
    """Published: best epoch on the test images. Settings were released for one pair, WRN-40-2 to WRN-16-1 on CIFAR-10.

    They begin with about 50,000 images made without a student ("pre-inverted"): here the warm-up. The authors' code
    contrasts the stages of a ResNet-34, and the inputs of every BatchNorm layer of other teachers.
    """
    small = {"steps": 60, "synthesis_batch": 100, "pad": 1, "flip": False, "width": 64, "channels": 32}
    bank = {"bank": 1600, "negatives": 400, "head_width": 64}
    plan = {"rounds": 16, "steps": 50, "batch_size": 128}
    yield Row("CMI", "digits", "wrn16-2", "wrn16-1", {**small, **bank, "lr": 5e-3, "alpha_bn": 0.1}, plan)
    papers = {"cifar10": (94.84, 91.13, 90.01, 92.78, 92.52), "cifar100": (77.04, 70.56, 57.91, 68.88, 68.75)}
    for data, accuracies in papers.items():
        for (teacher, student), paper in zip(PAIRS, accuracies, strict=True):
            released = (data, teacher, student) == ("cifar10", "wrn40-2", "wrn16-1")
            note = (
                "" if released else "no settings were released for this pair: these are those of WRN-40-2 to WRN-16-1"
            )
            plan = {"warmup": 196, "rounds": 40, "steps": 2000}
            settings: Plain = {"alpha_cls": 0.5, **({"layers": "stages"} if teacher == "resnet34" else {})}
            yield Row("CMI", data, teacher, student, settings, plan, paper, note)


# DAFL as CMI's harness runs it: what stands in the tables of CMI, Spaceship-Net and those after them.
_HARNESS: Plain = {
    "alpha_cls": 1.0,
    "alpha_act": 0.001,
    "alpha_ie": 20.0,
    "logarithm": "natural",
    "lr": 1e-3,
    "betas": [0.5, 0.999],
    "width": 512,
    "generator": "large",
    "images": "fresh",
}


def _dafl() -> Iterator[Row]:
    """Published: its own tables (ResNet-34 to ResNet-18, LeNet-5), the other pairs as CMI's and later papers print."""
    lenet = {"alpha_cls": 1.0, "alpha_act": 0.1, "activation": "map", "lr": 0.2, "width": 100}
    adam = {"rounds": 200, "batch_size": 512, "optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0}
    adam["schedule"] = "constant"
    yield Row("DAFL", "mnist", "lenet5", "lenet5-half-dafl", lenet, adam, 98.20)
    hundred = {"alpha_cls": 0.5, "alpha_act": 0.1, "alpha_ie": 20.0}
    yield Row("DAFL", "cifar10", *PAIRS[0], {}, {}, 92.22)
    yield Row("DAFL", "cifar100", *PAIRS[0], hundred, {}, 74.47)
    plan = {"rounds": 200, "steps": 400, "turns": 80, "batch_size": 256, "weight_decay": 1e-4, "schedule": "cosine"}
    note = "by CMI's harness, with its settings"
    papers = {"cifar10": (81.10, 65.71, 81.33, 81.55), "cifar100": (57.29, 22.50, 34.66, 40.00)}
    for data, accuracies in papers.items():
        for (teacher, student), paper in zip(PAIRS[1:], accuracies, strict=True):
            yield Row("DAFL", data, teacher, student, _HARNESS, plan, paper, note)


def _kd3() -> Iterator[Row]:
    """Published: its Table 1 and the other pairs of Table 3. Needs web images: --data.web."""
    note = "give unlabelled images: --data.web"
    adam = {"rounds": 40, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"}
    lenet = {"pad": 0, "flip": False}
    yield Row("KD3", "mnist", "lenet5", "lenet5-half", lenet, adam, 98.76, note)
    # ShuffleNetV1 prints the same two figures under both teachers on CIFAR, which looks like a slip of the paper.
    data = ("cifar10", "cifar100", "cinic10", "tiny-imagenet")
    pairs = (
        ("resnet34", "resnet18", (95.21, 78.44, 86.55, 66.24)),
        ("vgg16", "vgg13", (94.13, 74.21, 83.54, 61.98)),
        ("resnet32x4", "resnet8x4", (93.05, 73.17, 81.71, 55.13)),
        ("resnet32x4", "mobilenetv2-half", (92.16, 69.40, 77.95, 60.60)),
        ("resnet32x4", "shufflenetv1", (93.24, 72.15, 80.93, 60.01)),
        ("resnet32x4", "shufflenetv2", (93.53, 73.14, 80.74, 61.41)),
        ("resnet110x2", "resnet110", (94.59, 73.59, 84.75, 60.21)),
        ("resnet110x2", "resnet116", (94.57, 73.75, 84.68, 59.52)),
        ("resnet110x2", "shufflenetv1", (93.24, 72.15, 81.25, 58.54)),
        ("resnet110x2", "shufflenetv2", (93.46, 72.93, 81.54, 60.80)),
    )
    for teacher, student, papers in pairs:
        for name, paper in zip(data, papers, strict=True):
            yield Row("KD3", name, teacher, student, {}, {}, paper, note)
    # The second student of Table 4, at 100 % of the web images.
    for name, paper in zip(data, (94.28, 77.92, 84.07, 63.83), strict=True):
        yield Row("KD3", name, "resnet34", "vgg13", {}, {}, paper, note)


def _dfnd() -> Iterator[Row]:
    """As KD3's Table 1 prints it. Needs web images: --data.web.

    The teachers' accuracies are that table's too, but for ResNet-34 on CIFAR, where DFND's own code states them.
    """
    note = "as KD3's Table 1 prints it; give unlabelled images: --data.web"
    adam = {"rounds": 40, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"}
    lenet = {"teacher_accuracy": 0.9891, "pad": 0, "flip": False}
    yield Row("DFND", "mnist", "lenet5", "lenet5-half", lenet, adam, 98.37, f"{note}; the plan is that of KD3's row")
    resnets = {"cifar10": (0.9523, 94.02), "cifar100": (0.7774, 76.35), "tiny-imagenet": (0.6644, 60.92)}
    resnets["cinic10"] = (0.8662, 82.96)
    for data, (accuracy, paper) in resnets.items():
        settings = {} if data == "cifar10" else {"teacher_accuracy": accuracy}
        yield Row("DFND", data, "resnet34", "resnet18", settings, {}, paper, note)
    vggs = {"cifar10": (0.9407, 92.61), "cifar100": (0.7453, 70.88), "tiny-imagenet": (0.6234, 56.87)}
    vggs["cinic10"] = (0.8422, 81.82)
    for data, (accuracy, paper) in vggs.items():
        yield Row("DFND", data, "vgg16", "vgg13", {"teacher_accuracy": accuracy}, {}, paper, note)


# The student of STTS's Table 2: 2,000 epochs of 40,000 images.
_ADAM: Plain = {
    "rounds": 2000,
    "steps": 78,
    "batch_size": 512,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
}
_LENET, _ALEX, _RESNET = ("lenet5", "lenet5-half"), ("alexnet", "alexnet-half"), ("resnet34", "resnet18")


def _stts() -> Iterator[Row]:
    """Published: its Table 2."""
    yield Row("STTS", "mnist", *_LENET, {"sigma": 1.5, "lambda_a": 0.05}, {}, 99.08)
    settings = {"sigma": 20.0, "lambda_a": 3.0, "init_std": 0.02, "steps": 30, "lr": 0.1, "synthesis_batch": 500}
    plain = {**_ADAM, "rounds": 20, "warmup": 10, "steps": 200, "batch_size": 128, "lr": 5e-3, "schedule": "cosine"}
    note = "no paper's: a network without BatchNorm, in ten minutes of a core"
    settings |= {"batches": 2, "pad": 2}
    yield Row("STTS", "mnist", "plain-cnn", "plain-cnn-small", settings, plain, None, note, _MNIST)
    yield Row("STTS", "cifar10", *_ALEX, {}, {}, 73.91)
    yield Row("STTS", "cifar10", *_RESNET, {"lambda_a": 0.1}, {}, 93.31, "the paper gives no sigma here")


def _noise() -> Iterator[Row]:
    """The lower bound: published beside STTS, and for the pairs of the other papers without a figure."""
    yield Row("NoiseInput", "digits", "wrn16-2", "wrn16-1", {}, _DIGITS_PLAN, note="the lower bound of the demo")
    augmented = {"degrees": 15.0, "scale": 0.1, "shift": 0.1, "crop": 4, "noise": 0.05}  # as STTS's set
    yield Row("NoiseInput", "mnist", *_LENET, augmented, _ADAM, 87.58)
    yield Row("NoiseInput", "cifar10", *_ALEX, augmented, _ADAM, 36.49)
    yield Row("NoiseInput", "cifar10", *_RESNET, augmented, _ADAM, 19.49)
    note = "no paper prints it: the lower bound of this pair"
    yield Row("NoiseInput", "mnist", "resnet18", "resnet8", note=note)
    for data in ("cifar10", "cifar100"):
        for pair in PAIRS:
            if (data, pair) != ("cifar10", _RESNET):
                yield Row("NoiseInput", data, *pair, note=note)


def _vanilla() -> Iterator[Row]:
    """The upper bound: published beside STTS and D3K and, for CIFAR-100, in the README of FastDFKD.

    FastDFKD's CIFAR-10 row repeats one figure five times, so it is left out.
    """
    note = "not data-free: the upper bound; give --data.real"
    digits, mnist = {"pad": 1, "flip": False}, {"pad": 2, "flip": False}
    yield Row("VanillaKD", "digits", "wrn16-2", "wrn16-1", digits, _DIGITS_PLAN, note=note, inputs={"real": "digits"})
    # With the student's recipe of STTS's transfer sets; a round is an epoch of the real images.
    yield Row("VanillaKD", "mnist", *_LENET, mnist, {**_ADAM, "steps": 118}, 99.18, note, {"real": "mnist"})
    ten = {"real": "cifar10"}
    adam = {**_ADAM, "steps": 98}
    yield Row("VanillaKD", "cifar10", *_ALEX, {}, adam, 76.88, note, ten)
    yield Row("VanillaKD", "cifar10", *_RESNET, {}, adam, 94.40, f"{note}; D3K prints 94.34", ten)
    yield Row("VanillaKD", "mnist", "resnet18", "resnet8", mnist, {"steps": 469}, 99.37, note, {"real": "mnist"})
    for pair in PAIRS[1:]:
        yield Row("VanillaKD", "cifar10", *pair, note=f"{note}; no paper prints it", inputs=ten)
    for pair, paper in zip(PAIRS, (77.87, 75.07, 64.06, 68.58, 70.79), strict=True):
        remark = f"{note}; D3K prints 76.87" if pair == _RESNET else note
        yield Row("VanillaKD", "cifar100", *pair, {}, {}, paper, remark, {"real": "cifar100"})


ROWS: tuple[Row, ...] = (
    *_nayer(),
    *_quantization_rows(),
    *_spaceship(),
    *_d3k(),
    *_cmi(),
    *_dafl(),
    *_kd3(),
    *_dfnd(),
    *_stts(),
    *_noise(),
    *_vanilla(),
)
"""Every row; those whose method is not in ``METHODS`` are left out by ``dfkd.recipes.names``."""
