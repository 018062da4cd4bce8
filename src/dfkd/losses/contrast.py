"""Contrastive losses (KD3, CMI) and KD3's weighted alignment of features."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dfkd.errors import UserError
from dfkd.types import Logits, PerImage, Scalar

Reduction = Literal["sum", "mean"]


def agreement_weight(student_logits: Logits, teacher_logits: Logits) -> PerImage:
    """Weight of an image by the agreement of the two networks (KD3, equation 9), a constant.

    ``1 - sigmoid(||p_S - p_T||_1)`` on probabilities, so it lies in [0.119, 0.5].
    """
    distance = (student_logits.softmax(dim=1) - teacher_logits.softmax(dim=1)).abs().sum(dim=1)
    return torch.sigmoid(-distance).detach()


def weighted_feature_alignment(
    student_features: Float[Tensor, "n d"],
    teacher_features: Float[Tensor, "n d"],
    weight: PerImage,
    reduction: Reduction = "mean",
) -> Scalar:
    """Mean over images of ``weight`` times the squared difference of features (KD3, equation 10).

    ``reduction`` is over the features of an image: their mean, or their sum, d times as large. The features are the
    inputs of the shared classifier; the teacher's are constants.
    """
    squares = (student_features - teacher_features.detach()).square()
    return (weight * (squares.mean(dim=1) if reduction == "mean" else squares.sum(dim=1))).mean()


def distribution_contrast(
    anchors: Float[Tensor, "n d"],
    perturbed: Float[Tensor, "n d"],
    temperature: float = 0.3,
    reduction: Reduction = "sum",
) -> Scalar:
    """KD3's contrastive loss between embeddings of clean and perturbed images (equations 15 and 16).

    ``-log[exp(sim_ii / t) / sum over j != i of exp(sim_ij / t)]`` with cosine similarity, summed (as the
    paper) or averaged over images. The positive is *not* in the denominator, so the loss can be negative.
    Rows need not have unit length. Raises ``UserError`` for fewer than two images, which leave no negatives.
    """
    if anchors.shape[0] < 2:
        raise UserError(
            "distribution_contrast needs at least 2 images, "
            f"got {anchors.shape[0]}; drop the last, smaller batch or use a larger one"
        )
    similarity = _cosine(anchors, perturbed) / temperature
    diagonal = torch.eye(anchors.shape[0], dtype=torch.bool, device=anchors.device)
    negatives = similarity.masked_fill(diagonal, float("-inf")).logsumexp(dim=1)
    losses = negatives - similarity.diagonal()
    return losses.sum() if reduction == "sum" else losses.mean()


def info_nce(anchors: Float[Tensor, "n d"], candidates: Float[Tensor, "m d"], temperature: float = 0.1) -> PerImage:
    """InfoNCE per anchor: the positive of row i is candidate i, all candidates are in the denominator.

    Cosine similarity; ``candidates`` has at least as many rows as ``anchors``.
    """
    similarity = _cosine(anchors, candidates) / temperature
    return similarity.logsumexp(dim=1) - similarity.diagonal()


def cmi_contrast(
    local: Float[Tensor, "n d"], global_: Float[Tensor, "n d"], fresh: int, temperature: float = 0.1
) -> Scalar:
    """CMI's contrastive loss of local views against global views, as coded.

    Rows ``[:fresh]`` belong to the batch being made, the rest to the bank. Every local view must find its own
    image among all global views, which are constants. The means over batch rows and over bank rows are added;
    with an empty bank the mean over the batch is the loss.
    """
    losses = info_nce(local, global_.detach(), temperature)
    if fresh >= local.shape[0]:
        return losses.mean()
    return losses[:fresh].mean() + losses[fresh:].mean()


def _cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
