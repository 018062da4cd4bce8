"""D3K's generator: three doublings whose widths and kernel sizes are drawn, alone or as a slice of a larger one."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.ops.doubling import doubled_conv, folding_matrix
from dfkd.types import Images

__all__ = ["SubnetShape", "SuperNet", "check_ranges", "draw_subnet"]

Init = Literal["normal", "torch"]


class SubnetShape(NamedTuple):
    """Channels before the three convolutions, and their (odd) kernel sizes."""

    widths: tuple[int, int, int]
    kernels: tuple[int, int, int]


def check_ranges(widths: tuple[int, int], kernels: Sequence[int]) -> None:
    """Refuse ranges :func:`draw_subnet` cannot draw from.

    Raises:
        UserError: widths that are not two numbers, an empty range of them, or a kernel size that is not odd.
    """
    if len(widths) != 2:
        raise UserError(f"subnet needs widths as two numbers, the least and the most, got {widths}; change widths")
    low, high = widths
    if not 1 <= low <= high:
        raise UserError(f"subnet needs widths from at least 1 channel upwards, got {low} to {high}; change widths")
    if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
        raise UserError(f"subnet needs odd kernel sizes, got {tuple(kernels)}; use for example (3, 5)")


def draw_subnet(widths: tuple[int, int], kernels: Sequence[int]) -> SubnetShape:
    """Independent uniform widths between ``widths`` (both included) and kernel sizes among ``kernels``.

    From torch's default stream on the CPU: every process draws the same one, and no device is waited for.
    """
    a, b, c = torch.randint(widths[0], widths[1] + 1, (3,)).tolist()
    i, j, k = torch.randint(len(kernels), (3,)).tolist()
    return SubnetShape((a, b, c), (kernels[i], kernels[j], kernels[k]))


class SuperNet(nn.Module):
    """The generator of D3K's Table I, as large as ``shape``; any smaller one is a slice of it.

    ``Linear -> BN -> x2 -> conv -> BN -> LeakyReLU -> x2 -> conv -> BN -> x2 -> conv -> sigmoid`` from side / 8. The
    linear layer and the sigmoid are not in the table. A slice uses the first channels of every layer and the middle of
    every kernel. BatchNorm always uses the statistics of the batch: these networks do not live long enough for others.

    Args:
        inputs: length of the code z.
        image_shape: (c, h, w), sides multiples of 8.
        shape: widths and kernels of the whole network.
        init: ``"normal"`` (N(0, 0.02), BatchNorm N(1, 0.02), as CMI) or ``"torch"`` (PyTorch's default ranges).
        device: where the parameters are made; they come from that device's default stream.
    """

    def __init__(
        self,
        inputs: int,
        image_shape: tuple[int, int, int],
        shape: SubnetShape,
        init: Init = "normal",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        channels, h, w = image_shape
        self.start, self.shape = (h // 8, w // 8), shape
        outputs = (*shape.widths[1:], channels)
        cells = self.start[0] * self.start[1]
        self.project = _parameter(shape.widths[0], cells, inputs, device=device)
        self.project_bias = _parameter(shape.widths[0], cells, device=device)
        self.kernels = nn.ParameterList(
            _parameter(o, i, k, k, device=device) for o, i, k in zip(outputs, shape.widths, shape.kernels, strict=True)
        )
        self.paint_bias = _parameter(channels, device=device)
        self.gains = nn.ParameterList(_parameter(width, device=device) for width in shape.widths)
        self.shifts = nn.ParameterList(_parameter(width, device=device) for width in shape.widths)
        for side in range(1, max(shape.kernels) + 1, 2):
            self.register_buffer(f"fold{side}", folding_matrix(side).to(device), persistent=False)
        self.redraw(init)

    @torch.no_grad()
    def redraw(self, init: Init = "normal") -> None:
        """Initialise everything anew from the default stream."""
        for weight in (self.project, *self.kernels):
            if init == "normal":
                weight.normal_(0, 0.02)
            else:
                weight.uniform_(-_bound(weight), _bound(weight))
        for gain, shift in zip(self.gains, self.shifts, strict=True):
            gain.normal_(1, 0.02) if init == "normal" else gain.fill_(1)
            shift.zero_()
        for bias, weight in ((self.project_bias, self.project), (self.paint_bias, self.kernels[-1])):
            bias.zero_() if init == "normal" else bias.uniform_(-_bound(weight), _bound(weight))

    def forward(self, z: Tensor, shape: SubnetShape | None = None) -> Images:
        """Codes (n, inputs) to images (n, c, h, w) in [0, 1], through the slice ``shape`` (default: everything)."""
        widths, sides = shape or self.shape
        first = widths[0]
        x = F.linear(z, self.project[:first].flatten(0, 1), self.project_bias[:first].flatten())
        x = self._norm(x.unflatten(1, (first, *self.start)), 0)
        x = F.leaky_relu(self._norm(self._double(x, 0, widths[1], sides[0]), 1), 0.2)
        x = self._norm(self._double(x, 1, widths[2], sides[1]), 2)
        return torch.sigmoid(self._double(x, 2, len(self.paint_bias), sides[2], self.paint_bias))

    def _norm(self, x: Tensor, layer: int) -> Tensor:
        c = x.shape[1]
        return F.batch_norm(x, None, None, self.gains[layer][:c], self.shifts[layer][:c], training=True)

    def _double(self, x: Tensor, layer: int, outputs: int, side: int, bias: Tensor | None = None) -> Tensor:
        """The next doubling and convolution."""
        kernel = self.kernels[layer]
        edge = (kernel.shape[-1] - side) // 2
        middle = slice(edge, edge + side)
        return doubled_conv(x, kernel[:outputs, : x.shape[1], middle, middle], bias, self.get_buffer(f"fold{side}"))


def _parameter(*shape: int, device: torch.device | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device))


def _bound(weight: Tensor) -> float:
    """``1 / sqrt(fan in)``, PyTorch's range for the weights and biases of linear and convolutional layers."""
    fan_in = weight.shape[-1] if weight.dim() == 3 else math.prod(weight.shape[1:])
    return 1 / math.sqrt(fan_in)
