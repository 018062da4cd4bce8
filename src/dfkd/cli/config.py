"""The options of the commands: their own fields, and the sections of :mod:`dfkd.settings`.

The comment beside a field is its help. This module does not import torch: `--help` must be quick.
"""

from dataclasses import dataclass, field
from typing import Literal

from dfkd.engine.plan import Plan
from dfkd.settings import Images, Machine, MethodChoice, Network, Stopping, TeachImages, Text, Watching
from dfkd.teacher_plan import TeachPlan

__all__ = [
    "Adapt",
    "Audit",
    "Bench",
    "Choose",
    "Demo",
    "Distill",
    "Doctor",
    "Embed",
    "Evaluate",
    "Export",
    "Inspect",
    "MethodRun",
    "Methods",
    "PairRun",
    "Plot",
    "Predict",
    "Push",
    "Quantize",
    "Recipes",
    "Repeat",
    "Report",
    "Search",
    "Synthesize",
    "Teach",
]


@dataclass
class MethodRun:
    """What every command that runs a method takes: the sections of a recipe."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`
    teacher: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)


@dataclass
class PairRun(MethodRun):
    """The same with a student of its own."""

    student: Network = field(default_factory=Network)


@dataclass
class Distill(PairRun):
    """`dfkd distill`."""

    stop: Stopping = field(default_factory=Stopping)
    out: str | None = None  # run folder, new or empty; default runs/<method>-<student>-<time>
    resume: str | None = None  # continue the run in this folder; names of your own code are given again
    dry_run: bool = False  # only estimate time, memory and disk, from two rounds of each kind
    json: bool = False  # with --dry-run: machine-readable


@dataclass
class Repeat(PairRun):
    """`dfkd repeat`."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # one run for each, in OUT/seed<number>
    stop: Stopping = field(default_factory=Stopping)
    out: str | None = None  # folder of the runs; those that are finished there are passed over, others go on


@dataclass
class Search(PairRun):
    """`dfkd search`: the recipe's section search: holds ranges."""

    trials: int = 20  # of the whole search, over all processes on its folder
    minutes: float | None = None  # this process begins no trial after so many
    prune: bool = True  # end trials that are behind the median of earlier ones, after every tenth of their rounds
    stop: Stopping = field(default_factory=Stopping)
    out: str | None = None  # folder; repeat the command to go on, or run it several times at once to share the trials


@dataclass
class Choose:
    """`dfkd choose`."""

    teacher: Network = field(default_factory=Network)
    students: list[str] | None = None  # networks to choose among; default those of the zoo (and timm) that are smaller
    minutes: float = 5.0  # for all trials together; 0: none
    latency: float | None = None  # most milliseconds for one image, on this machine
    parameters: int | None = None  # most parameters
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    runtime: Machine = field(default_factory=Machine)
    json: bool = False  # machine-readable


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
class Synthesize(PairRun):
    """`dfkd synthesize`."""

    run: str | None = None  # take the images of this run instead
    count: int = 1000  # images, the newest
    format: Literal["png", "safetensors"] = "png"  # a folder for each class, or one file
    out: str | None = None  # new folder


@dataclass
class Bench(PairRun):
    """`dfkd bench`."""

    rounds: int = 3  # rounds timed; the first also warms up
    json: bool = False  # machine-readable


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
    formats: list[Literal["pt2", "onnx", "int8"]] | None = None  # pt2 (torch.export), onnx, int8; default: all
    normalisation: Literal["inside", "outside"] = "inside"  # outside: the files take normalised images
    images: str | None = None  # folder of images to calibrate on and compare with; default those of a run
    calibration: int = 256  # images for the ranges of INT8; as many others are compared
    batch: int | None = None  # images of every call; default any number
    network: str | None = None  # package.module:callable where the run does not name its student, or student.pt2
    out: str | None = None  # folder; default export in the run folder
    test: str | None = None  # labelled images, for the accuracy of every file: cifar10[:DIR], FILE.npz, folder:DIR
    json: bool = False  # machine-readable


@dataclass
class Audit:
    """`dfkd audit`."""

    run: str | None = None  # run folder
    private: str | None = None  # what the teacher was trained on: a folder, .npy, .tar, .npz, or a data set by name
    heldout: str | None = None  # the same kind, never trained on; default: the run's test images; none: do without
    count: int = 1000  # at most this many images of each kind are compared
    seed: int = 0  # seed of the sample, where there are more
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    own_method: str | None = None  # package.module:Class, where the run used a method of your own
    out: str | None = None  # folder; default <run>-audit beside the run folder
    json: bool = False  # machine-readable


@dataclass
class Quantize(MethodRun):
    """`dfkd quantize`."""

    target: str | None = None  # trained: weights, a folder of `dfkd teach`, a run, or a name with --teacher.weights
    bits: str = "W4A4"  # of weights and activations, 2 to 8 each
    calibration: int = 256  # images for the ranges of activations; at least 64
    out: str | None = None  # run folder, new or empty; default runs/quantized-<network>-<bits>
    resume: bool = False  # go on with the run in --out; give the same settings
    json: bool = False  # machine-readable


@dataclass
class Adapt:
    """`dfkd adapt`."""

    run: str | None = None  # run folder
    images: str | None = None  # folder of real images, without labels
    count: int = 64  # images at most
    teacher: str | None = None  # its folder or weights; default as the run's recipe says
    network: str | None = None  # package.module:callable, where the run does not name its student
    out: str | None = None  # folder; default adapted in the run folder
    json: bool = False  # machine-readable


@dataclass
class Predict:
    """`dfkd predict`."""

    run: str | None = None  # run folder, weights file, or name on the Hugging Face hub
    images: list[str] | None = None  # image files, or folders of them
    format: Literal["csv", "json"] = "csv"  # a table, or a list
    top: int = 1  # classes of every image, the likeliest first
    network: str | None = None  # package.module:callable, where the run does not name its student
    out: str | None = None  # file; default the screen


@dataclass
class Push:
    """`dfkd push`."""

    run: str | None = None  # run folder
    to: list[str] | None = None  # owner/name on the Hugging Face hub
    private: bool = False  # a new repository that only you can see
    licence: str = "unknown"  # an identifier of the hub, such as apache-2.0; the teacher's licence may bind the student
    card: bool = False  # only print the model card


@dataclass
class Report:
    """`dfkd report`."""

    run: str | None = None  # run folder, or that of `dfkd search` or `dfkd repeat`
    compare: list[str] | None = None  # further run folders: one page puts them all beside each other
    out: str | None = None  # file; default report.html, search.html or repeat.html in the folder, or compare.html here


@dataclass
class Plot:
    """`dfkd plot`."""

    run: str | None = None  # run folder
    compare: list[str] | None = None  # run folders whose accuracies are drawn beside each other
    over: str | None = None  # draw only the runs' last accuracies over this setting, such as method.sigma
    out: str | None = None  # folder; default figures in the run folder, or this one for --compare alone
    format: Literal["svg", "png"] = "svg"  # of figures made of lines; images are always PNG
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    own_method: str | None = None  # package.module:Class, where the run used a method of your own
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
    seed: int = 0  # seed of the first student; the next ones have seed + 1, ...
    seeds: int = 1  # students
    threads: int = 1  # of the CPU; networks this small gain little from more, and lose much on a busy machine
    quiet: bool = False  # no progress display
