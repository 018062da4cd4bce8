"""Mean and variance of a layer's input, differentiable, at the speed of a BatchNorm layer."""

from typing import Any

import torch
from torch import Tensor

from dfkd.types import Moments

__all__ = ["moments"]


def moments(x: Tensor) -> Moments:
    """Mean and biased variance per channel (dimension 1) of ``x`` (n, c, ...), in float32 at least.

    On the CPU this asks the first half of the BatchNorm kernel, whose statistics of a channels-last map come many
    times quicker than ``torch.var_mean``'s, and in the same precision as the running statistics they are compared with.
    """
    if x.device.type == "cpu":
        mean, var = _Moments.apply(x)
        return Moments(mean, var)
    var, mean = torch.var_mean(_at_least_float32(x), dim=[0, *range(2, x.dim())], correction=0)
    return Moments(mean, var)


class _Moments(torch.autograd.Function):
    """``dL/dx = (g_mean + 2 g_var (x − mean)) / m`` with m values per channel.

    What is kept for the backward pass is ``x`` in its own precision, which the layer keeps anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.batch_norm_update_stats(_at_least_float32(x), None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.dim() - 2)
        slope = 2 * g_var / (x.numel() // x.shape[1])
        level = g_mean / (x.numel() // x.shape[1]) - slope * mean
        return torch.addcmul(level.view(shape).expand_as(x), _at_least_float32(x), slope.view(shape)).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
