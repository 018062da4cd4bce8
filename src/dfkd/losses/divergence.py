"""Divergences between the teacher's and the student's predictions. Pure functions of logits (n, k)."""

import torch.nn.functional as F
from torch import Tensor

from dfkd.types import Logits, PerImage, Scalar

__all__ = [
    "agreeing_divergence",
    "cross_entropy",
    "kl_per_image",
    "knowledge_distillation",
    "soft_cross_entropy",
]


def kl_per_image(target: Logits, logits: Logits, temperature: float = 1.0) -> PerImage:
    """``KL(softmax(target / τ) ‖ softmax(logits / τ))`` of every image, summed over classes, without a factor τ².

    Gradients flow to both arguments: detach what is constant.
    """
    log_p = F.log_softmax(target / temperature, dim=1)
    log_q = F.log_softmax(logits / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def knowledge_distillation(target: Logits, logits: Logits, temperature: float, reduction: str = "batchmean") -> Scalar:
    """``τ² KL(σ_τ(target) ‖ σ_τ(logits))`` (Hinton et al. 2015, as the CMI family uses it).

    ``reduction="batchmean"`` sums over classes and averages over images; ``"element_mean"`` averages over all
    n·k entries, k times smaller (Spaceship-Net and ZSKT).
    """
    value = kl_per_image(target, logits, temperature).mean() * temperature**2
    return value / target.shape[1] if reduction == "element_mean" else value


def agreeing_divergence(teacher: Logits, student: Logits, masked: bool = True) -> Scalar:
    """The adversarial term's divergence, ``KL(teacher ‖ student)`` at τ = 1, averaged over the whole batch.

    With ``masked`` only images on which both networks choose the same class count (the decision mask of CMI's,
    Fast's and NAYER's code), so that a generator is not paid for images the student already gets wrong.
    A generator *minimises the negative* of this.
    """
    divergence = kl_per_image(teacher, student)
    if masked:
        divergence = divergence * (teacher.argmax(dim=1) == student.argmax(dim=1)).to(divergence.dtype)
    return divergence.mean()


def cross_entropy(logits: Logits, labels: Tensor) -> Scalar:
    """Mean cross-entropy against hard labels (n,)."""
    return F.cross_entropy(logits, labels)


def soft_cross_entropy(target: Logits, logits: Logits, temperature: float) -> Scalar:
    """Mean cross-entropy between softened predictions, ``-Σ σ_τ(target) log σ_τ(logits)``, without τ² (STTS, ZSKD)."""
    weights = F.softmax(target / temperature, dim=1)
    return -(weights * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()
