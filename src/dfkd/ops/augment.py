"""Random crops, flips and rolls of a whole batch at once. Differentiable in the images."""

import math
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.types import Images

__all__ = ["crop_flip", "draw_boxes", "resize_boxes", "roll_flip"]

TRIES = 10  # boxes drawn for an image before it is taken whole

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
    crops = images.reshape(n, c, h * w).gather(2, index).reshape(n, c, h, w)
    return crops * inside[:, None].to(crops.dtype)


def draw_boxes(
    n: int,
    side: tuple[int, int],
    generator: torch.Generator,
    scale: tuple[float, float] = (0.25, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """``n`` random parts of an image, whole pixels: rows (top, left, height, width), int64 (n, 4).

    As the random resized crop of the vision libraries: the area is a uniform share of the image's, the ratio of width
    to height log-uniform; an image for which ``TRIES`` draws do not fit is taken whole.

    Args:
        n: images.
        side: their height and width.
        generator: random stream; the boxes are on its device.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.
    """
    h, w = side
    u, v = torch.rand(2, TRIES, n, generator=generator, device=generator.device)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * u)
    shape = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * v).exp()
    heights, widths = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (heights >= 1) & (heights <= h) & (widths >= 1) & (widths <= w)
    first = fits.to(torch.int8).argmax(dim=0, keepdim=True)
    possible = fits.any(dim=0)
    height = torch.where(possible, heights.gather(0, first)[0], float(h))
    width = torch.where(possible, widths.gather(0, first)[0], float(w))
    y, x = torch.rand(2, n, generator=generator, device=generator.device)
    top, left = (y * (h - height + 1)).floor(), (x * (w - width + 1)).floor()
    return torch.stack([top.clamp(max=h - height), left.clamp(max=w - width), height, width], dim=1).long()


def resize_boxes(images: Images, boxes: Tensor) -> Images:
    """The part of every image that its box cuts out, enlarged to the image's size, bilinearly, corner to corner.

    Args:
        images: (n, c, h, w).
        boxes: (n, 4), rows as :func:`draw_boxes` makes them.
    """
    h, w = images.shape[2:]
    top, left, height, width = boxes.to(images.dtype).T[:, :, None]
    across = torch.linspace(0, 1, w, dtype=images.dtype, device=images.device)
    down = torch.linspace(0, 1, h, dtype=images.dtype, device=images.device)
    x = (left + across * (width - 1)) / max(w - 1, 1) * 2 - 1  # columns in [-1, 1] (n, w)
    y = (top + down * (height - 1)) / max(h - 1, 1) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def roll_flip(images: Images, generator: torch.Generator, most: int, flip: bool = True) -> Images:
    """Roll the whole batch by one draw of up to ``most`` pixels in both directions, and mirror all of it or none.

    DeepInversion's jitter: what leaves at one edge comes in at the other.
    """
    device = images.device
    rows, columns = torch.randint(-most, most + 1, (2, 1), device=device, generator=generator)
    h, w = images.shape[2:]
    # Indexing by drawn numbers, not torch.roll: that would ask the device for them.
    across = (torch.arange(w, device=device) - columns) % w
    if flip:
        mirrored = torch.rand(1, device=device, generator=generator) < 0.5
        across = torch.where(mirrored, across.flip(0), across)
    down = (torch.arange(h, device=device) - rows) % h
    return images[:, :, down][:, :, :, across]
