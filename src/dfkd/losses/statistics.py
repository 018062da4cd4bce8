"""How far a batch's layer statistics are from the ones a teacher's BatchNorm layers stored.

Both arguments are lists over layers of :class:`~dfkd.types.Moments`: what the batch shows, what the layer stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd.types import Moments, Scalar

__all__ = ["blend_moments", "gaussian_divergence", "moment_distance", "update_moments"]


def moment_distance(batch: Sequence[Moments], stored: Sequence[Moments]) -> Scalar:
    """``Σ_l ‖μ̂_l − μ_l‖₂ + ‖v̂_l − v_l‖₂`` (DeepInversion; CMI, Fast, NAYER, Spaceship-Net). Norms are not squared."""
    terms: list[Tensor] = []
    for batch_layer, stored_layer in zip(batch, stored, strict=True):
        terms += [
            torch.linalg.vector_norm(batch_layer.mean - stored_layer.mean),
            torch.linalg.vector_norm(batch_layer.var - stored_layer.var),
        ]
    return torch.stack(terms).sum()


def gaussian_divergence(batch: Sequence[Moments], stored: Sequence[Moments], eps: float = 1e-5) -> Scalar:
    """``Σ_l Σ_c KL(N(μ̂, v̂) ‖ N(μ, v))``, the direction D3K's eq. 14 writes out.

    ``log(σ/σ̂) + (σ̂² + (μ̂ − μ)²) / (2σ²) − ½`` with ``eps`` added to both variances: a dead channel has variance 0.
    """
    terms: list[Tensor] = []
    for batch_layer, stored_layer in zip(batch, stored, strict=True):
        v_hat, v = batch_layer.var + eps, stored_layer.var + eps
        shift = (batch_layer.mean - stored_layer.mean).square()
        kl = 0.5 * (v.log() - v_hat.log()) + (v_hat + shift) / (2 * v) - 0.5
        terms.append(kl.sum())
    return torch.stack(terms).sum()


def blend_moments(batch: Sequence[Moments], average: Sequence[Moments], momentum: float) -> list[Moments]:
    """``(1 − m) · batch + m · average``: the statistics of the recent stream rather than of one batch (Fast, NAYER)."""
    return [
        Moments(torch.lerp(new.mean, old.mean, momentum), torch.lerp(new.var, old.var, momentum))
        for new, old in zip(batch, average, strict=True)
    ]


def update_moments(average: Sequence[Moments], batch: Sequence[Moments], momentum: float) -> list[Moments]:
    """The moving average after one more batch, ``m · average + (1 − m) · batch``; an empty average starts at it."""
    constants = [Moments(moments.mean.detach(), moments.var.detach()) for moments in batch]
    return blend_moments(constants, average, momentum) if average else constants
