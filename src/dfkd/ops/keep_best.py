"""The images (or features) of the step with the lowest loss, without asking the device for the loss."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.types import Scalar

__all__ = ["Best", "keep_best", "no_best"]


class Best(NamedTuple):
    """The lowest loss so far and the images that had it."""

    loss: Scalar
    images: Float[Tensor, "n *rest"]


def no_best(images: Tensor) -> Best:
    """A start that any finite loss beats; ``images`` stand in should every loss be NaN."""
    return Best(torch.full((), torch.inf, device=images.device), images.detach())


def keep_best(best: Best, loss: Scalar, images: Float[Tensor, "n *rest"]) -> Best:
    """``best``, or this step's loss and images if lower. Copies: the images may be overwritten in place later."""
    better = loss.detach() < best.loss
    return Best(torch.where(better, loss.detach(), best.loss), torch.where(better, images.detach(), best.images))
