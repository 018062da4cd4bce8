"""Labels for images that are about to be made."""

import torch

from dfkd.types import Labels

__all__ = ["balanced_labels", "uniform_labels"]


def balanced_labels(n: int, classes: int, generator: torch.Generator, device: torch.device) -> Labels:
    """Every class ``n // classes`` times, in order 0, 1, ..., repeated; what is left over is drawn without replacement.

    In order matters to NAYER, whose i-th noisy layer serves rows ``i·classes`` to ``(i + 1)·classes``.
    """
    whole = torch.arange(classes, device=device).repeat(n // classes)
    rest = torch.randperm(classes, device=device, generator=generator)[: n % classes]
    return torch.cat([whole, rest])


def uniform_labels(n: int, classes: int, generator: torch.Generator, device: torch.device) -> Labels:
    """Independent uniform labels."""
    return torch.randint(classes, (n,), device=device, generator=generator)
