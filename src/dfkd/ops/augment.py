"""Random crop and flip of a whole batch at once, with its own draw per image. Differentiable in the images."""

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["crop_flip"]

T = TypeVar("T", bound=Tensor)


def crop_flip(images: Tensor, generator: torch.Generator, pad: int = 4, flip: bool = True) -> Tensor:
    """Crop back to size after zero padding by ``pad``, and mirror with probability one half, per image.

    Padding is 0 in pixel space, i.e. black, before any normalisation. Works on uint8 and float (n, c, h, w), keeps the
    dtype, and is one gather: position (i, j) of image b is read from (i + dy_b, ±j + dx_b), or is 0 outside.

    Args:
        images: (n, c, h, w), in [0, 1] or 0..255.
        generator: random stream on the images' device.
        pad: largest shift in pixels, in both directions.
        flip: mirror left to right with probability 0.5.
    """
    n, c, h, w = images.shape
    device = images.device
    rows = torch.arange(h, device=device).expand(n, h)
    columns = torch.arange(w, device=device).expand(n, w)
    if flip:
        mirrored = torch.rand(n, 1, device=device, generator=generator) < 0.5
        columns = torch.where(mirrored, w - 1 - columns, columns)
    if pad > 0:
        shift = torch.randint(-pad, pad + 1, (2, n, 1), device=device, generator=generator)
        rows, columns = rows + shift[0], columns + shift[1]
    if pad == 0 and not flip:
        return images
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    place = rows.clamp(0, h - 1)[:, :, None] * w + columns.clamp(0, w - 1)[:, None, :]
    index = place.reshape(n, 1, h * w).expand(n, c, h * w)
    picked = images.reshape(n, c, h * w).gather(2, index).reshape(n, c, h, w)
    return picked * inside[:, None].to(picked.dtype)
