"""Images from a teacher alone, by optimising pixels: a second opinion that no run's generator has a hand in."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from dfkd.engine.probe import Probe
from dfkd.losses.statistics import moment_distance
from dfkd.ops.labels import balanced_labels
from dfkd.ops.pixels import as_bytes
from dfkd.types import Bytes

__all__ = ["inverted_images"]

RATE = 0.1  # of Adam, in normalised space
SMOOTH = 0.05  # weight of the mean absolute difference of neighbours
STATISTICS = 1.0  # weight of the distance of BatchNorm statistics, a mean over layers


def inverted_images(
    teacher: Probe,
    image_shape: tuple[int, int, int],
    classes: int,
    count: int,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 128,
) -> Bytes:
    """``count`` images (uint8, N C H W) of balanced classes, begun as noise and changed until the teacher is sure.

    The objective is that of DeepInversion (Yin et al., 2020): cross-entropy of the teacher, smoothness, and, where the
    teacher has BatchNorm layers, the distance of their statistics; with weights and few steps of our own, for images
    that are looked at but not learnt from.

    Args:
        teacher: frozen.
        image_shape: (c, h, w).
        classes: K.
        count: images.
        steps: of Adam, for each batch.
        generator: random stream on the teacher's device.
        batch_size: images changed together.
    """
    parts = []
    for start in range(0, count, batch_size):
        n = min(batch_size, count - start)
        labels = balanced_labels(n, classes, generator, generator.device)
        noise = torch.randn(n, *image_shape, device=generator.device, generator=generator)
        parts.append(as_bytes(teacher.denormalise(_optimise(teacher, noise, labels, steps)).clamp(0, 1)))
    return torch.cat(parts)


def _optimise(teacher: Probe, start: Tensor, labels: Tensor, steps: int) -> Tensor:
    x = start.requires_grad_(True)
    optimizer = Adam([x], lr=RATE, betas=(0.5, 0.9))
    with torch.enable_grad():
        for _ in range(steps):
            out = teacher.read_normalised(x, stats=bool(teacher.norms))
            loss = F.cross_entropy(out.logits, labels) + SMOOTH * _roughness(x)
            if out.stats:
                loss = loss + STATISTICS * moment_distance(out.stats, out.stored) / len(out.stats)
            (x.grad,) = torch.autograd.grad(loss, [x])
            optimizer.step()
    return x.detach()


def _roughness(x: Tensor) -> Tensor:
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
