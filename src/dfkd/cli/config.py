"""What the commands can be told. A section of a recipe is a dataclass; the comment beside a field is its help.

This module does not import torch: `--help` must be quick.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dfkd.datasets import DATASETS
from dfkd.engine.plan import Plan
from dfkd.teachplan import TeachPlan

__all__ = [
    "Audit",
    "Bench",
    "Demo",
    "Distill",
    "Doctor",
    "Embed",
    "Evaluate",
    "Export",
    "Inspect",
    "Methods",
    "Plot",
    "Recipes",
    "Report",
    "Synthesize",
    "Teach",
]

if TYPE_CHECKING:
    Preset = str
else:  # the choices that --help lists and the parser accepts
    Preset = Literal[tuple(DATASETS)]


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
    mean: list[float] | None = None  # per channel, of pixels in [0, 1]
    std: list[float] | None = None  # likewise
    classes: list[str] | int | str | None = None  # names, their number, or the name of a shipped list
    test: str | None = None  # labelled images that only report: digits, cifar10[:DIR], FILE.npz, folder:DIR
    web: str | None = None  # unlabelled images for methods that select: folder, .npy, .tar shards
    real: str | None = None  # labelled training images, for the yardstick VanillaKD only


@dataclass
class TeachImages:
    """What the teacher learns from."""

    preset: Preset | None = None  # fills the rest for a known data set
    train: str | None = None  # labelled images: digits, mnist[:DIR], cifar10[:DIR], FILE.npz, folder:DIR
    test: str | None = None  # labelled images, measured once at the end
    image_size: tuple[int, int, int] | None = None  # channels, height, width
    mean: list[float] | None = None  # per channel, of pixels in [0, 1]; default: of the training images
    std: list[float] | None = None  # likewise
    classes: list[str] | int | str | None = None  # names, their number, or the name of a shipped list


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
    seed: int = 0
    threads: int | None = None  # of the CPU; a resume is bit-identical with the same number


@dataclass
class Watching:
    """How a run is looked at and saved; nothing here changes the student."""

    evaluate_every: int = 1  # rounds between looks at the test images
    metrics_every: int = 1  # rounds between readings of the losses from the device
    samples_every: int = 10  # rounds between sheets of synthetic images; 0: none
    save_every: float = 0.0  # least seconds between checkpoints; 0: after every round
    tensorboard: bool = False  # also write TensorBoard events
    quiet: bool = False  # no progress display
    export: bool = True  # also write the student as a torch.export program
    onnx: Literal["none", "fp32", "int8"] = "none"  # at the end also as ONNX, int8: and quantized, like `dfkd export`
    overlap: bool = True  # look once, before the rounds, for near-duplicates of the test images among the web images
    figures: bool = True  # draw figures at the end: images by class, activation maps, t-SNE; `dfkd plot` draws them too


@dataclass
class MethodChoice:
    """The method; its hyper-parameters are further options of this section."""

    name: str = "NAYER"  # a name from `dfkd methods`, or package.module:Class of your own


@dataclass
class Distill:
    """`dfkd distill`."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)
    out: str | None = None  # run folder, new or empty; default runs/<method>-<student>-<time>
    resume: str | None = None  # continue the run in this folder; needs nothing else
    dry_run: bool = False  # only estimate time, memory and disk, from two rounds of each kind
    json: bool = False  # with --dry-run: machine-readable


@dataclass
class Teach:
    """`dfkd teach`."""

    network: Network = field(default_factory=Network)
    data: TeachImages = field(default_factory=TeachImages)
    plan: TeachPlan = field(default_factory=TeachPlan)
    runtime: Machine = field(default_factory=Machine)
    out: str | None = None  # folder for weights.safetensors and weights.json; default teachers/<name>
    quiet: bool = False  # no progress display


@dataclass
class Inspect:
    """`dfkd inspect`."""

    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    json: bool = False  # machine-readable


@dataclass
class Embed:
    """`dfkd embed`."""

    classes: list[str] | int | str | None = None  # names, their number, or the name of a shipped list
    text: Text = field(default_factory=Text)
    nearest: int = 5  # pairs of classes shown
    out: str | None = None  # .safetensors to write; default: only show


@dataclass
class Synthesize:
    """`dfkd synthesize`."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`
    run: str | None = None  # take the images of this run instead
    count: int = 1000  # images, the newest
    format: Literal["png", "safetensors"] = "png"  # a folder for each class, or one file
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)
    out: str | None = None  # new folder


@dataclass
class Bench:
    """`dfkd bench`."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`
    rounds: int = 3  # rounds timed; the first also warms up
    json: bool = False  # machine-readable
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)


@dataclass
class Evaluate:
    """`dfkd evaluate`."""

    target: str | None = None  # run folder or weights file
    network: Network = field(default_factory=Network)
    teacher: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    runtime: Machine = field(default_factory=Machine)
    json: bool = False  # machine-readable


@dataclass
class Export:
    """`dfkd export`."""

    run: str | None = None  # run folder, folder of `dfkd teach`, or weights file
    formats: list[Literal["pt2", "onnx", "int8"]] | None = None  # torch.export, ONNX, INT8; default all that can be
    normalisation: Literal["inside", "outside"] = "inside"  # outside: the files take normalised images
    images: str | None = None  # folder of images to calibrate on and compare with; default the run's synthetic ones
    calibration: int = 256  # images for the ranges of INT8; as many others are compared
    batch: int | None = None  # images of every call; default any number
    network: str | None = None  # package.module:callable, where the run does not name its student
    out: str | None = None  # folder; default export in the run folder
    json: bool = False  # machine-readable


@dataclass
class Audit:
    """`dfkd audit`."""

    run: str | None = None  # run folder
    private: str | None = None  # what the teacher was trained on: a folder, .npy, .tar, .npz, or a data set by name
    heldout: str | None = None  # the same kind, never trained on; default: the run's test images; none: do without
    count: int = 1000  # most images of each kind that ask for their nearest
    seed: int = 0  # of the choice among more
    teacher: Network = field(default_factory=Network)
    out: str | None = None  # folder; default <run>-audit beside the run folder
    json: bool = False  # machine-readable


@dataclass
class Report:
    """`dfkd report`."""

    run: str | None = None  # run folder
    out: str | None = None  # file; default report.html in the run folder


@dataclass
class Plot:
    """`dfkd plot`."""

    run: str | None = None  # run folder
    compare: list[str] | None = None  # run folders whose accuracies are drawn beside each other
    over: str | None = None  # draw only the runs' last accuracies over this setting, such as method.sigma
    out: str | None = None  # folder; default figures in the run folder, or this one for --compare alone
    format: Literal["svg", "png"] = "svg"  # of figures made of lines; images are always PNG
    teacher: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)


@dataclass
class Methods:
    """`dfkd methods`."""

    name: str | None = None  # show one method with its hyper-parameters


@dataclass
class Recipes:
    """`dfkd recipes`."""

    name: str | None = None  # print one recipe as YAML


@dataclass
class Doctor:
    """`dfkd doctor`."""

    json: bool = False  # machine-readable


@dataclass
class Demo:
    """`dfkd demo`."""

    out: str = "runs/demo"  # folder; where it exists, runs/demo-2 and so on
    seed: int = 0  # of the first student; the others count on
    seeds: int = 1  # students
    threads: int = 1  # of the CPU; networks this small gain little from more, and lose much on a busy machine
    quiet: bool = False  # no progress display
