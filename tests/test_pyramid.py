"""Images as sums of grids: loops and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfkd.ops.pyramid import coarser_sizes, sum_of_grids


def enlarged(grid: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear interpolation by its definition: a number stands in the middle of its cell; edges are held."""
    rows, columns = grid.shape
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - x + left) + grid[bottom, right] * (x - left)
            result[i, j] = upper * (1 - y + top) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 10)])
def test_the_sum_is_that_of_a_loop(size: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    sizes = [size, *coarser_sizes(size, 2)]
    grids = [torch.randn(2, 3, *side, generator=rng, dtype=torch.float64) for side in sizes]
    found = sum_of_grids(grids)
    for n in range(2):
        for c in range(3):
            wanted = sum(enlarged(grid[n, c].numpy(), *size) for grid in grids)
            np.testing.assert_allclose(found[n, c].numpy(), wanted, atol=1e-12)


def test_one_grid_is_the_image_itself() -> None:
    grid = torch.rand(1, 3, 4, 4)
    assert sum_of_grids([grid]) is grid


def test_a_coarse_number_moves_as_many_pixels_as_it_stands_for() -> None:
    grids = [torch.zeros(1, 1, side, side, requires_grad=True) for side in (16, 4)]
    sum_of_grids(grids).sum().backward()
    fine, coarse = grids
    assert fine.grad is not None
    assert coarse.grad is not None
    assert torch.equal(fine.grad, torch.ones(1, 1, 16, 16))
    torch.testing.assert_close(coarse.grad.sum(), torch.tensor(256.0))
    torch.testing.assert_close(coarse.grad[0, 0, 1:3, 1:3], torch.full((2, 2), 16.0))


@given(st.integers(1, 300), st.integers(1, 300))
def test_sizes_halve_down_to_one_number(height: int, width: int) -> None:
    levels = (max(height, width) - 1).bit_length()
    sizes = [(height, width), *coarser_sizes((height, width), levels)]
    assert sizes[-1] == (1, 1)
    for (h, w), (half_h, half_w) in pairwise(sizes):
        assert (half_h, half_w) == (int(np.ceil(h / 2)), int(np.ceil(w / 2)))
    with pytest.raises(ValueError, match="coarser grids"):
        coarser_sizes((height, width), levels + 1)
