"""Students for a teacher: which networks are smaller, and which of them to try."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.nets.count import count_macs, count_parameters
from dfkd.nets.zoo import ZOO, build, check_image_shape

__all__ = ["Candidate", "one_pass", "shortlist", "students_for"]

SHARES = (1 / 2, 1 / 4, 1 / 10)  # of the teacher's multiply-adds: the students that are tried
TIMM = ("resnet10t", "mobilenetv3_small_050", "mobilenetv3_small_100", "mnasnet_small", "efficientnet_lite0")
TIMM_SIDE = 64  # pixels below which the networks of timm reduce an image to nothing


@dataclass(frozen=True)
class Candidate:
    """A network that may become the student.

    Attributes:
        name: as `dfkd distill --student` takes it.
        parameters, macs: its size; multiply-adds of one image, None where they cannot be counted.
        seconds: median time of one image; ``speedup``: of the teacher's over its own.
    """

    name: str
    parameters: int
    macs: int | None
    seconds: float
    speedup: float

    def work_share(self, teacher: "Candidate") -> float:
        """Its work for an image as a share of the teacher's: of multiply-adds, or of time where these are not known."""
        if self.macs is None or not teacher.macs:
            return 1 / self.speedup
        return self.macs / teacher.macs


def students_for(
    teacher: nn.Module, shape: tuple[int, int, int], classes: int, names: Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """The networks that take such images and are smaller than the teacher, with fresh weights.

    Smaller: fewer parameters and fewer multiply-adds.

    Args:
        teacher: the network.
        shape: of its images.
        classes: K.
        names: of networks; with them, those that are larger stay.

    Raises:
        UserError: a name that is not known, or a network that does not take such images.
    """
    most, size = count_macs(teacher, shape), count_parameters(teacher)
    timm = importlib.util.find_spec("timm") is not None and min(shape[1:]) >= TIMM_SIDE
    students = {}
    for name in names if names is not None else (*ZOO, *(f"timm:{name}" for name in TIMM if timm)):
        try:
            check_image_shape(name, shape)
            if names is None and ":" not in name and _parameters(name, classes, shape[0]) >= size:
                continue
            net = build(name, classes, shape[0]).net
        except UserError:
            if names is not None:
                raise
            continue
        macs = count_macs(net, shape)
        if names is not None or (macs is not None and count_parameters(net) < size and (most is None or macs < most)):
            students[name] = net.eval()
    return students


def _parameters(name: str, classes: int, channels: int) -> int:
    """Of a network of the zoo, which is not made for it."""
    with torch.device("meta"):
        return count_parameters(build(name, classes, channels).net)


def shortlist(students: Sequence[Candidate], teacher: Candidate) -> list[Candidate]:
    """Those nearest to a half, a quarter and a tenth of the teacher's work for an image, the largest first."""
    chosen: dict[str, Candidate] = {}
    for share in SHARES:
        left = [student for student in students if student.name not in chosen]
        if left:
            near = min(left, key=lambda student: abs(math.log(max(student.work_share(teacher), 1e-9) / share)))
            chosen[near.name] = near
    return sorted(chosen.values(), key=lambda student: -student.work_share(teacher))


def one_pass(net: nn.Module, image: Tensor) -> Callable[[], object]:
    """One pass, to its end."""

    def once() -> None:
        with torch.no_grad():
            net(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)

    return once
