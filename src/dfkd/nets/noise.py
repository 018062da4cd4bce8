"""Trained models of label noise."""

import torch
from torch import Tensor, nn

__all__ = ["NoiseMatrix"]


class NoiseMatrix(nn.Module):
    """Transition matrix of label noise (DFND): rows of probabilities, the diagonal fixed.

    Row i has ``accuracy`` at place i, and ``1 - accuracy`` shared among the others by a softmax of free logits, which
    begin equal.

    Args:
        classes: K, at least 2.
        accuracy: of the labelling network, above 0 and below 1.
    """

    eye: Tensor

    def __init__(self, classes: int, accuracy: float) -> None:
        super().__init__()
        self.accuracy = accuracy
        self.logits = nn.Parameter(torch.zeros(classes, classes))  # the diagonal is never read
        self.register_buffer("eye", torch.eye(classes, dtype=torch.bool), persistent=False)

    def forward(self) -> Tensor:
        """The matrix Q (K, K)."""
        others = self.logits.masked_fill(self.eye, -torch.inf).softmax(dim=1)
        return torch.where(self.eye, self.accuracy, (1 - self.accuracy) * others)
