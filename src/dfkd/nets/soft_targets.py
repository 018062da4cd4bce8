"""STTS's figures about targets: how soft they are at each variance, and where they lie beside ZSKD's."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfkd.nets.outputs import class_rows
from dfkd.nets.tail import find_tail
from dfkd.ops.labels import balanced_labels
from dfkd.ops.targets import dirichlet_concentration, draw_dirichlet, draw_normal

__all__ = ["maximum_over_sigma", "modelled", "soft_labels"]

Space = Literal["logits", "pre_act", "post_act"]


def modelled(
    teacher: nn.Module, image_shape: tuple[int, int, int], layer: str = "auto", space: Space = "pre_act"
) -> str:
    """What the normal distribution is over, in words: the logits, or the output of a layer or of its activation."""
    rest = find_tail(teacher, image_shape, layer, space)
    return (
        "the logits"
        if rest.last
        else f"the output of {'' if space == 'pre_act' else 'the activation after '}{rest.layer}"
    )


def maximum_over_sigma(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    sigmas: Sequence[float],
    generator: torch.Generator,
    layer: str = "auto",
    temperature: float = 1.0,
    draws: int = 2000,
    space: Space = "pre_act",
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
        space: what the draws are, as ``STTS.space``.
    """
    rest = find_tail(teacher, image_shape, layer, space)
    softened = {s: torch.softmax(rest(draw_normal(rest.weight, draws, s, generator)) / temperature, 1) for s in sigmas}
    return {sigma: float(y.amax(dim=1).mean()) for sigma, y in softened.items()}


def soft_labels(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    sigma: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    draws: int = 500,
    betas: Sequence[float] = (1.0,),
    layer: str = "auto",
    space: Space = "pre_act",
    dirichlet: Literal["fixed", "coded"] = "fixed",
) -> dict[str, Tensor]:
    """Soft labels (draws, K) of STTS and of ZSKD for one teacher, for :func:`~dfkd.report.scatter.tsne_figure`.

    Args:
        teacher: classifier in eval mode, whose classifier is one linear layer.
        image_shape: (c, h, w).
        sigma, layer, space, temperature: of the normal targets, as in ``STTS``.
        generator: random stream on the teacher's device.
        draws: of each kind.
        betas, dirichlet: scales of the Dirichlet targets, in equal shares, and their order, as in ``STTS``.
    """
    rest, last = find_tail(teacher, image_shape, layer, space), find_tail(teacher, image_shape, "logits")
    normal = torch.softmax(rest(draw_normal(rest.weight, draws, sigma, generator)) / temperature, dim=1)
    weights = class_rows(last.weight)
    classes, device = len(weights), weights.device
    labels = balanced_labels(draws, classes, generator, device)
    labels = labels[torch.randperm(draws, generator=generator, device=device)]  # any β for any class
    rows = torch.cat([dirichlet_concentration(weights, beta, dirichlet) for beta in betas])
    share = torch.arange(draws, device=device) * len(betas) // draws
    zskd = draw_dirichlet(rows, labels + share * classes, generator).exp()
    return {"Dirichlet": zskd, "normal": normal}
