"""Can the stage maps of teacher and student be compared, one by one?"""

import math

import torch

from dfkd.engine.core import Task
from dfkd.engine.probe import pools_last_map
from dfkd.errors import UserError
from dfkd.types import Maps

__all__ = ["equal_stages"]


def equal_stages(task: Task, who: str, pooled: bool = False) -> tuple[tuple[Maps, ...], tuple[Maps, ...]]:
    """The teacher's and the student's stage maps of one image (1, c, h, w), of equal heights and widths in pairs.

    Args:
        task: the pair; the networks keep their modes.
        who: the method that compares them, for messages.
        pooled: whether both heads must see the last map through global average pooling.

    Raises:
        UserError: sizes differ, or a head reads something else.
    """
    maps = []
    image = torch.linspace(0, 1, math.prod(task.image_shape), device=task.runtime.device).reshape(1, *task.image_shape)
    for role, probe in (("teacher", task.teacher), ("student", task.student)):
        mode = probe.training
        with torch.no_grad():
            readouts = probe.eval()(image, maps=True)
        probe.train(mode)
        maps.append(readouts.maps)
        if pooled and not pools_last_map(readouts):
            raise UserError(
                f"{who} needs a {role} whose head sees its last stage through global average pooling, got "
                f"{probe.stage_names[-1]}, {tuple(readouts.maps[-1].shape[1:])}, which is not what the head reads; "
                "name the stages (dfkd.Classifier, --teacher.stages, --student.stages) or choose another constraint"
            )
    teacher_maps, student_maps = maps
    if [m.shape[2:] for m in teacher_maps] != [m.shape[2:] for m in student_maps]:
        raise UserError(
            f"{who} needs stages of equal sizes, got {[tuple(m.shape[2:]) for m in teacher_maps]} and "
            f"{[tuple(m.shape[2:]) for m in student_maps]}; "
            "name matching stages (dfkd.Classifier, --teacher.stages, --student.stages)"
        )
    return teacher_maps, student_maps
