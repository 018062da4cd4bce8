"""Are images that a student is judged on hidden among the web images it learns from?"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.ops.hashing import row_steps, to_gray
from dfkd.ops.pixels import as_images
from dfkd.types import Bytes, Labels

__all__ = ["ALIKE", "BITS", "NearDuplicates", "Overlap", "Pair", "find_duplicates", "web_overlap"]

BITS = 64  # of a hash
AT_MOST = 4  # bits in which near-duplicates differ
ALIKE = 0.9  # least correlation of the pixels of pictures that people would call the same
FLAT = 1e-5  # of a brightness in [0, 1]: smaller steps between neighbours are the rounding of one colour
_CELLS = 2**19  # pairs of hashes compared at a time: few enough for a processor's cache

Codes = npt.NDArray[np.uint64]


class _Hashes(NamedTuple):
    """Of n images: the hash (n,), and whether there is any edge to speak of (n,); without one a hash says nothing."""

    codes: Codes
    edged: npt.NDArray[np.bool_]


class Overlap(NamedTuple):
    """Near-duplicates: the web row, the image it resembles, and in how many bits of 64 the hashes differ."""

    web: Labels
    image: Labels
    distance: Labels


class Pair(NamedTuple):
    """A web row and an image: how many bits of 64 of their hashes differ, and the correlation of their pixels."""

    web: int
    image: int
    bits: int
    correlation: float


@dataclass(frozen=True)
class NearDuplicates:
    """What a look for near-duplicates found, as plain numbers that a record can keep.

    Attributes:
        web: how many web images were looked at.
        images: how many images they were compared with.
        found: web images whose hash differs from that of some image in at most ``at_most`` bits of 64.
        alike: how many of them also correlate with that image, pixel by pixel, by at least 0.9.
        at_most: see there.
        pairs: those of ``found`` that are most alike, then the nearest others, each image once.
    """

    web: int
    images: int
    found: int
    alike: int
    at_most: int
    pairs: tuple[Pair, ...] = ()


def web_overlap(web: Rows, images: Bytes, at_most: int = AT_MOST, block: int = 4096) -> Overlap:
    """Web images whose difference hash (64 bits) differs from that of some of ``images`` in at most ``at_most`` bits.

    Nothing is removed: what to do about them is for people to decide. Pictures without edges from left to
    right (one colour) have no hash to speak of and are left out on both sides.

    Args:
        web: unlabelled rows.
        images: uint8 (n, c, h, w), such as the test images.
        at_most: bits that may differ; 0 finds copies, above about 8 chance resemblances appear.
        block: images hashed at a time.

    Returns:
        One entry per web image found, in the order of the rows, with the first of the images nearest to it.
    """
    nearest = _nearest(web, _bank(images, block), block)
    rows = (nearest.distance <= at_most).nonzero().flatten()
    return Overlap(rows, nearest.image[rows], nearest.distance[rows])


def find_duplicates(
    web: Rows,
    images: Bytes,
    at_most: int = AT_MOST,
    pairs_kept: int = 8,
    block: int = 4096,
    expect: Callable[[float], None] | None = None,
) -> NearDuplicates:
    """:func:`web_overlap` in numbers, with the nearest pairs whether or not they are near.

    Memory is that of a block of images and of a few numbers for each web image. No random numbers are drawn.

    Small pictures resemble each other by chance where so many are compared (a bright middle on a dark ground is
    enough), so the pairs that hashes suggest are looked at again: of up to 16 images within ``at_most`` bits of a web
    image, the one whose pixels correlate with it most is kept.

    Args:
        web, images, at_most, block: see there; both have the same shape.
        pairs_kept: at most so many pairs come back.
        expect: told, after the first block, about how many seconds the rest will take.
    """
    bank = _bank(images, block)
    nearest = _nearest(web, bank, block, expect)
    order = nearest.distance.argsort(stable=True)
    count, near = int((nearest.distance <= at_most).sum()), int((nearest.distance <= BITS).sum())
    closest = order[: min(near, max(count, 64))]
    pairs = [pair for rows in closest.split(256) if len(rows) for pair in _look(web, images, bank, rows, at_most)]
    alike = sum(pair.bits <= at_most and pair.correlation >= ALIKE for pair in pairs)
    best: dict[int, Pair] = {}  # of each image
    for pair in sorted(pairs, key=lambda pair: (pair.bits > at_most, -pair.correlation)):
        best.setdefault(pair.image, pair)
    return NearDuplicates(len(web), len(images), count, alike, at_most, tuple(best.values())[:pairs_kept])


def _look(web: Rows, images: Bytes, bank: _Hashes, rows: Labels, at_most: int, most: int = 16) -> list[Pair]:
    """Of the images with the nearest hashes, for each of these web rows, the one that correlates most with it."""
    pictures = web.take(rows).cpu()
    pairs = []
    for row, picture, code in zip(rows.tolist(), pictures, _hashes(pictures).codes, strict=True):
        bits = np.where(bank.edged, np.bitwise_count(bank.codes ^ code), BITS + 1)
        near = np.flatnonzero(bits <= max(at_most, bits.min()))
        near = near[bits[near].argsort(kind="stable")[:most]]
        alike = _standard(images[torch.from_numpy(near)].cpu()) @ _standard(picture[None])[0]
        k = int(alike.argmax())
        pairs.append(Pair(row, int(near[k]), int(bits[near[k]]), round(float(alike[k]), 4)))
    return pairs


def _standard(pixels: Bytes) -> Tensor:
    """Brightness of each image as one row of mean 0 and length 1: products of two rows are correlations."""
    gray = to_gray(as_images(pixels)).flatten(1)
    return torch.nn.functional.normalize(gray - gray.mean(dim=1, keepdim=True), dim=1)


def _bank(images: Bytes, block: int) -> _Hashes:
    parts = [_hashes(part) for part in images.split(block)]
    return _Hashes(np.concatenate([part.codes for part in parts]), np.concatenate([part.edged for part in parts]))


def _nearest(web: Rows, bank: _Hashes, block: int, expect: Callable[[float], None] | None = None) -> Overlap:
    """The nearest of the hashes for every web row; more than ``BITS`` bits where there is none."""
    indices = np.flatnonzero(bank.edged)
    codes = bank.codes[indices]
    place, distance = np.zeros(len(web), np.int64), np.full(len(web), BITS + 1, np.uint8)
    began = time.monotonic()
    for start, part in web.blocks(block):
        hashes = _hashes(part)
        rows = np.flatnonzero(hashes.edged)
        if len(codes):
            for group in np.array_split(rows, max(1, len(rows) * len(codes) // _CELLS)):
                bits, column = _closest(hashes.codes[group], codes)
                distance[start + group], place[start + group] = bits, indices[column]
        if start == 0 and expect is not None:
            expect((time.monotonic() - began) * (len(web) / len(part) - 1))
    return Overlap(torch.arange(len(web)), torch.from_numpy(place), torch.from_numpy(distance.astype(np.int64)))


def _closest(codes: Codes, bank: Codes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """In how many bits the nearest hash of the bank differs, and the first place where it stands."""
    bits = np.bitwise_count(codes[:, None] ^ bank[None, :])
    column = bits.argmin(axis=1)
    return bits[np.arange(len(codes)), column], column


def _hashes(pixels: Bytes) -> _Hashes:
    """Difference hashes of images, each one whole number of 64 bits."""
    steps = torch.cat([row_steps(as_images(part)).cpu() for part in _chunks(pixels)]).numpy()
    packed = np.packbits(steps > 0, axis=1)
    return _Hashes(packed.view(np.uint64)[:, 0], (np.abs(steps) > FLAT).any(axis=1))


def _chunks(pixels: Bytes) -> Iterator[Bytes]:
    """Parts of at most about four million numbers: as floating point they are four times as large as they were."""
    yield from pixels.split(max(1, 2**22 // max(1, pixels.shape[1:].numel())))
