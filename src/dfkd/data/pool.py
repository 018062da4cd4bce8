"""The transfer set: a ring of named rows on one device, or, past a byte limit, in memory-mapped files."""

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd.data.space import free_disk, free_memory
from dfkd.errors import UserError

__all__ = ["Pool"]

Spec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Pool:
    """A first-in, first-out ring of at most ``capacity`` rows; every row has the same named columns.

    Images are kept as uint8, features as float16: ``images`` of 3x32x32 cost exactly 3,072 bytes a row. A draw is one
    ``randint`` and one index per column. Memory is reserved at once but only touched as rows arrive (on the CPU).

    Args:
        capacity: rows kept; adding more overwrites the oldest.
        columns: name -> (shape of one row, dtype).
        device: where rows live and where draws arrive.
        limit_bytes: above this size the rows live in memory-mapped temporary files in ``spill``; by default 60 % of
            the memory that is free on the device when the pool is made.
        spill: folder of those files (default: the system's temporary folder).

    Raises:
        UserError: a capacity below 1, or no disk space for the spilled rows.
    """

    def __init__(
        self,
        capacity: int,
        columns: Spec,
        device: torch.device | str = "cpu",
        limit_bytes: int | None = None,
        spill: Path | None = None,
    ) -> None:
        if capacity < 1:
            raise UserError(f"pool needs a capacity of at least 1 row, got {capacity}; raise the memory size")
        self.capacity, self.columns, self.device = capacity, dict(columns), torch.device(device)
        self.added = 0  # rows ever added; the next one goes to row `added % capacity`
        limit = int(0.6 * free_memory(self.device)) if limit_bytes is None else limit_bytes
        self.spilled = self.nbytes > limit
        if self.spilled and self.nbytes > free_disk(spill):
            raise UserError(
                f"pool needs {self.nbytes / 1e9:.1f} GB for {capacity} rows, got {limit / 1e9:.1f} GB of memory and "
                f"{free_disk(spill) / 1e9:.1f} GB of disk for temporary files; set the method's memory to fewer rows"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="dfkd-pool-", dir=spill)) if self.spilled else None
        if self._folder is not None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.rows = {name: self._reserve(name, shape, dtype) for name, (shape, dtype) in columns.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of a full pool."""
        return self.capacity * sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.columns.values())

    def __len__(self) -> int:
        """Rows that can be drawn now."""
        return min(self.added, self.capacity)

    def add(self, **rows: Tensor) -> None:
        """Append rows; floats are rounded to uint8 by the caller (``ops.pixels.as_bytes``), never truncated here.

        Raises:
            ValueError: columns that are missing, unknown, of another dtype or of different lengths.
        """
        n = self._check(rows)
        keep = min(n, self.capacity)
        start = (self.added + n - keep) % self.capacity
        first = min(keep, self.capacity - start)
        for name, value in rows.items():
            new = value[n - keep :].detach().to(self.rows[name].device)
            self.rows[name][start : start + first] = new[:first]
            self.rows[name][: keep - first] = new[first:]
        self.added += n

    def draw(self, n: int, generator: torch.Generator, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """``n`` rows, uniform with replacement, on the pool's device: all columns, or only those called ``names``.

        Raises:
            RuntimeError: the pool is empty.
        """
        if not len(self):
            raise RuntimeError("a pool needs rows before the first draw, got none; synthesise first")
        return self.take(torch.randint(len(self), (n,), device=generator.device, generator=generator), names)

    def take(self, index: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The rows at these places of the ring: all columns, or only those called ``names``."""
        columns = self.rows if names is None else {name: self.rows[name] for name in names}
        return {
            name: column.index_select(0, index.to(column.device)).to(self.device) for name, column in columns.items()
        }

    def newest(self, n: int) -> dict[str, Tensor]:
        """The last ``n`` rows (fewer if there are fewer), oldest first."""
        return self.since(self.added - min(n, len(self)))

    def since(self, count: int) -> dict[str, Tensor]:
        """The rows added after the first ``count``, as far as the ring still holds them, oldest first."""
        count = min(max(count, self.added - len(self)), self.added)
        return self.take(torch.arange(count, self.added) % self.capacity)

    def _check(self, rows: Mapping[str, Tensor]) -> int:
        if rows.keys() != self.columns.keys():
            raise ValueError(f"pool needs the columns {sorted(self.columns)}, got {sorted(rows)}")
        for name, value in rows.items():
            shape, dtype = self.columns[name]
            if value.shape[1:] != shape or value.dtype != dtype:
                raise ValueError(
                    f"pool needs rows {shape} of {dtype} for {name!r}, got {tuple(value.shape[1:])} of {value.dtype}"
                )
        lengths = {len(value) for value in rows.values()}
        if len(lengths) != 1:
            raise ValueError(f"pool needs as many rows in every column, got {sorted(lengths)}")
        return lengths.pop()

    def _reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._folder is None:
            return torch.empty((self.capacity, *shape), dtype=dtype, device=self.device)
        path = self._folder / f"{name}.rows"
        as_numpy = torch.empty((), dtype=dtype).numpy().dtype
        try:
            with path.open("wb") as handle:  # a full disk must show now, not as a bus error in the middle of a round
                _reserve_disk(handle.fileno(), self.capacity * math.prod(shape) * dtype.itemsize)
            memory = np.memmap(path, dtype=as_numpy, mode="r+", shape=(self.capacity, *shape))
        except OSError as error:
            raise UserError(
                f"pool needs {self.nbytes / 1e9:.1f} GB of disk in {path.parent}, got {error.strerror or error}; "
                "free space or lower the memory size"
            ) from error
        return torch.from_numpy(memory)


def _reserve_disk(file: int, size: int) -> None:
    """Make the file ``size`` bytes long; where the system cannot reserve them (macOS), they are taken when written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)
