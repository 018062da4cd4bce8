"""What a method asks of a pair, each need with its test and its remedy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from dfkd.engine.core import Task

__all__ = ["Need"]


@dataclass(frozen=True)
class Need:
    """Something that a pair must offer. A method of your own may make new ones.

    Attributes:
        what: completes the sentence "<method> needs ...", and tells needs apart.
        met: does a task offer it?
        instead: what a task that does not has in its place, and what can be done about it: "<got>; <what to do>".
    """

    what: str
    met: Callable[["Task"], bool] = field(compare=False, repr=False)
    instead: Callable[["Task"], str] = field(compare=False, repr=False)

    BN: ClassVar["Need"]
    HEAD: ClassVar["Need"]
    SAME_HEAD: ClassVar["Need"]
    GRADIENT: ClassVar["Need"]
    STAGES: ClassVar["Need"]
    TEXT: ClassVar["Need"]
    WEB: ClassVar["Need"]
    REAL: ClassVar["Need"]

    @classmethod
    def sides_of(cls, multiple: int) -> "Need":
        """Images whose height and width are multiples of a number: two doublings need 4, three 8."""
        return cls(
            f"an image side that is a multiple of {multiple}",
            lambda task: all(side % multiple == 0 for side in task.image_shape[1:]),
            lambda task: (
                f"images of {task.image_shape[1]}x{task.image_shape[2]}; train a teacher on padded or resized images, "
                "or choose another method"
            ),
        )


def _teacher(task: "Task") -> str:
    return type(task.teacher.net).__name__


def _student(task: "Task") -> str:
    return type(task.student.net).__name__


Need.BN = Need(
    "a teacher with BatchNorm layers that keep running statistics",
    lambda task: bool(task.teacher.norms),
    lambda task: f"{_teacher(task)} without; choose another method",
)
Need.HEAD = Need(
    "a teacher whose classifier is one linear layer",
    lambda task: task.teacher.head is not None,
    lambda task: f"{_teacher(task)} without; name it (dfkd.Classifier, or --teacher.head) or choose another method",
)
Need.SAME_HEAD = Need(
    "a student whose classifier is one linear layer",
    lambda task: task.student.head is not None,
    lambda task: f"{_student(task)} without; name it (dfkd.Classifier, or --student.head) or choose another student",
)
Need.GRADIENT = Need(
    "a teacher that passes gradients to its images",
    lambda task: task.teacher.passes_gradients,
    lambda task: (
        f"{_teacher(task)}, which passes none, as quantized networks and networks without gradients do; give the "
        "network from before it was quantized, or choose a method that makes no images"
    ),
)
Need.STAGES = Need(
    "stage maps of equal size in teacher and student",
    lambda task: bool(task.teacher.stage_names) and bool(task.student.stage_names),
    lambda task: (
        f"none in {_teacher(task)} and {_student(task)}; name matching stages (dfkd.Classifier, --teacher.stages, "
        "--student.stages)"
    ),
)
Need.TEXT = Need(
    "one text embedding per class",
    lambda task: task.text is not None,
    lambda task: "none; give text, or class names",
)
Need.WEB = Need(
    "a pool of unlabelled images",
    lambda task: task.web is not None and len(task.web) > 0,
    lambda task: "none; give web (in the shell --data.web): a folder, a .npy file or .tar shards",
)
Need.REAL = Need(
    "real training images",
    lambda task: task.real is not None,
    lambda task: "none; give real (in the shell --data.real): a labelled image set",
)
