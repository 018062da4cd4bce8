"""Nearest neighbours by brute force, block by block: exact, and no larger in memory than one block of distances."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Nearest", "nearest_rows"]


class Nearest(NamedTuple):
    """For each of n queries its k nearest rows, nearest first: Euclidean distances (n, k) and row numbers (n, k)."""

    distances: Tensor
    rows: Tensor


def nearest_rows(queries: Tensor, blocks: Iterable[tuple[int, Tensor]], k: int, own: Tensor | None = None) -> Nearest:
    """The ``k`` nearest rows of each query.

    Distances are computed in float64 through a matrix product: those of equal rows come out below
    1e-6 times the length of a row.

    Args:
        queries: (n, d).
        blocks: the rows searched, as (number of the first row, rows (m, d)).
        k: neighbours; fewer columns come back where there are fewer rows.
        own: the row (n,) that each query is itself, which is not its own neighbour; None where queries are no rows.
    """
    queries = queries.double()
    distances = queries.new_zeros(len(queries), 0)
    rows = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, block in blocks:
        distance = torch.cdist(queries, block.double(), compute_mode="use_mm_for_euclid_dist")
        places = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
        if own is not None:
            distance = distance.masked_fill(places == own[:, None], float("inf"))
        candidates, where = torch.cat([distances, distance], dim=1), torch.cat([rows, places], dim=1)
        distances, order = candidates.topk(min(k, candidates.shape[1]), dim=1, largest=False)
        rows = where.gather(1, order)
    return Nearest(distances, rows)
