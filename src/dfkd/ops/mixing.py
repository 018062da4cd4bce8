"""Mixing image statistics (KD3's MixDistribution) and the Beta draws it and other mixtures need."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.types import Images, Labels, PerImage


class MixDraw(NamedTuple):
    """What a mixture of images draws: a share of its own per image, and the partner of each image."""

    lam: PerImage
    permutation: Labels


def draw_beta(alpha: float, beta: float, n: int, generator: torch.Generator) -> PerImage:
    """``n`` independent Beta(alpha, beta) numbers in [0, 1], float32, on the generator's device.

    Both parameters are above 0. ``torch.distributions`` takes no generator, hence the ratio of two Gammas,
    formed from their logarithms so that small parameters (where both Gammas underflow) stay exact.
    """
    first = _log_gamma_draw(alpha, n, generator)
    second = _log_gamma_draw(beta, n, generator)
    return torch.sigmoid(first - second)


def draw_mix(n: int, delta: float, generator: torch.Generator) -> MixDraw:
    """Beta(delta, delta) shares and a random permutation for ``n`` images, on the generator's device."""
    lam = draw_beta(delta, delta, n, generator)
    return MixDraw(lam, torch.randperm(n, generator=generator, device=generator.device))


def mix_distribution(images: Images, lam: PerImage, permutation: Labels, eps: float = 1e-6) -> Images:
    """Give each image a mixture of its own and a partner's channel means and deviations (KD3, eqs. 11-12).

    Statistics are per image and channel over positions; ``lam`` is the share of the image's own statistics (1
    is the identity), ``permutation`` names the partners; ``eps`` is added to the deviations, so that images of one
    colour stay what they are where the partner is such an image too. Any affine normalisation commutes with it (up
    to ``eps``). The result may leave [0, 1]; it is not clamped. The deviation of one colour has no gradient: mix
    images that ask for none, or that have no such channel.
    """
    mean = images.mean(dim=(2, 3), keepdim=True)
    std = images.std(dim=(2, 3), keepdim=True, correction=0) + eps
    weight = lam.to(images.dtype).view(-1, 1, 1, 1)
    gamma = weight * std + (1 - weight) * std[permutation]
    beta = weight * mean + (1 - weight) * mean[permutation]
    return gamma * ((images - mean) / std) + beta


def draw_mix_distribution(images: Images, delta: float, generator: torch.Generator) -> Images:
    """:func:`mix_distribution` with the shares and partners of :func:`draw_mix`."""
    return mix_distribution(images, *draw_mix(images.shape[0], delta, generator))


def _log_gamma_draw(shape: float, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Logarithms of Gamma(shape, 1) draws: Gamma(a) has the law of Gamma(a + 1) * U**(1 / a)."""
    shapes = torch.full((n,), shape + 1.0, device=generator.device)
    uniform = 1 - torch.rand(n, generator=generator, device=generator.device)  # in (0, 1]
    return torch._standard_gamma(shapes, generator=generator).log() + uniform.log() / shape
