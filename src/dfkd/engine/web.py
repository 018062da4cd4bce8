"""What methods that select web images have in common: a process's part of them, reading them, and figures."""

from collections.abc import Iterator

import torch

from dfkd.data.rows import Rows
from dfkd.engine.core import Metrics, Task
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import class_counts
from dfkd.types import Images, Labels

__all__ = ["own_rows", "read_blocks", "selection_metrics", "web_of"]


def web_of(task: Task) -> Rows:
    """The task's web images, which a method with that need has."""
    if task.web is None:
        raise RuntimeError("web images are needed; the driver checks that before setup")
    return task.web


def own_rows(task: Task, share: float = 1.0) -> Labels:
    """The web images of this process, every ``world``-th, ascending; of them a random ``share`` above 0, up to 1."""
    rng, device = task.runtime.generator, task.runtime.device
    rows = torch.arange(task.runtime.rank, len(web_of(task)), task.runtime.world, device=device)
    if share < 1:
        kept = max(1, round(share * len(rows)))
        rows = rows[torch.randperm(len(rows), generator=rng, device=device)[:kept]].sort().values
    return rows


def read_blocks(task: Task, rows: Labels, block: int) -> Iterator[tuple[slice, Images]]:
    """The web images of these rows in order, ``block`` at a time on the device, each with its places in ``rows``."""
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, as_images(web_of(task).take(rows[part]).to(task.runtime.device))


def selection_metrics(task: Task, predicted: Labels) -> Metrics:
    """How many images were selected in all processes, what share of the pool, how many classes, how balanced."""
    counts = task.runtime.total(class_counts(predicted, task.classes)).float()
    p = counts / counts.sum()
    return {
        "selected": counts.sum(),
        "selected_share": counts.sum() / len(web_of(task)),
        "selected_classes": (counts > 0).sum(),
        "class_entropy": -(p * (p + 1e-12).log()).sum(),
    }
