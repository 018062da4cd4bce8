"""STTS's figures about targets: how soft they are at each variance, and where they lie beside ZSKD's."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dfkd.nets.outputs import class_rows
from dfkd.nets.tail import find_tail
from dfkd.ops.labels import balanced_labels
from dfkd.ops.targets import check_class_rows, dirichlet_concentration, draw_dirichlet, draw_normal

__all__ = ["SoftLabels", "maxima_over_sigma", "maximum_over_sigma", "modelled_output", "soft_labels"]

Space = Literal["logits", "pre_act", "post_act"]


def modelled_output(
    teacher: nn.Module, image_shape: tuple[int, int, int], layer: str = "auto", space: Space = "pre_act"
) -> str:
    """What the normal distribution is over, in words: the logits, or the output of a layer or of its activation."""
    rest = find_tail(teacher, image_shape, layer, space)
    return (
        "the logits"
        if rest.models_logits
        else f"the output of {'' if space == 'pre_act' else 'the activation after '}{rest.layer}"
    )


class SoftLabels(NamedTuple):
    """Targets of both kinds (draws, K), and the class that each Dirichlet draw was meant for (draws,)."""

    normal: Tensor
    dirichlet: Tensor
    intended: Tensor

    @property
    def groups(self) -> dict[str, Tensor]:
        """Both kinds by name, as :func:`~dfkd.report.scatter.tsne_figure` takes them."""
        return {"Dirichlet": self.dirichlet, "normal": self.normal}

    @property
    def mismatch(self) -> float:
        """The share of Dirichlet draws whose largest class is not the intended one."""
        return float((self.dirichlet.argmax(dim=1) != self.intended).float().mean())


def maxima_over_sigma(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    sigmas: Sequence[float],
    generator: torch.Generator,
    layer: str = "auto",
    temperature: float = 1.0,
    draws: int = 2000,
    space: Space = "pre_act",
) -> dict[float, Tensor]:
    """The largest class probability of each normal target (draws,), for each variance; see ``maximum_over_sigma``."""
    rest = find_tail(teacher, image_shape, layer, space)
    probabilities = {
        s: torch.softmax(rest(draw_normal(rest.weight, draws, s, generator)) / temperature, 1) for s in sigmas
    }
    return {sigma: y.amax(dim=1) for sigma, y in probabilities.items()}


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
    maxima = maxima_over_sigma(teacher, image_shape, sigmas, generator, layer, temperature, draws, space)
    return {sigma: float(values.mean()) for sigma, values in maxima.items()}


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
) -> SoftLabels:
    """Soft labels of STTS and of ZSKD for one teacher, with the classes that the latter are meant for.

    Args:
        teacher: classifier in eval mode, whose classifier is one linear layer.
        image_shape: (c, h, w).
        sigma, layer, space, temperature: of the normal targets, as in ``STTS``.
        generator: random stream on the teacher's device.
        draws: of each kind.
        betas, dirichlet: scales of the Dirichlet targets, in equal shares, and their order, as in ``STTS``.

    Raises:
        UserError: a classifier of which a row has no direction, such as one of zeros.
    """
    rest, last = find_tail(teacher, image_shape, layer, space), find_tail(teacher, image_shape, "logits")
    normal = torch.softmax(rest(draw_normal(rest.weight, draws, sigma, generator)) / temperature, dim=1)
    weights = class_rows(last.weight)
    check_class_rows(weights)
    classes, device = len(weights), weights.device
    labels = balanced_labels(draws, classes, generator, device)
    labels = labels[torch.randperm(draws, generator=generator, device=device)]  # any β for any class
    rows = torch.cat([dirichlet_concentration(weights, beta, dirichlet) for beta in betas])
    share = torch.arange(draws, device=device) * len(betas) // draws
    zskd = draw_dirichlet(rows, labels + share * classes, generator).exp()
    return SoftLabels(normal, zskd, labels)
