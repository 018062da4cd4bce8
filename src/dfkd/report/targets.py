"""STTS's figures about targets: how soft they are at each variance, and where they lie beside ZSKD's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd.nets.tail import find_tail
from dfkd.ops.labels import balanced_labels
from dfkd.ops.targets import dirichlet_concentration, draw_dirichlet, draw_normal

__all__ = ["maximum_over_sigma", "soft_labels"]


def maximum_over_sigma(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    sigmas: Sequence[float],
    generator: torch.Generator,
    layer: str = "auto",
    temperature: float = 1.0,
    draws: int = 2000,
) -> dict[float, float]:
    """Mean largest class probability of the multivariate normal targets, for each variance.

    Args:
        teacher: classifier in eval mode.
        image_shape: (c, h, w).
        sigmas: variances (the paper sweeps 0.5 to 3).
        generator: random stream on the teacher's device.
        layer: which layer is modelled, as ``STTS.layer``.
        temperature: of the softmax.
        draws: targets per variance.
    """
    rest = find_tail(teacher, image_shape, layer)
    softened = {s: torch.softmax(rest(draw_normal(rest.weight, draws, s, generator)) / temperature, 1) for s in sigmas}
    return {sigma: float(y.amax(dim=1).mean()) for sigma, y in softened.items()}


def soft_labels(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    sigma: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    draws: int = 500,
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """Soft labels (draws, K) of STTS and of ZSKD for one teacher, for :func:`~dfkd.report.scatter.tsne_figure`."""
    rest, last = find_tail(teacher, image_shape), find_tail(teacher, image_shape, "logits")
    normal = torch.softmax(rest(draw_normal(rest.weight, draws, sigma, generator)) / temperature, dim=1)
    labels = balanced_labels(draws, len(last.weight), generator, last.weight.device)
    dirichlet = draw_dirichlet(dirichlet_concentration(last.weight, beta), labels, generator).exp()
    return {"Dirichlet (ZSKD)": dirichlet, "normal (STTS)": normal}
