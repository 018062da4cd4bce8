"""What a run tells about itself: plain values, no tensors but the sample images; and who listens."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from dfkd.data.overlap import NearDuplicates

__all__ = ["Evaluation", "Keep", "Observer", "RoundRecord", "RunInfo", "RunResult"]


@dataclass(frozen=True)
class RunInfo:
    """Everything known before the first round."""

    method: str
    settings: dict[str, object]
    plan: dict[str, object]
    teacher: dict[str, object]
    student: dict[str, object]
    image_shape: tuple[int, int, int]
    classes: int
    names: tuple[str, ...] = ()
    text: dict[str, str] | None = None
    provenance: dict[str, object] = field(default_factory=dict)
    overlap: NearDuplicates | None = None  # of evaluation images among the web images, where that was looked for


@dataclass(frozen=True)
class Evaluation:
    """A student (or teacher) on labelled test images; fractions in [0, 1], ``loss`` in nats.

    ``agreement`` is the share of images on which student and teacher choose the same class.
    """

    accuracy: float
    agreement: float
    loss: float
    images: int
    class_accuracy: tuple[float, ...] = ()
    class_agreement: tuple[float, ...] = ()


@dataclass(frozen=True)
class RoundRecord:
    """One round: how long it took, the losses, what a test set (if any) says, and some of the newest images.

    ``samples`` is (uint8 images (m, c, h, w), labels (m,)) on the CPU, or None.
    """

    round: int
    rounds: int
    warmup: bool
    seconds: float
    metrics: dict[str, float]
    evaluation: Evaluation | None = None
    samples: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class RunResult:
    """A whole run. ``seconds`` counts all rounds, those before a resume included."""

    info: RunInfo
    rounds: list[RoundRecord]
    final: Evaluation | None
    teacher_evaluation: Evaluation | None
    seconds: float
    files: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Observer(Protocol):
    """Somebody who watches a run. Observers only look: none of them may change what is trained."""

    def started(self, info: RunInfo) -> None:
        """Before the first round."""

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        """Now and then inside a round: ``done`` of ``total`` steps of ``phase``."""

    def rounded(self, record: RoundRecord) -> None:
        """After every round."""

    def finished(self, result: RunResult) -> None:
        """After the last round."""


class Keep:
    """An observer that keeps the rounds in memory."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def started(self, info: RunInfo) -> None:
        """Nothing to keep."""

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        """Nothing to keep."""

    def rounded(self, record: RoundRecord) -> None:
        """Keep it."""
        self.records.append(record)

    def finished(self, result: RunResult) -> None:
        """Nothing to keep."""
