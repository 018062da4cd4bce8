"""What a run tells about itself: plain values, no tensors but the sample images; and its observers."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from dfkd.data.overlap import NearDuplicates
from dfkd.engine.measures import Measure

__all__ = [
    "Agreement",
    "Ending",
    "Estimate",
    "Evaluation",
    "Fitted",
    "Keep",
    "Observer",
    "Picked",
    "RoundRecord",
    "RunInfo",
    "RunResult",
]

Ending = Literal["finished", "stopped", "interrupted", "failed"]  # how a run ended, see ``Observer.ended``


@dataclass(frozen=True)
class Fitted:
    """For how many hours a plan was shortened, the seconds it then takes as measured, and the plan before."""

    hours: float
    seconds: float
    asked: dict[str, object]


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
    inputs: dict[str, str] = field(default_factory=dict)  # fingerprints of what makes the student
    notes: tuple[str, ...] = ()  # what resumes of this run found: a damaged save, other versions
    overlap: NearDuplicates | None = None  # of evaluation images among the web images, where that was looked for
    measures: dict[str, Measure] = field(default_factory=dict)  # what the method's metrics mean
    continues: str | None = None  # "stopped after round 7 of 20: why", where an earlier start was stopped
    fitted: Fitted | None = None  # how ``plan`` came about, where it was made for a time
    test_images: int | None = None  # that evaluations look at; None in folders from before this was recorded
    identity: str = ""  # random, made at the first start and kept by a resume: what trackers know the run by


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
class Agreement:
    """A student beside its teacher on images without true labels; fractions in [0, 1].

    Attributes:
        agreement: share of images on which both choose the same class.
        low, high: its 95 % interval (Wilson), as far as these images stand for others of their kind.
        images: how many there are.
        calibration: expected calibration error of the student, with the teacher's class taken for the truth.
        class_agreement: agreement where the teacher chooses each class; NaN where it never does.
    """

    agreement: float
    low: float
    high: float
    images: int
    calibration: float
    class_agreement: tuple[float, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """How good the student seems without test images.

    Attributes:
        sets: agreement by kind of held-out images (``own``, ``inverted``, ``shifted``, ``mixed``, ``noise``).
        signals: what the teacher says of the run's newest images (:func:`~dfkd.engine.heldout.signals_of`).
        seconds: this took.
    """

    sets: dict[str, Agreement]
    signals: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class RoundRecord:
    """One round: the losses, what a test set (if any) says, some of the newest images, and how long it all took.

    ``seconds`` counts synthesis, the student's steps and the evaluation; ``metrics`` has the first two apart.
    ``samples`` is (uint8 images (m, c, h, w), labels (m,)) on the CPU, or None. ``stopped`` says why a rule ended
    the run after this round.
    """

    round: int
    rounds: int
    warmup: bool
    seconds: float
    metrics: dict[str, float]
    evaluation: Evaluation | None = None
    samples: tuple[Tensor, Tensor] | None = None
    estimate: Estimate | None = None
    stopped: str | None = None


@dataclass(frozen=True)
class Picked:
    """A round (counted from 0) and its agreement with the teacher on held-out images of the kind ``held_out``."""

    round: int
    agreement: float
    held_out: str


@dataclass(frozen=True)
class RunResult:
    """A whole run. ``seconds`` counts all rounds, those before a resume included.

    ``stopped`` says why the run ended before its last round; None where it did not. ``picked`` is the round that agreed
    most with the teacher on held-out images, where its student was kept beside the last one.
    """

    info: RunInfo
    rounds: list[RoundRecord]
    final: Evaluation | None
    teacher_evaluation: Evaluation | None
    seconds: float
    files: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    picked: Picked | None = None


class Observer:
    """The base of everybody who watches a run: every hook does nothing until it is overridden.

    Observers look; none of them may change what is trained. One may end the run: see :meth:`rounded`.
    """

    def started(self, info: RunInfo) -> None:
        """Before the first round."""
        return

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        """Now and then inside a round: ``done`` of ``total`` steps of ``phase``."""
        return

    def rounded(self, record: RoundRecord) -> str | None:
        """After every round.

        Returns:
            None to go on, or why the run should end after this round, to follow "stopped after round 7 of 20: ".
            The run is then saved, evaluated, drawn, exported and reported as after its last round, its status is
            "stopped", and a resume goes on from there. With several processes those of process 0 decide.
        """
        return None

    def finished(self, result: RunResult) -> None:
        """After the last round, or the one after which the run was stopped."""
        return

    def ended(self, status: Ending) -> None:
        """When the run is over, however it ended: the last hook, called once, to close what :meth:`started` opened.

        A run that ends before its first round may not have called :meth:`started`. Where ``status`` is "interrupted" or
        "failed", what this raises is not told: the error that ended the run is.

        Args:
            status: "finished" or "stopped", both after :meth:`finished`; "interrupted" by a signal; or "failed".
        """
        return


class Keep(Observer):
    """An observer that keeps the rounds in memory, and what came of them."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.result: RunResult | None = None

    def rounded(self, record: RoundRecord) -> None:
        """Keep it."""
        self.records.append(record)

    def finished(self, result: RunResult) -> None:
        """Keep it."""
        self.result = result
