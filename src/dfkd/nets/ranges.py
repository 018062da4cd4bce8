"""Ranges of quantized activations: they grow in training, and stay when that is over."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dfkd.errors import UserError

__all__ = ["SMALLEST", "Largest", "check_ranges", "freeze_ranges", "ranges_of"]

SMALLEST = 1e-10  # of a range: a channel of equal weights, or a ReLU that never fires


class Largest(nn.Module):
    """The range of an activation that is never negative: its largest value so far. It grows in train mode only."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))
        self.growing = True

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        """The range over the number of steps, ``threshold``."""
        if self.training and self.growing:
            self.largest.copy_(torch.maximum(self.largest, x.detach().amax().to(self.largest.dtype)))
        largest = self.largest.clamp(min=SMALLEST)
        return largest if threshold is None else largest / threshold


def ranges_of(net: nn.Module) -> Iterator[tuple[str, Largest]]:
    """The ranges of activations by the path of their ReLU."""
    for path, module in net.named_modules():
        if isinstance(module, Largest):
            yield path.partition(".1.act_quant")[0], module


def freeze_ranges(net: nn.Module, frozen: bool = True) -> nn.Module:
    """From now on the ranges of activations stay as they are, in train mode too."""
    for _, activation_range in ranges_of(net):
        activation_range.growing = not frozen
    return net


def check_ranges(net: nn.Module) -> None:
    """Refuse scales that are not finite, by the name of the layer.

    Raises:
        UserError: NaN or infinity in a range of activations or in a weight.
    """
    for path, activation_range in ranges_of(net):
        value = float(activation_range.largest)
        if not value < float("inf"):
            raise UserError(
                f"quantize needs finite scales, got a range of {value} after the layer {path!r}; calibrate on more "
                "images, or use more bits"
            )
    for path, weight in net.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"quantize needs finite scales, got NaN or infinity in the weight {path!r}; use a lower plan.lr or "
                "more bits"
            )
