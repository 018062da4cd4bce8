"""A network beside its quantized copy: calibrated, and measured before and after training."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from dfkd.deploy.folders import FEWEST
from dfkd.engine.core import Task
from dfkd.engine.evaluate import evaluate, predictions
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.identity import network_bytes
from dfkd.inputs import runtime_of
from dfkd.lent import loan_of, put_back
from dfkd.nets.quantized import Bits, quantized_bytes
from dfkd.nets.ranges import check_ranges, ranges_of
from dfkd.nets.zoo import Classifier
from dfkd.ops.pixels import as_images
from dfkd.prepare import build_task, check_labelled
from dfkd.types import Bytes, Labels

__all__ = ["StageMeter", "Stage", "calibrate", "check_enough"]


@dataclass(frozen=True)
class Stage:
    """The network at one stage.

    Attributes:
        name: "fp32", "calibrated" (ranges only) or "trained".
        accuracy: on the test images, in [0, 1]; None without.
        agreement: share of test images to which it gives the class that fp32 gives; None without test images.
        synthetic_agreement: the same on synthetic images that calibrated nothing.
        bytes: of the weights, packed at their bits.
    """

    name: str
    accuracy: float | None
    agreement: float | None
    synthetic_agreement: float
    bytes: int


@torch.no_grad()
def calibrate(student: Probe, images: Bytes, batch_size: int = 64) -> None:
    """Let the ranges of activations grow over ``images``; weights and BatchNorm stay.

    Raises:
        UserError: fewer than 64 images, or a range that is not finite.
    """
    check_enough(images, FEWEST)
    device = next(student.parameters()).device
    student.eval()
    for _, ranges in ranges_of(student.net):
        ranges.train()
    for part in images.split(batch_size):
        student(as_images(part.to(device)))
    student.eval()
    check_ranges(student.net)


def check_enough(images: Bytes, calibration: int) -> None:
    """Refuse sets that are too small to tell the ranges.

    Raises:
        UserError: fewer than 64.
    """
    if calibration < FEWEST or len(images) < FEWEST:
        raise UserError(
            f"quantize needs at least {FEWEST} images to calibrate on, got {min(calibration, len(images))}; make more, "
            "with more warm-up rounds or a larger synthesis batch"
        )


class StageMeter:
    """Measures the float network and its quantized copy, before and after training."""

    def __init__(self, teacher: Classifier, student: Classifier, sections: dict[str, Any], bits: Bits) -> None:
        self.pair, self.sections, self.bits = (teacher, student), sections, bits

    def first_stages(self, images: Bytes) -> tuple[Stage, ...]:
        """The first two stages; every other image calibrates."""

        def look(task: Task, exam: tuple[Bytes, Labels] | None) -> tuple[Stage, ...]:
            calibrate(task.student, images[0::2])
            rest = images[1::2]
            return (
                self._stage("fp32", task.teacher, task, exam, rest),
                self._stage("calibrated", task.student, task, exam, rest),
            )

        return self._with_task(look)

    def last_stage(self, images: Bytes) -> Stage:
        """The last stage, on those of the same images that calibrated nothing."""
        return self._with_task(lambda task, exam: self._stage("trained", task.student, task, exam, images[1::2]))

    def _with_task(self, look: Callable[[Task, tuple[Bytes, Labels] | None], Any]) -> Any:
        data = self.sections["data"]
        with ExitStack() as stack:
            for classifier in self.pair:
                stack.callback(put_back, loan_of(classifier.net))
            task = build_task(*self.pair, data=data, text=None, runtime=runtime_of(self.sections["runtime"]).launch())
            stack.callback(task.teacher.release)
            stack.callback(task.student.release)
            return look(task, check_labelled(data.test, task, "test"))

    def _stage(self, name: str, net: Probe, task: Task, exam: tuple[Bytes, Labels] | None, synthetic: Bytes) -> Stage:
        net.eval()
        evaluation = None if exam is None else evaluate(net, *exam, task.classes, task.runtime, task.teacher)
        same = float("nan")
        if len(synthetic):
            pair = [predictions(classifier, synthetic, task.runtime) for classifier in (net, task.teacher)]
            same = float((pair[0] == pair[1]).double().mean())
        size = network_bytes(net.net) if name == "fp32" else quantized_bytes(net.net, self.bits)
        if evaluation is None:
            return Stage(name, None, None, same, size)
        return Stage(name, evaluation.accuracy, evaluation.agreement, same, size)
