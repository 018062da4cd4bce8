"""The types a run is made of: Task (what), Method (how), State (what a method remembers), Clock (when)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.data.rows import Rows
from dfkd.engine.limits import check_shared
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.types import Batch, Scalar

__all__ = ["Cache", "Clock", "Method", "Metrics", "Need", "State", "Task"]

V = TypeVar("V")

Metrics = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Task:
    """What is distilled into what.

    Attributes:
        teacher: frozen probe of the teacher.
        student: probe of the student.
        image_shape: (c, h, w).
        classes: K, the width of both networks' logits.
        runtime: device, precision, processes, random streams.
        names: class names, or empty.
        text: one constant embedding per class (K, d) in float32, or None.
        web: unlabelled images, or None.
        real: labelled training images (uint8 (n, c, h, w), int64 (n,)), or None. Only the yardstick with data uses it.
    """

    teacher: Probe
    student: Probe
    image_shape: tuple[int, int, int]
    classes: int
    runtime: Runtime
    names: tuple[str, ...] = ()
    text: Tensor | None = None
    web: Rows | None = None
    real: tuple[Tensor, Tensor] | None = None


class Clock(NamedTuple):
    """When: the round (from 0, warm-up included), the student step within it, and the plan."""

    plan: Plan
    round: int
    step: int = 0

    @property
    def warmup(self) -> bool:
        """No student steps in this round."""
        return self.round < self.plan.warmup


class Need(Enum):
    """What a method asks of a pair. The value completes the sentence "<method> needs ..."."""

    BN = "a teacher with BatchNorm layers that keep running statistics"
    HEAD = "a teacher whose classifier is one linear layer"
    SAME_HEAD = "a student whose classifier is one linear layer"
    STAGES = "stage maps of equal size in teacher and student"
    TEXT = "one text embedding per class"
    WEB = "a pool of unlabelled images"
    REAL = "real training images"
    SIDE_4 = "an image side that is a multiple of 4"
    SIDE_8 = "an image side that is a multiple of 8"


class Cache(Generic[V]):
    """A field of a state that checkpoints leave out, because it can be computed again, bit for bit.

    ``value`` is None until the method fills it, and again after a resume.
    """

    def __init__(self) -> None:
        self.value: V | None = None


@dataclass
class State:
    """What a method remembers between rounds. Subclass as a dataclass; every field is checkpointed.

    Fields may be tensors, modules, optimisers, pools, numbers, strings, and lists, tuples and dicts of those; a
    :class:`Cache` is not saved. A method that stores images calls that pool ``pool`` and its columns ``images`` and
    ``labels``: then they are shown.

    Attributes:
        joint: extra modules trained with the student (a projector, heads).
        held: names of student parameters that stay as ``setup`` left them (a shared classifier).
        optimizers: of modules that learn from the student's loss too, by a rule of their own (a noise matrix); they
            step together with the student's, and their modules are fields of the state beside ``joint``.
    """

    joint: nn.ModuleDict = field(default_factory=nn.ModuleDict, kw_only=True)
    held: tuple[str, ...] = field(default=(), kw_only=True)
    optimizers: tuple[Optimizer, ...] = field(default=(), kw_only=True)


S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """How: hyper-parameters and four verbs. Subclasses are final frozen dataclasses of plain values.

    ``default_plan`` is the budget the published numbers were reached with.
    """

    default_plan: ClassVar[Plan]

    def __post_init__(self) -> None:
        """Refuse a word that is not among a hyper-parameter's choices, then values that cannot be.

        The limits of fields called ``lr``, ``temperature``, ``momentum``, ``pad`` and ``betas`` (two numbers: Adam's)
        are known; the rest is for :meth:`check_values`.
        """
        for name, hint in get_type_hints(type(self)).items():
            kinds = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
            choices, value = [choice for kind in kinds for choice in get_args(kind)], getattr(self, name)
            if choices and value is not None and value not in choices:
                listed = ", ".join(map(str, choices))
                raise UserError(
                    f"{type(self).__name__} needs {name} to be one of {listed}, got {value!r}; choose one of them"
                )
        check_shared(self)
        self.check_values()

    def check_values(self) -> None:
        """Refuse other values that cannot be. Called on construction; a method without limits leaves it.

        Raises:
            UserError: naming the hyper-parameter.
        """
        return

    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What the pair must offer with these hyper-parameters."""

    def period(self) -> int:
        """Rounds after which this method's heavier rounds come back; 1: all rounds are alike (for estimates)."""
        return 1

    def budget(self) -> Plan:
        """The plan a run takes where none is given: ``default_plan``, or that of the method this one is made of."""
        return self.default_plan

    @abstractmethod
    def setup(self, task: Task, plan: Plan) -> S:
        """Build generators, pools and factors. Called once, also before a resume overwrites what it built."""

    @abstractmethod
    def synthesize(self, task: Task, state: S, clock: Clock) -> Metrics:
        """Make (or choose) this round's images or features; returns device scalars. The student is in eval mode."""

    @abstractmethod
    def batch(self, task: Task, state: S, clock: Clock) -> Batch:
        """What the student sees next. Runs without gradients."""

    @abstractmethod
    def loss(self, task: Task, state: S, batch: Batch) -> Scalar:
        """The student's objective on this batch. Pure: no randomness, no change of state; compiled as one graph."""


def unmet(task: Task, method: Method[State]) -> list[Need]:
    """The needs of ``method`` that ``task`` does not meet, in the order of :class:`Need`."""
    side = min(task.image_shape[1:])
    has = {
        Need.BN: bool(task.teacher.norms),
        Need.HEAD: task.teacher.head is not None,
        Need.SAME_HEAD: task.student.head is not None,
        Need.STAGES: bool(task.teacher.stage_names) and bool(task.student.stage_names),
        Need.TEXT: task.text is not None,
        Need.WEB: task.web is not None and len(task.web) > 0,
        Need.REAL: task.real is not None,
        Need.SIDE_4: side % 4 == 0 and max(task.image_shape[1:]) % 4 == 0,
        Need.SIDE_8: side % 8 == 0 and max(task.image_shape[1:]) % 8 == 0,
    }
    wanted = method.needs()
    return [need for need in Need if need in wanted and not has[need]]


def offered(task: Task, need: Need) -> str:
    """What ``task`` has instead of ``need``, and what can be done about it: "<got>; <what to do>"."""
    teacher, student = type(task.teacher.net).__name__, type(task.student.net).__name__
    _, h, w = task.image_shape
    sizes = f"images of {h}x{w}; train a teacher on padded or resized images, or choose another method"
    return {
        Need.BN: f"{teacher} without; choose another method",
        Need.HEAD: f"{teacher} without; name it (dfkd.Classifier, or --teacher.head) or choose another method",
        Need.SAME_HEAD: f"{student} without; name it (dfkd.Classifier, or --student.head) or choose another student",
        Need.STAGES: f"none in {teacher} and {student}; "
        "name matching stages (dfkd.Classifier, --teacher.stages, --student.stages)",
        Need.TEXT: "none; give text, or class names",
        Need.WEB: "none; give web (in the shell --data.web): a folder, a .npy file or .tar shards",
        Need.REAL: "none; give real (in the shell --data.real): a labelled image set",
        Need.SIDE_4: sizes,
        Need.SIDE_8: sizes,
    }[need]


def class_entropy(logits: Tensor) -> Scalar:
    """Entropy, in nats, of the mean predicted distribution: log K when classes are balanced, 0 after a collapse."""
    mean = torch.softmax(logits.detach().float(), dim=1).mean(dim=0)
    return -(mean * (mean + 1e-12).log()).sum()
