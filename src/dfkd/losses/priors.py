"""Priors on images and on networks' answers: total variation, norm, activation, class balance, disagreement."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dfkd.types import Images, Logits, Scalar


def total_variation_l2(images: Images) -> Scalar:
    """Sum of the Frobenius norms, over the whole batch, of the four neighbour differences (DeepInversion)."""
    norms = [torch.linalg.vector_norm(difference) for difference in _neighbour_differences(images)]
    return torch.stack(norms).sum()


def total_variation_l1(images: Images) -> Scalar:
    """Sum of the mean absolute values of the four neighbour differences (CMI's DeepInversion)."""
    means = [difference.abs().mean() for difference in _neighbour_differences(images)]
    return torch.stack(means).sum()


def image_norm(images: Images, per: Literal["batch", "image"] = "batch") -> Scalar:
    """Euclidean norm of the whole batch (DeepInversion on CIFAR), or the mean over images (on ImageNet)."""
    if per == "batch":
        return torch.linalg.vector_norm(images)
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()


def activation_loss(features: Float[Tensor, "n *shape"], reduction: Literal["mean", "sum"] = "mean") -> Scalar:
    """Reward for large activations: minus the mean absolute value (DAFL), or minus the L1 norm (STTS).

    The L1 norm (``"sum"``) is over the units of an image, averaged over images.
    """
    if reduction == "mean":
        return -features.abs().mean()
    return -features.abs().flatten(1).sum(dim=1).mean()


def class_balance(logits: Logits, base: float = math.e) -> Scalar:
    """Negative entropy of the mean prediction of a batch: lowest when all classes are equally frequent.

    ``sum_k p_k log p_k`` with ``p`` the batch mean of the softmax; DAFL's code takes ``base=10``, CMI's the
    natural logarithm. Finite, with finite gradients, also where a class has no probability left.
    """
    log_mean = logits.log_softmax(dim=1).logsumexp(dim=0) - math.log(logits.shape[0])
    return (log_mean.exp() * log_mean).sum() / math.log(base)


def jensen_shannon_as_coded(
    student_logits: Float[Tensor, "n k"], teacher_logits: Float[Tensor, "n k"], temperature: float = 3.0
) -> Scalar:
    """The divergence Adaptive DeepInversion's code calls Jensen-Shannon; not clamped to [0, 1].

    With P, Q the softened predictions of student and teacher and M their mean, all three clamped to
    [0.01, 0.99] (and so no longer distributions): ``KL(M || P) / 2 + KL(M || Q) / 2``, summed over classes,
    averaged over images. The textbook has P and Q on the left.
    """
    p = F.softmax(student_logits / temperature, dim=1)
    q = F.softmax(teacher_logits / temperature, dim=1)
    m = ((p + q) / 2).clamp(0.01, 0.99)
    log_p, log_q = p.clamp(0.01, 0.99).log(), q.clamp(0.01, 0.99).log()
    return (m * (2 * m.log() - log_p - log_q)).sum(dim=1).mean() / 2


def competition(
    student_logits: Float[Tensor, "n k"], teacher_logits: Float[Tensor, "n k"], temperature: float = 3.0
) -> Scalar:
    """Adaptive DeepInversion's term that seeks disagreement: ``1 - clamp(JS, 0, 1)``, as coded."""
    return 1 - jensen_shannon_as_coded(student_logits, teacher_logits, temperature).clamp(0, 1)


def _neighbour_differences(images: Images) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differences of pixels with their right, lower, lower-right and upper-right neighbours."""
    return (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., :-1, 1:] - images[..., 1:, :-1],
    )
