"""Soft targets drawn from a classifier's weights: multivariate normal (STTS) and Dirichlet (ZSKD).

Both return *logits of the target*, so that one divergence serves both.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dfkd.errors import UserError
from dfkd.types import Labels, Logits

__all__ = ["check_class_rows", "class_correlation", "dirichlet_concentration", "draw_dirichlet", "draw_normal"]

Weight = Float[Tensor, "k d"]

FLOOR = 1e-4  # added to every concentration (ZSKD's code)


def class_correlation(weight: Weight) -> Float[Tensor, "k k"]:
    """Cosine similarity of the rows of a linear layer's weight (STTS, equation 5); the bias is ignored."""
    rows = F.normalize(weight, dim=1)
    return rows @ rows.T


def draw_normal(weight: Weight, n: int, sigma: float, generator: torch.Generator) -> Float[Tensor, "n k"]:
    """``n`` draws from N(0, sigma R), with R the :func:`class_correlation` of ``weight``.

    ``sigma`` is the common *variance* of the units (STTS's D holds square roots). With normalised rows W and
    standard normal e the vector ``sqrt(sigma) W e`` has exactly this covariance, also where R is singular
    (k > d), so nothing is factorised.
    """
    rows = F.normalize(weight, dim=1)
    noise = torch.randn(n, weight.shape[1], generator=generator, device=generator.device, dtype=weight.dtype)
    return noise @ rows.T * sigma**0.5


def dirichlet_concentration(
    weight: Weight, beta: float, scaling: Literal["fixed", "coded"] = "fixed"
) -> Float[Tensor, "k k"]:
    """Row k: the concentration of the soft labels of class k (ZSKD): its similarity to every class, times ``beta``.

    The :func:`class_correlation` is min-max scaled over the whole matrix, then per row to [0, 1], times ``beta``,
    plus 1e-4. ``"coded"`` multiplies by ``beta`` before the scaling per row, as the authors' code does, which
    cancels it: then every ``beta`` gives the concentrations of ``beta = 1``. NaN in a row that
    :func:`check_class_rows` refuses.
    """
    c = class_correlation(weight)
    c = (c - c.min()) / (c.max() - c.min())
    before, after = (beta, 1.0) if scaling == "coded" else (1.0, beta)
    c = c * before
    low, high = c.amin(dim=1, keepdim=True), c.amax(dim=1, keepdim=True)
    return (c - low) / (high - low) * after + FLOOR


def check_class_rows(weight: Weight) -> None:
    """Every class is more like some class than like another, so that :func:`dirichlet_concentration` can scale its row.

    Raises:
        UserError: naming the first class that is not, as one whose weights are all 0.
    """
    c = class_correlation(weight)
    flat = (c.amin(dim=1) == c.amax(dim=1)).nonzero().flatten().tolist()
    if flat:
        reason = "all 0" if bool((weight[flat[0]] == 0).all()) else "in the direction of those of every class"
        raise UserError(
            "Dirichlet targets need a classifier whose weight rows differ in direction, got weights that are "
            f"{reason} in row {flat[0]}; train this class, or draw normal targets"
        )


def draw_dirichlet(concentration: Float[Tensor, "k c"], classes: Labels, generator: torch.Generator) -> Logits:
    """The logarithm of one Dirichlet draw per entry of ``classes``, from that row of ``concentration``.

    Finite also where the probability itself underflows: a Gamma(a) number is formed as Gamma(a + 1) U^(1/a) by
    logarithms. ``torch.distributions`` takes no generator.
    """
    a = concentration[classes]
    uniform = 1 - torch.rand(a.shape, generator=generator, device=a.device, dtype=a.dtype)  # in (0, 1]
    log_gamma = torch._standard_gamma(a + 1, generator=generator).log() + uniform.log() / a
    return log_gamma.log_softmax(dim=1)
