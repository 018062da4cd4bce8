"""Images as sums of a grid of pixels and coarser grids, which one step of an optimiser moves as far as single pixels.

An optimiser with a rate per number (Adam) changes every pixel by about its rate, in a direction of its own: what covers
many pixels grows as slowly as noise does, and noise is what there is most of. A coarse grid's numbers stand for many
pixels each.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dfkd.types import Images

__all__ = ["coarser_sizes", "sum_of_grids"]


def coarser_sizes(size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Height and width of ``levels`` grids, each half as large as the one before (rounded up), ``size`` not among them.

    Raises:
        ValueError: a grid of one number has no coarser one.
    """
    sizes = [size]
    for _ in range(levels):
        if max(sizes[-1]) == 1:
            raise ValueError(f"{levels} coarser grids than {size[0]}x{size[1]}")
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes[1:]


def sum_of_grids(grids: Sequence[Tensor]) -> Images:
    """The first grid (n, c, h, w) and all others, enlarged to its size by bilinear interpolation (pixels are areas)."""
    fine, *coarse = grids
    total = fine
    for grid in coarse:
        total = total + F.interpolate(grid, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return total
