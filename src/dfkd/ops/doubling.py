"""A convolution of a doubled map, at the cost of one of the map itself.

Nearest-neighbour doubling repeats every pixel four times, so an odd k x k kernel that slides over the doubled map meets
each pixel of the small one several times. Its weights may be added up first: for each of the four positions in a 2 x 2
block one kernel of side (k + 1) / 2 is left, and it reads the small map. Products: (k + 1)² / 4 instead of k², 4 for 9
and 9 for 25; and no doubled map is ever stored. The result is the same up to rounding.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["DoublingConv", "doubled_conv", "folding_matrix"]


def folding_matrix(side: int) -> Tensor:
    """The matrix that adds up an odd kernel's weights (float32, 4 m² x side², m = (side + 1) / 2).

    Row (a, b, p, q) says which weights meet, at the place (a, b) of a 2 x 2 block, pixel (p, q) of the window that the
    block's kernel sees: weight r of -h .. h reads doubled row 2i + a + r, which is small row i + floor((a + r) / 2).
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"folding_matrix needs an odd kernel, got side {side}")
    h = side // 2
    line = torch.zeros(2, h + 1, side)
    for a in (0, 1):
        first = (a - h) // 2
        for r in range(-h, h + 1):
            line[a, (a + r) // 2 - first, r + h] = 1
    return torch.einsum("apk,bql->abpqkl", line, line).reshape(4 * (h + 1) ** 2, side**2)


def doubled_conv(x: Tensor, weight: Tensor, bias: Tensor | None, fold: Tensor) -> Tensor:
    """``conv2d(upsample(x, 2), weight, bias, padding=k // 2)``, nearest-neighbour, k odd.

    Args:
        x: (n, i, h, w).
        weight: (o, i, k, k).
        bias: (o,), or None.
        fold: ``folding_matrix(k)`` on the device of ``weight``.

    Returns:
        (n, o, 2h, 2w), in the memory format of the convolution's output.
    """
    o, i, k, _ = weight.shape
    m = (k + 1) // 2
    # Sums of weights before any rounding to half precision, which the convolution itself then does once.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        kernel = (weight.flatten(2) @ fold.to(weight.dtype).T).view(o, i, 4, m, m).permute(2, 0, 1, 3, 4).flatten(0, 1)
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    blocks = F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=m // 2)
    interleaved: Tensor = _Interleave.apply(blocks, o, m % 2 == 0)
    return interleaved


class DoublingConv(nn.Conv2d):
    """``nn.Upsample(scale_factor=2)`` and a convolution that keeps the size, as one layer; parameters as ``nn.Conv2d``.

    Args:
        inputs, outputs: channels.
        side: of the kernel, odd.
        bias: whether there is one.
    """

    fold: Tensor

    def __init__(self, inputs: int, outputs: int, side: int = 3, bias: bool = False) -> None:
        super().__init__(inputs, outputs, side, padding=side // 2, bias=bias)
        self.register_buffer("fold", folding_matrix(side), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, 2h, 2w)."""
        return doubled_conv(x, self.weight, self.bias, self.fold)


class _Interleave(torch.autograd.Function):
    """The four positions' maps (n, 4 o, h, w), or one row and column more, to the map they make (n, o, 2h, 2w)."""

    @staticmethod
    def forward(ctx: FunctionCtx, blocks: Tensor, outputs: int, shifted: bool) -> Tensor:
        n, _, h, w = blocks.shape
        h, w = h - shifted, w - shifted
        ctx.made = blocks.shape, outputs, shifted  # type: ignore[attr-defined]
        last = blocks.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if last else torch.contiguous_format  # type: ignore[attr-defined]
        size = (n, outputs, 2 * h, 2 * w)
        image = torch.empty(size, dtype=blocks.dtype, device=blocks.device, memory_format=ctx.format)  # type: ignore[attr-defined]
        image.unflatten(3, (w, 2)).unflatten(2, (h, 2)).copy_(_places(blocks, outputs, shifted))
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        shape, outputs, shifted = ctx.made  # type: ignore[attr-defined]
        h, w = shape[2] - shifted, shape[3] - shifted
        blocks = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.format)  # type: ignore[attr-defined]
        if shifted:  # a row and a column of each are read by nobody
            blocks.zero_()
        _places(blocks, outputs, shifted).copy_(gradient.unflatten(3, (w, 2)).unflatten(2, (h, 2)))
        return blocks, None, None


def _places(blocks: Tensor, outputs: int, shifted: bool) -> Tensor:
    """A view (n, o, h, 2, w, 2) of maps (n, (a, b, o), h, w); a kernel of even side finds place (1, ·) a row lower."""
    n, _, h, w = blocks.shape
    sn, sc, sh, sw = blocks.stride()
    down, right = shifted * sh + 2 * outputs * sc, shifted * sw + outputs * sc
    return blocks.as_strided((n, outputs, h - shifted, 2, w - shifted, 2), (sn, sc, sh, down, sw, right))
