"""The types a run is made of: Task (what), Method (how), State (what a method remembers), Clock (when)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.data.rows import Rows
from dfkd.engine.limits import check
from dfkd.engine.measures import Measure
from dfkd.engine.needs import Need
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.engine.views import View
from dfkd.types import Batch, Bytes, Scalar

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

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes by name, or by number."""
        return self.names or tuple(str(k) for k in range(self.classes))


class Clock(NamedTuple):
    """When: the round (from 0, warm-up included), the student step within it (the next one), and the plan."""

    plan: Plan
    round: int
    step: int = 0

    @property
    def warmup(self) -> bool:
        """No student steps in this round."""
        return self.round < self.plan.warmup

    @property
    def turn(self) -> int:
        """How many syntheses this round had before (``Plan.turns``)."""
        return self.step // self.plan.steps_in_turn


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
        fixed_parameters: names of student parameters that stay as ``setup`` left them (a shared classifier).
        optimizers: of modules that learn from the student's loss too, by a rule of their own (a noise matrix); they
            step together with the student's, and their modules are fields of the state beside ``joint``.
    """

    joint: nn.ModuleDict = field(default_factory=nn.ModuleDict, kw_only=True)
    fixed_parameters: tuple[str, ...] = field(default=(), kw_only=True)
    optimizers: tuple[Optimizer, ...] = field(default=(), kw_only=True)


S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """How: hyper-parameters and four verbs. Subclasses are final frozen dataclasses of plain values.

    Attributes:
        default_plan: the budget the published numbers were reached with.
        measures: what ``synthesize`` returns beside losses (``loss/...``), by name, for whoever shows it.
    """

    default_plan: ClassVar[Plan]
    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType({})

    def __post_init__(self) -> None:
        """Refuse what is not among a hyper-parameter's choices or breaks its limit (:mod:`dfkd.engine.limits`)."""
        check(self)
        self.check_values()

    def check_values(self) -> None:
        """Refuse values that do not fit each other. Called on construction; what limits a single field stands with it.

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

    def least_warmup(self) -> int:
        """Warm-up rounds without which there is nothing to learn from."""
        return 0

    def fit(self, teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> nn.Module:
        """Change ``student``, in place, into one that this method can train: before anything else, once.

        A method that asks for more than a network of the right inputs and outputs does it here (a projector to
        the teacher's features, for one). A student that fits already is left as it is.

        Args:
            teacher: left as it is.
            student: maps images (n, c, h, w) to logits (n, k).
            image_size: (c, h, w).

        Raises:
            UserError: a pair that cannot be made to fit.
        """
        return student

    def all_measures(self) -> Mapping[str, Measure]:
        """``measures``, and those of the methods this one is made of."""
        return self.measures

    def views(self, task: Task, state: S | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """What there is to see at the end of a run, by name; nothing is computed before it is asked for.

        Args:
            task: what ran; its random stream is one of the figures' own.
            state: what is remembered, or None where that is lost.
            real: labelled test images, uint8 (n, c, h, w), or None.

        A view that bears the name of one of the report's own figures (``features``) takes its place. One that cannot
        be shown raises UserError; the report says so.
        """
        return {}

    @abstractmethod
    def setup(self, task: Task, plan: Plan) -> S:
        """Build generators, pools and factors. Called once, also before a resume overwrites what it built."""

    @abstractmethod
    def synthesize(self, task: Task, state: S, clock: Clock) -> Metrics:
        """Make (or choose) this round's images or features; returns device scalars. The student is in eval mode."""

    def student_steps(self, task: Task, state: S, clock: Clock) -> int:
        """How many steps the student takes after this turn's synthesis: the plan's, or fewer (equal in all processes).

        Estimates reckon with the plan's.
        """
        return clock.plan.steps_in_turn

    @abstractmethod
    def batch(self, task: Task, state: S, clock: Clock) -> Batch:
        """What the student sees next. Runs without gradients."""

    @abstractmethod
    def loss(self, task: Task, state: S, batch: Batch) -> Scalar:
        """The student's objective on this batch. Pure: no randomness, no change of state; compiled as one graph."""


def unmet(task: Task, method: Method[State]) -> list[Need]:
    """The needs of ``method`` that ``task`` does not meet: those of the networks first."""
    first = (Need.GRADIENT, Need.BN, Need.HEAD, Need.SAME_HEAD, Need.STAGES, Need.TEXT, Need.WEB, Need.REAL)
    missing = [need for need in method.needs() if not need.met(task)]
    return sorted(missing, key=lambda need: (first.index(need) if need in first else len(first), need.what))


def class_entropy(logits: Tensor) -> Scalar:
    """Entropy, in nats, of the mean predicted distribution: log K when classes are balanced, 0 after a collapse."""
    mean = torch.softmax(logits.detach().float(), dim=1).mean(dim=0)
    return -(mean * (mean + 1e-12).log()).sum()
