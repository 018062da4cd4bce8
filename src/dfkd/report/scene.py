"""What a run left behind that can be drawn: its pair, its method's memory, images the student learnt from."""

from dataclasses import dataclass
from typing import Any

import torch

from dfkd.data.overlap import NearDuplicates
from dfkd.engine.checkpoint import pools_of
from dfkd.engine.core import Clock, Method, State, Task
from dfkd.engine.plan import Plan
from dfkd.engine.views import affordable
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.report.canvas import Format
from dfkd.types import Bytes, Labels

__all__ = ["Examples", "Scene", "newest_images"]

Examples = tuple[Bytes, Labels]


@dataclass(frozen=True)
class Scene:
    """What is there to be drawn.

    Attributes:
        task: teacher and student, with a random stream that nothing else uses.
        method: as it ran.
        state: what it remembered at the end, or None where that is lost.
        shown: images the student learnt from and their classes, newest first; none where the state is lost.
        test: labelled real images, or None.
        form: of figures made of lines.
        seed: of every random choice.
        overlap: near-duplicates of the test images among the web images, where they were looked for.
    """

    task: Task
    method: Method[Any]
    state: State | None
    shown: Examples
    test: Examples | None
    form: Format
    seed: int
    overlap: NearDuplicates | None = None


def newest_images(task: Task, method: Method[Any], plan: Plan, state: State | None) -> Examples:
    """Images the student learnt from, uint8 on the CPU, and their classes, newest first.

    They are the newest of the pool, or, where images are not stored, batches as the method makes them. Classes that
    the method does not know are those the teacher chooses.
    """
    if state is None:
        return torch.zeros(0, *task.image_shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    pool = pools_of(state).get("pool")
    if pool is not None and "images" in pool.columns and len(pool):
        rows = pool.newest(affordable(task.image_shape, 4_000_000, 100, 2000))
        images = rows["images"].flip(0)
        labels = rows["labels"].flip(0) if "labels" in rows else _guess(task, images)
        return images.cpu(), labels.cpu()
    parts: list[Examples] = []
    count = affordable(task.image_shape, 1_000_000, 50, 400)
    with torch.no_grad():
        for step in range(plan.steps):
            batch = method.batch(task, state, Clock(plan, plan.total - 1, step))
            images = as_bytes(batch.images)
            labels = _guess(task, images) if batch.labels is None else batch.labels
            parts.append((images.cpu(), labels.cpu()))
            if sum(len(images) for images, _ in parts) >= count:
                break
    return torch.cat([images for images, _ in parts])[:count], torch.cat([labels for _, labels in parts])[:count]


def _guess(task: Task, images: Bytes) -> Labels:
    with torch.no_grad():
        parts = [task.teacher(as_images(part.to(task.runtime.device))) for part in images.split(64)]
    return torch.cat([part.logits.argmax(dim=1) for part in parts])
