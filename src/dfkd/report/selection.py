"""What KD3 took from the web images and what it left, to look at."""

import torch
from PIL import Image
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.ops.pixels import as_images
from dfkd.report.grid import image_grid
from dfkd.types import Labels

__all__ = ["selection_features", "selection_picture"]


def selection_picture(
    web: Rows, chosen: Labels, generator: torch.Generator, columns: int = 20, rows: int = 4
) -> Image.Image:
    """Random web images: ``rows`` rows of selected ones, then as many of the others.

    Args:
        web: the pool.
        chosen: row numbers of D_s (``KD3State.chosen``).
        generator: which images are shown.
        columns, rows: images across, and rows of each kind.

    Raises:
        UserError: nothing was selected.
    """
    if not len(chosen):
        raise UserError("selection_picture needs a selection, got an empty one; run a round first")
    inside, outside = (_some(part, rows * columns, generator) for part in _parts(web, chosen))
    picked = torch.cat([inside, outside])
    line = torch.cat([torch.arange(len(inside)) // columns, rows + torch.arange(len(outside)) // columns])
    return image_grid(web.take(picked).cpu(), line, columns, range(2 * rows))


@torch.no_grad()
def selection_features(
    teacher: Probe, web: Rows, chosen: Labels, real: Tensor | None, generator: torch.Generator, most: int = 500
) -> dict[str, Tensor]:
    """Teacher features of at most ``most`` selected, unselected and, where given, real images (uint8).

    For :func:`~dfkd.report.scatter.tsne_figure`.
    """
    inside, outside = (web.take(_some(part, most, generator)) for part in _parts(web, chosen))
    groups = {"not selected": outside, "selected": inside}
    if real is not None:
        groups["original"] = real[_some(torch.arange(len(real)), most, generator)]
    device = teacher.mean.device
    return {name: teacher(as_images(x.to(device))).features for name, x in groups.items() if len(x)}


def _parts(web: Rows, chosen: Labels) -> tuple[Tensor, Tensor]:
    taken = torch.zeros(len(web), dtype=torch.bool)
    taken[chosen.cpu()] = True
    return taken.nonzero().flatten(), (~taken).nonzero().flatten()


def _some(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=generator, device=generator.device).cpu()
    return rows[order[:n]]
