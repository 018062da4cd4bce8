"""Selection of web images: KD3's by a mixture of both networks and a threshold per class, DFND's by rank."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.types import Labels, Logits, Mask, PerImage, Scalar

ClassCounts = Int[Tensor, " k"]
Thresholds = Float[Tensor, " k"]


class Selection(NamedTuple):
    """What one selection decided, and the numbers it decided by.

    ``candidates`` and ``kept`` count images per predicted class; ``thresholds`` are per class.
    """

    mask: Mask
    predicted: Labels
    confidence: PerImage
    thresholds: Tensor
    candidates: Tensor
    kept: Tensor

    @property
    def share(self) -> Scalar:
        """The share of the images that were kept, in [0, 1], on the device."""
        return self.mask.float().mean()


def mixing_rate(t: int | float, total: int | float) -> float:
    """Share of the student in the mixture at time ``t`` of ``total`` (one unit for both; KD3, equation 4).

    Rises from exp(-5) at 0 to 1 at half time and stays there.
    """
    half = total / 2
    return math.exp(-5 * (t / half - 1) ** 2) if t <= half else 1.0


def combine(
    teacher_probs: Float[Tensor, "n k"], student_probs: Float[Tensor, "n k"], rate: float | Scalar
) -> Float[Tensor, "n k"]:
    """``(1 - rate) * teacher + rate * student`` on probabilities (KD3, equation 3)."""
    return (1 - rate) * teacher_probs + rate * student_probs


def class_counts(labels: Labels, classes: int) -> ClassCounts:
    """How many labels each of ``classes`` classes has; deterministic, without waiting for the device."""
    counts = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    return counts.scatter_add(0, labels, torch.ones_like(labels))


def class_thresholds(counts: ClassCounts, v_th: float = 0.95) -> Thresholds:
    """Confidence an image of each class must exceed: ``v_th`` times its count over the largest count."""
    return v_th * counts / counts.max().clamp_min(1)


def select(confidence: PerImage, predicted: Labels, thresholds: Thresholds) -> Mask:
    """True where the confidence exceeds (strictly) the threshold of the predicted class."""
    return confidence > thresholds[predicted]


def most_certain(certainty: PerImage, n: int) -> Int[Tensor, " m"]:
    """The ``n`` images (all where there are fewer) of the highest certainty, ascending; of equals the first ones."""
    order = certainty.sort(descending=True, stable=True).indices
    return order[:n].sort().values


def dynamic_selection(
    teacher_probs: Logits, student_probs: Logits, rate: float | Scalar, v_th: float = 0.95
) -> Selection:
    """One selection over all images, from both networks' probabilities (temperature 1)."""
    confidence, predicted = combine(teacher_probs, student_probs, rate).max(dim=1)
    classes = teacher_probs.shape[1]
    candidates = class_counts(predicted, classes)
    thresholds = class_thresholds(candidates, v_th)
    mask = select(confidence, predicted, thresholds)
    counts = torch.zeros_like(candidates).scatter_add(0, predicted, mask.to(torch.int64))
    return Selection(mask, predicted, confidence, thresholds, candidates, counts)
