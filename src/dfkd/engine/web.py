"""What methods that select web images have in common: a process's part of them, reading them, and figures."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.engine.core import Metrics, Task
from dfkd.engine.measures import Measure, class_entropy_measure
from dfkd.engine.probe import Probe
from dfkd.engine.views import Bars, Cloud, Grid, View, affordable
from dfkd.errors import UserError
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import class_counts
from dfkd.types import Bytes, Images, Labels

__all__ = [
    "SELECTION_MEASURES",
    "group_features",
    "own_rows",
    "read_blocks",
    "selection_metrics",
    "selection_views",
    "web_of",
]

SELECTION_MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "selected": Measure("web images selected", minor=True),
        "selected_share": Measure("web images selected", meaning="share of the pool"),
        "selected_classes": Measure("classes among the selected images", level="classes", level_name="all {level:.0f}"),
        "class_entropy": class_entropy_measure(
            "loosen the selection, or give more or closer web images",
            "class entropy of the selection",
            "The selected images belong to few of the {classes} classes: the entropy of these",
        ),
    }
)
"""What :func:`selection_metrics` returns."""


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
        count = max(1, round(share * len(rows)))
        rows = rows[torch.randperm(len(rows), generator=rng, device=device)[:count]].sort().values
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


def selection_views(
    task: Task, chosen: Labels, predicted: Labels, real: Bytes | None
) -> Mapping[str, Callable[[], View]]:
    """What was selected and what was not, how many of each class, and how both look to the teacher.

    Args:
        task: with web images.
        chosen: row numbers of the selected images.
        predicted: their classes.
        real: labelled test images, uint8, or None.
    """
    return {
        "selection": lambda: chosen_images(web_of(task), chosen, task.runtime.generator),
        "selection-classes": lambda: chosen_classes(predicted, task.class_names),
        "features": lambda: chosen_features(task, web_of(task), chosen, real),
    }


def chosen_images(web: Rows, chosen: Labels, generator: torch.Generator, columns: int = 16, rows: int = 3) -> Grid:
    """Random web images: ``rows`` rows of chosen ones, then as many of the others.

    Args:
        web: the pool.
        chosen: row numbers.
        generator: which images are shown.
        columns, rows: images across, and rows of each kind.

    Raises:
        UserError: nothing was chosen.
    """
    if not len(chosen):
        raise UserError("selection_view needs a selection, got an empty one; run a round first")
    inside, outside = (_some(part, rows * columns, generator) for part in _parts(web, chosen))
    line = torch.cat([torch.arange(len(inside)) // columns, rows + torch.arange(len(outside)) // columns])
    return Grid(
        f"Random web images: above, some of the {len(chosen):,} selected ones; below, some of the "
        f"{len(web) - len(chosen):,} others.",
        "Three rows of selected web images above three rows of web images that were not selected",
        web.take(torch.cat([inside, outside])).cpu(),
        line,
        columns,
        ("selected", "not selected"),
        numbers={"selected": float(len(chosen)), "share": len(chosen) / len(web)},
    )


def chosen_classes(predicted: Labels, names: tuple[str, ...]) -> Bars:
    """How many images of each class were chosen; ``predicted`` are their classes, ``names`` those of all classes."""
    counts = torch.bincount(predicted.cpu(), minlength=len(names)).float()
    share = counts / counts.sum()
    return Bars(
        "Selected web images of each predicted class.",
        "A bar chart with one bar per class",
        dict(zip(names, counts.tolist(), strict=True)),
        "images",
        numbers={
            "classes that occur": float((counts > 0).sum()),
            "most of one class": float(counts.max()),
            "fewest of one class": float(counts.min()),
            "class entropy (nats)": float(-(share * (share + 1e-12).log()).sum()),
        },
    )


def chosen_features(task: Task, web: Rows, chosen: Labels, real: Bytes | None) -> Cloud:
    """The teacher's features of chosen and other web images, beside those of real images where there are any."""
    most = affordable(task.image_shape, 6_000_000, 60, 300)
    groups = group_features(task.teacher, web, chosen, real, task.runtime.generator, most)
    beside = "" if real is None else ", beside those of real test images"
    return Cloud(
        f"The teacher's features of web images, selected or not{beside}, by t-SNE.",
        f"Points in two dimensions, one colour each: {', '.join(groups)}",
        groups,
        "not selected",
    )


@torch.no_grad()
def group_features(
    teacher: Probe, web: Rows, chosen: Labels, real: Bytes | None, generator: torch.Generator, most: int = 500
) -> dict[str, Tensor]:
    """Teacher features of at most ``most`` selected, unselected and, where given, real images (uint8)."""
    inside, outside = (web.take(_some(part, most, generator)) for part in _parts(web, chosen))
    groups = {"not selected": outside, "selected": inside}
    if real is not None:
        groups["original"] = real[_some(torch.arange(len(real)), most, generator)]
    device = teacher.mean.device
    return {name: teacher(as_images(x.to(device))).features for name, x in groups.items() if len(x)}


def _parts(web: Rows, chosen: Labels) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(len(web), dtype=torch.bool)
    mask[chosen.cpu()] = True
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()


def _some(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=generator, device=generator.device).cpu()
    return rows[order[:n]]
