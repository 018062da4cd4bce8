"""The teacher, looked at before a run: is it trained, and does it know the test images?"""

from torch import Tensor

from dfkd.engine.anatomy import Anatomy
from dfkd.engine.core import Task
from dfkd.engine.evaluate import evaluate, predictions
from dfkd.engine.records import Evaluation
from dfkd.errors import UserError

__all__ = ["check_teacher", "check_varies"]


def check_varies(teacher: Anatomy) -> None:
    """No image says anything about a teacher that answers the same to all."""
    if teacher.constant:
        raise UserError(
            "teacher needs logits that depend on the image, got the same for all of several noise images; load its "
            "trained weights"
        )


def check_teacher(task: Task, test: tuple[Tensor, Tensor] | None) -> Evaluation | None:
    """The teacher on the test images; a teacher at chance means wrong normalisation, label order or weights."""
    if test is None:
        return None
    guess = predictions(task.teacher, test[0], task.runtime)
    first = evaluate(task.teacher, *test, task.classes, task.runtime, guess)
    chance = 1 / task.classes
    luck = 3 * (chance * (1 - chance) / first.images) ** 0.5
    if first.accuracy < chance + luck and task.classes > 1 and first.images >= 100:
        raise UserError(
            f"teacher needs to do better than chance on the test images, got {first.accuracy:.1%} with {task.classes} "
            "classes; check mean and std, the label order and the weights"
        )
    return first
