"""Accuracy, agreement with the teacher, and loss on images that are only looked at, never learnt from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.engine.probe import Probe
from dfkd.engine.records import Evaluation
from dfkd.engine.runtime import Runtime
from dfkd.ops.pixels import as_images
from dfkd.types import Bytes, Labels

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    student: Probe,
    images: Bytes,
    labels: Labels,
    classes: int,
    runtime: Runtime,
    teacher: Tensor | Probe | None = None,
    batch_size: int = 512,
) -> Evaluation:
    """Measure ``student`` on labelled uint8 images; each process takes its share.

    Args:
        student: the network measured; its mode is restored.
        images, labels: uint8 (n, c, h, w) and int64 (n,), on any device.
        classes: number of classes.
        runtime: device and processes.
        teacher: its predictions (n,) or the teacher itself, for the agreement; None counts the student as its own.
        batch_size: images per forward pass.
    """
    mode = student.training
    student.eval()
    counts = torch.zeros(4, classes, dtype=torch.float64, device=runtime.device)  # seen, right, agreed, loss
    for start in range(runtime.rank * batch_size, len(images), runtime.world * batch_size):
        x = as_images(images[start : start + batch_size].to(runtime.device))
        y = labels[start : start + batch_size].to(runtime.device)
        logits = student(x).logits
        guess = logits.argmax(dim=1)
        other_guess = _predictions(teacher, x, guess, start)
        loss = F.cross_entropy(logits, y, reduction="none").double()
        rows = torch.stack([torch.ones_like(loss), (guess == y).double(), (guess == other_guess).double(), loss])
        counts.index_add_(1, y, rows)
    student.train(mode)
    count, right, same, loss = runtime.total(counts).cpu()
    n = count.sum().clamp(min=1)
    return Evaluation(
        accuracy=float(right.sum() / n),
        agreement=float(same.sum() / n),
        loss=float(loss.sum() / n),
        images=int(count.sum()),
        class_accuracy=tuple((right / count).tolist()),  # 0 / 0 is NaN: a class without images has none
        class_agreement=tuple((same / count).tolist()),
    )


@torch.no_grad()
def predictions(net: Probe, images: Bytes, runtime: Runtime, batch_size: int = 512) -> Tensor:
    """The class ``net`` chooses for every image (n,)."""
    parts = [net(as_images(part.to(runtime.device))).logits.argmax(dim=1) for part in images.split(batch_size)]
    return torch.cat(parts)


def _predictions(teacher: Tensor | Probe | None, x: Tensor, guess: Tensor, start: int) -> Tensor:
    if teacher is None:
        return guess
    if isinstance(teacher, Tensor):
        return teacher[start : start + len(x)].to(x.device)
    return teacher(x).logits.argmax(dim=1)
