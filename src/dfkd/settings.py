"""The sections of a run's settings: arguments of :func:`dfkd.distill`, sections of a recipe, options of the shell.

The comment beside a field is its help. This module does not import torch: help texts must be quick.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dfkd.datasets import DATASETS
from dfkd.defaults import DEFAULT_METHOD
from dfkd.engine.limits import Count, NotNegative, Positive, PositiveShare, Seed, Whole, check

__all__ = ["Images", "Machine", "MethodChoice", "Network", "Stopping", "TeachImages", "Text", "Watching"]

if TYPE_CHECKING:  # what Python accepts
    from collections.abc import Sequence

    from torch import Tensor

    from dfkd.data.readers import Labelled
    from dfkd.data.rows import Unlabelled

    Preset = str
    Numbers = Sequence[float]
    Classes = Sequence[str] | int | str
    Estimating = bool | Tensor  # images (uint8, N C H W) that were made before, the same for several runs
else:  # what the shell accepts, and --help lists
    Preset = Literal[tuple(DATASETS)]
    Numbers = list[float]
    Classes = list[str] | int | str
    Labelled = Unlabelled = str
    Estimating = bool


@dataclass
class Network:
    """A network by name, with its weights."""

    name: str | None = None  # zoo name, timm:NAME, torchvision:NAME, hf:REPO, or package.module:callable
    weights: str | None = None  # .safetensors, .pt or .pth, or the folder of `dfkd teach` or of a run
    key: str | None = None  # which weights, where the file holds several: state_dict_ema
    head: str | None = None  # path of the classifier layer, where the search should not decide
    stages: list[str] | None = None  # paths of the stage layers, shallow to deep, likewise


@dataclass
class Images:
    """What the teacher was trained on; taken from the file beside its weights where that says so."""

    preset: Preset | None = None  # fills the next four for a known data set
    image_size: tuple[int, int, int] | None = None  # channels, height, width
    mean: Numbers | None = None  # per channel, of pixels in [0, 1]
    std: Numbers | None = None  # likewise
    classes: Classes | None = None  # names, their number, or the name of a shipped list
    test: Labelled | None = None  # labelled images that only report: digits, cifar10[:DIR], FILE.npz, folder:DIR
    web: Unlabelled | None = None  # unlabelled images for methods that select: folder, .npy, .tar shards
    real: Labelled | None = None  # labelled training images, for a method that learns from real data

    def __post_init__(self) -> None:
        check(self, "data")


@dataclass
class TeachImages:
    """What the teacher learns from."""

    preset: Preset | None = None  # fills the rest for a known data set
    train: str | None = None  # labelled images: digits, mnist[:DIR], cifar10[:DIR], FILE.npz, folder:DIR
    test: str | None = None  # labelled images, measured once at the end
    image_size: tuple[int, int, int] | None = None  # channels, height, width
    mean: Numbers | None = None  # per channel, of pixels in [0, 1]; default: of the training images
    std: Numbers | None = None  # likewise
    classes: Classes | None = None  # names, their number, or the name of a shipped list


@dataclass
class Text:
    """Where class embeddings come from."""

    encoder: Literal["auto", "shipped", "minilm", "clip", "file", "index"] = "auto"  # auto: shipped, minilm, index
    prompt: Literal["P1", "P2", "P3"] = "P2"  # a class of, a photo of, a photo of the class index
    file: str | None = None  # .safetensors, .npy or .pt with one row for each class


@dataclass
class Machine:
    """Where it computes. Settings other than device and threads belong to the run: a resume keeps them."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1  # processes, one for each GPU
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False  # torch.compile: pays off in long runs
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"  # reduce-overhead: CUDA graphs
    sync_bn: bool = False  # with several processes: BatchNorm statistics over the joint batch
    channels_last: bool = True
    seed: Seed = 0
    threads: int | None = None  # of the CPU; a resume is bit-identical with the same number

    def __post_init__(self) -> None:
        check(self, "runtime")


@dataclass
class Watching:
    """How a run is looked at and saved; nothing here changes the student."""

    evaluate_every: Count = 1  # rounds between looks at the test images
    metrics_every: Count = 1  # rounds between readings of the losses from the device
    samples_every: Whole = 10  # rounds between sheets of synthetic images; 0: none
    save_every: NotNegative = 0.0  # least seconds between checkpoints; 0: after every round
    tensorboard: bool = False  # also write TensorBoard events
    track: Literal["none", "wandb", "mlflow"] = "none"  # also log there, as its environment variables say
    quiet: bool = False  # no progress display
    export: bool = True  # also write the student as a torch.export program
    onnx: Literal["none", "fp32", "int8"] = "none"  # at the end also as ONNX, int8: and quantized, like `dfkd export`
    estimate: Estimating | None = None  # agreement on held-out synthetic images; default: long runs without test images
    overlap: bool = True  # look once, before the rounds, for near-duplicates of the test images among the web images
    figures: bool = True  # draw figures at the end: images by class, activation maps, t-SNE; `dfkd plot` draws them too

    def __post_init__(self) -> None:
        check(self, "watch")


@dataclass
class Stopping:
    """When a run ends: by agreement with the teacher on held-out synthetic images, or by the time there is."""

    patience: Count | None = None  # rounds without a higher agreement after which the run ends
    until_agreement: PositiveShare | None = None  # the agreement at which the run ends
    hours: Positive | None = None  # shorten the plan, before the first round, until it fits this time
    held_out: Literal["inverted", "own"] = "inverted"  # images made from the teacher alone, or by the run's method
    picked: bool | None = None  # keep the student of the highest agreement, too; default: where it is measured

    def __post_init__(self) -> None:
        check(self, "stop")

    @property
    def agreement_field(self) -> str | None:
        """The first field that asks for the agreement on held-out images."""
        rules = {"patience": self.patience, "until_agreement": self.until_agreement, "picked": self.picked or None}
        return next((name for name, value in rules.items() if value is not None), None)


@dataclass
class MethodChoice:
    """The method; its hyper-parameters are further options of this section."""

    name: str = DEFAULT_METHOD  # a name from `dfkd methods`, or package.module:Class of your own
