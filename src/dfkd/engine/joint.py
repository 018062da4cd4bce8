"""BatchNorm over the joint batch of several processes: its layers, and the statistics that losses look at.

Torch's own SyncBatchNorm needs CUDA and takes the layer's place; here the layer stays (its name, its weights, its
hooks), any backend of ``torch.distributed`` will do, and :func:`separate` undoes it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.ops.moments import moments
from dfkd.types import Moments

__all__ = ["join", "joint_moments", "separate", "unjoinable_paths"]


def join(module: nn.Module) -> nn.Module:
    """Let every BatchNorm layer of ``module`` normalise, in train mode, by the joint batch of all processes.

    Layers whose forward pass is not torch's own (:func:`unjoinable_paths`) stay as they are: they may do more than
    normalise.
    """
    for layer in _batch_norms(module):
        if _is_plain(layer):
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    return module


def separate(module: nn.Module) -> nn.Module:
    """Undo :func:`join`."""
    for layer in _batch_norms(module):
        if _is_joined(layer):
            del layer.forward
    return module


def unjoinable_paths(module: nn.Module) -> list[str]:
    """Paths of BatchNorm layers that :func:`join` leaves as they are: their forward pass is one of their own."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return [name for name, layer in layers.items() if not (_is_plain(layer) or _is_joined(layer))]


def _batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    return (layer for layer in module.modules() if isinstance(layer, _BatchNorm))


def _is_plain(layer: _BatchNorm) -> bool:
    """Does it normalise as torch does, and nothing else?"""
    return type(layer).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(layer)


def _is_joined(layer: _BatchNorm) -> bool:
    forward = vars(layer).get("forward")
    return isinstance(forward, partial) and forward.func is _forward


def joint_moments(x: Tensor) -> Moments:
    """Mean and biased variance per channel (dimension 1) over all processes' ``x``, in float32 at least.

    Differentiable: what any process's loss asks of them reaches every process's ``x``. Averaged over processes, the
    gradients of shared weights are those of the mean of the losses on the joint batch. Every process must call it,
    forward and backward, equally often.
    """
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    mean, var = _Joint.apply(x)
    return Moments(mean, var)


class _Joint(torch.autograd.Function):
    """One gather forward, one sum backward; ``dL/dx = (g_mean + 2 g_var (x − mean)) / m``, m values on all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        moments_here = moments(x)
        count = moments_here.mean.new_full((1,), x.numel() // x.shape[1])
        own_row = torch.cat([moments_here.mean, moments_here.var, count])
        rows = [torch.empty_like(own_row) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(rows, own_row)
        parts = torch.stack(rows)
        c = x.shape[1]
        n, means, variances = parts[:, -1:], parts[:, :c], parts[:, c : 2 * c]
        total = n.sum()
        mean = (n * means).sum(dim=0) / total
        # Each variance is around its own mean: no difference of large numbers.
        var = (n * (variances + (means - mean).square())).sum(dim=0) / total
        ctx.save_for_backward(x, mean, total)
        return mean, var

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_var: Tensor) -> Tensor:
        x, mean, total = ctx.saved_tensors
        sums = torch.cat([g_mean, g_var])
        torch.distributed.all_reduce(sums)
        shape = [1, -1] + [1] * (x.dim() - 2)
        slope = 2 * sums[len(mean) :] / total
        level = sums[: len(mean)] / total - slope * mean
        return torch.addcmul(level.view(shape).expand_as(x), x, slope.view(shape))


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What the layer does in eval mode; in train mode the same with joint moments."""
    if not layer.training:
        return type(layer).forward(layer, x)
    mean, var = joint_moments(x)
    _remember(layer, mean, var, x.numel() // x.shape[1] * torch.distributed.get_world_size())
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = torch.rsqrt(var + layer.eps)
    y = (x - mean.view(shape)) * scale.view(shape)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _remember(layer: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """The running statistics, with the unbiased variance, as the layer keeps them."""
    if not layer.track_running_stats:  # also set for one pass, see `dfkd.nets.modes.batch_statistics`
        return
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked += 1
    share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_((var * count / max(count - 1, 1)).to(layer.running_var.dtype), share)
