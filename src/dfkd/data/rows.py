"""Unlabelled web images as read-only rows of bytes, for methods that select from them (KD3).

Whatever the source, the rows have one shape. Sources that need decoding or resizing are converted once, block
by block, into a memory-mapped file in the cache; later runs map that file.
"""

import math
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from dfkd.data._pixels import ByteArray, as_nchw, recolour, resize, warn_of_left_out
from dfkd.data._sources import Blocks, archives, decoded_archives, decoded_files, fingerprint, image_files
from dfkd.errors import UserError

KEPT_BYTES = 256 * 2**20  # of a mapped file, about as much counts as this process's memory at any time
CONVERSION = 2  # of files into rows, part of a cache's name: 2 turns pictures as their EXIF data say
FAULT_BYTES = 2**16  # the system maps the neighbours of a page that is read, too


Converted = Callable[[int, int | None], None]  # is told how many images are done, of how many


class Rows:
    """Read-only uint8 images N C H W, in memory or memory-mapped; ``skipped`` counts unreadable ones.

    A mapped file may be larger than memory: pages that were read are let go of again (the system's cache of files
    keeps them while there is room).

    Raises:
        UserError: images of another type, or not of four dimensions.
    """

    def __init__(self, data: ByteArray | UInt8[Tensor, "n c h w"], skipped: int = 0) -> None:
        if data.dtype not in (torch.uint8, np.uint8) or data.ndim != 4:
            raise UserError(
                f"Rows needs uint8 images N C H W, got {data.dtype} of shape {tuple(data.shape)}; convert them"
            )
        self._data = data
        self.skipped = skipped
        self._map = _map_below(data)
        self._touched = 0  # bytes of the map, at most, since pages were last let go of

    def __len__(self) -> int:
        return len(self._data)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self._data.shape
        return channels, height, width

    def take(self, index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        """The images of these rows, a copy; in host memory unless the rows came from a tensor on a device."""
        if isinstance(self._data, Tensor):
            return self._data[index.to(self._data.device)]
        rows = torch.from_numpy(np.ascontiguousarray(self._data[index.cpu().numpy()]))
        self._let_go(len(rows))
        return rows

    def blocks(self, size: int) -> Iterator[tuple[int, UInt8[Tensor, "m c h w"]]]:
        """All images in order, ``size`` at a time, each block with the number of its first row.

        Raises:
            UserError: ``size`` is less than 1.
        """
        if size < 1:
            raise UserError(f"Rows.blocks needs a size of at least 1, got {size}; choose a larger one")
        for start in range(0, len(self), size):
            part = self._data[start : start + size]
            yield start, part.clone() if isinstance(part, Tensor) else torch.from_numpy(part.copy(order="C"))
            self._let_go(len(part))

    def _let_go(self, rows: int) -> None:
        """After reading ``rows`` rows anywhere."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        self._touched += rows * max(math.prod(self.shape), FAULT_BYTES)
        if self._touched > KEPT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def _map_below(data: object) -> mmap.mmap | None:
    """The mapped file that an array is a view of; None where it is in memory."""
    while isinstance(data, np.ndarray):
        data = data.base
    return data if isinstance(data, mmap.mmap) else None


Unlabelled = Rows | Tensor | ByteArray | str | Path
"""Unlabelled images as callers give them: rows, a tensor, an array, or a source for :func:`open_rows`."""


def open_rows(
    source: str | Path | UInt8[Tensor, "n c h w"] | ByteArray,
    image_shape: tuple[int, int, int],
    cache: Path | None = None,
    watch: Converted | None = None,
) -> Rows:
    """Open unlabelled images as rows of shape ``image_shape`` = (channels, height, width).

    Args:
        source: a .npy of uint8 (N H W, N H W C or N C H W), a folder (searched recursively for png, jpg,
            webp, bmp; other pictures are left out, with a warning), WebDataset shards (a .tar, or several by glob
            or braces: "web-{000..012}.tar"), or a uint8 tensor or array N C H W, which is not copied: one that is
            mapped from a file stays there.
        image_shape: what the networks take. Colour becomes gray by 0.299 R + 0.587 G + 0.114 B; other sizes
            are resized by Lanczos, other aspect ratios cropped at the centre.
        cache: folder for the converted copy; None converts into memory. A .npy that fits already, and a
            tensor or array, are used as they are.
        watch: called during a conversion with the number of images done and of all (None for shards, whose
            members are not counted beforehand).

    Raises:
        UserError: nothing there, nothing readable, or a tensor or array of another kind.
    """
    if isinstance(source, Tensor | np.ndarray):
        rows = Rows(source)
        if rows.shape != image_shape or not len(rows):
            raise UserError(f"open_rows needs images N x {image_shape}, got shape {tuple(source.shape)}; resize them")
        return rows
    if image_shape[0] not in (1, 3) or min(image_shape) < 1:
        raise UserError(f"open_rows needs an image shape (1 or 3, height, width), got {image_shape}; correct it")
    name = os.path.expanduser(str(source).removeprefix("folder:"))
    if name.endswith(".npy"):
        return _open_array(Path(name), image_shape, cache, watch)
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        shards = archives(name)
        return _convert(
            name, shards, image_shape, cache, _report_progress(decoded_archives(shards, image_shape), None, watch)
        )
    if not Path(name).is_dir():
        raise UserError(f"open_rows needs a .npy file, a folder or .tar shards, got {str(source)!r}; check the path")
    unread: Counter[str] = Counter()
    files = image_files(Path(name), unread)
    warn_of_left_out(Path(name), unread)
    return _convert(
        name, files, image_shape, cache, _report_progress(decoded_files(files, image_shape), len(files), watch)
    )


def _open_array(file: Path, image_shape: tuple[int, int, int], cache: Path | None, watch: Converted | None) -> Rows:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy raise almost any kind of error
        raise UserError(f"open_rows needs a sound .npy, got {file} ({type(error).__name__}); make it again") from error
    images = as_nchw(array, str(file))
    if len(images) == 0:
        raise UserError(f"open_rows needs at least one image, got an empty {file}; choose another source")
    if images.shape[1:] == image_shape:
        return Rows(images)
    blocks = _report_progress(_reshape(images, image_shape), len(images), watch)
    return _convert(str(file), [file], image_shape, cache, blocks)


def _report_progress(blocks: Blocks, total: int | None, watch: Converted | None) -> Blocks:
    """The same blocks; ``watch`` hears of each."""
    read_so_far = 0
    for images, bad in blocks:
        read_so_far += len(images) + bad
        if watch is not None:
            watch(read_so_far, total)
        yield images, bad


def _reshape(images: ByteArray, image_shape: tuple[int, int, int]) -> Blocks:
    channels, height, width = image_shape
    for start in range(0, len(images), 256):
        recoloured = recolour(np.ascontiguousarray(images[start : start + 256]), channels, "open_rows")
        yield resize(recoloured, height, width), 0


def _convert(
    name: str, files: list[Path], image_shape: tuple[int, int, int], cache: Path | None, blocks: Blocks
) -> Rows:
    """Rows of all ``blocks``: from the cache if it has them, else written there, or gathered in memory."""
    if cache is None:
        parts = list(blocks)
        skipped = sum(bad for _, bad in parts)
        images = np.concatenate([np.empty((0, *image_shape), dtype=np.uint8), *(part for part, _ in parts)])
        _refuse_empty(name, len(images), skipped)
        return Rows(images, skipped)
    # The number of unreadable images is part of the name, so that one rename publishes everything.
    stem = f"rows{CONVERSION}-{'x'.join(map(str, image_shape))}-{fingerprint(name, files)}"
    for ready in sorted(cache.glob(f"{stem}-skipped*.npy")):
        return Rows(np.load(ready, mmap_mode="r"), int(ready.stem.rpartition("skipped")[2]))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file, skipped = _write(name, blocks, image_shape, cache, stem)
    except OSError as error:
        raise UserError(
            f"open_rows needs to write the converted images of {name} to {cache}, got {error.strerror or error}; free "
            "space, or set DFKD_CACHE to another folder"
        ) from error
    return Rows(np.load(file, mmap_mode="r"), skipped)


def _write(name: str, blocks: Blocks, image_shape: tuple[int, int, int], cache: Path, stem: str) -> tuple[Path, int]:
    """Stream ``blocks`` into a .npy aside, then rename it."""
    count = skipped = 0
    handle, aside = tempfile.mkstemp(dir=cache, prefix=f"{stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            _write_header(out, 0, image_shape)
            for images, bad in blocks:
                out.write(np.ascontiguousarray(images).tobytes())
                count, skipped = count + len(images), skipped + bad
            out.seek(0)
            _write_header(out, count, image_shape)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(aside, 0o644)  # mkstemp hides it from the other users of a shared cache
        _refuse_empty(name, count, skipped)
        file = cache / f"{stem}-skipped{skipped}.npy"
        os.replace(aside, file)
    finally:
        Path(aside).unlink(missing_ok=True)
    return file, skipped


def _write_header(out: IO[bytes], count: int, image_shape: tuple[int, int, int]) -> None:
    # NumPy pads the header so that the length of the first axis can be filled in later.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *image_shape)}
    np.lib.format.write_array_header_1_0(out, header)


def _refuse_empty(name: str, count: int, skipped: int) -> None:
    if count == 0:
        raise UserError(
            f"open_rows needs at least one readable image in {name}, got none ({skipped} damaged); check it"
        )
