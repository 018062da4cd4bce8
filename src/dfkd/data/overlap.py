"""Are images that a student is judged on hidden among the web images it learns from?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.ops.hashing import difference_hash, nearest
from dfkd.ops.pixels import as_images
from dfkd.types import Bytes, Labels

__all__ = ["Overlap", "web_overlap"]


class Overlap(NamedTuple):
    """Near-duplicates: the web row, the image it resembles, and in how many bits of 64 the hashes differ."""

    web: Labels
    image: Labels
    distance: Labels


def web_overlap(web: Rows, images: Bytes, at_most: int = 4, block: int = 4096) -> Overlap:
    """Web images whose difference hash (64 bits) differs from that of some of ``images`` in at most ``at_most`` bits.

    Nothing is removed: what to do about them is for people to decide. Pictures without edges (one colour) have no
    hash to speak of and are left out on both sides.

    Args:
        web: unlabelled rows.
        images: uint8 (n, c, h, w) of the same channels, such as the test images.
        at_most: bits that may differ; 0 finds copies, above about 8 chance resemblances appear.
        block: images hashed at a time.

    Returns:
        One entry per web image found, in the order of the rows.
    """
    codes = torch.cat([_codes(part) for part in images.split(block)])
    kept = codes.any(dim=1).nonzero().flatten()
    found = [_matches(_codes(part), start, codes, kept, at_most) for start, part in web.blocks(block)]
    return Overlap(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _codes(pixels: Bytes) -> Bool[Tensor, "n 64"]:
    return difference_hash(as_images(pixels)).cpu()


def _matches(codes: Tensor, start: int, bank: Tensor, kept: Tensor, at_most: int) -> Overlap:
    rows = codes.any(dim=1).nonzero().flatten()
    if not len(kept) or not len(rows):
        none = torch.zeros(0, dtype=torch.int64)
        return Overlap(none, none, none)
    distance, place = nearest(codes[rows], bank[kept])
    close = distance <= at_most
    return Overlap(start + rows[close], kept[place[close]], distance[close])
