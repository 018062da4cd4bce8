"""Sheets of small images: one row a class, so that the same class can be followed from round to round."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dfkd.errors import UserError
from dfkd.report.canvas import INK, font
from dfkd.types import Bytes

BORDER = 1  # transparent pixels around every tile; rows and columns are then exact fractions of the sheet


class Layout(NamedTuple):
    """Which classes a sheet shows (one row each), and how many images of each."""

    classes: tuple[int, ...]
    columns: int


def magnification(height: int, width: int, tile: int = 48) -> int:
    """The whole factor by which images grow so that their longer side has at least ``tile`` pixels."""
    return max(1, -(-tile // max(height, width)))


def row_height(image_shape: tuple[int, int, int]) -> int:
    """Pixels from one row of a sheet to the next, for images of (channels, height, width)."""
    _, height, width = image_shape
    return height * magnification(height, width) + 2 * BORDER


def layout(
    image_shape: tuple[int, int, int],
    classes: int,
    rows: int = 20,
    columns: int = 10,
    pixels: int = 1_000_000,
) -> Layout:
    """The sheet for one run, the same in every round: at most ``rows`` classes, evenly spread, and ``pixels``
    pixels.

    Args:
        image_shape: channels, height, width.
        classes: number of classes K.
        rows: most rows; with more classes, every (K / rows)-th class is shown.
        columns: most images of a class.
        pixels: most pixels of the whole sheet; large images get fewer columns, then fewer rows.
    """
    _, height, width = image_shape
    factor = magnification(height, width)
    tiles = max(1, pixels // ((height * factor + 2 * BORDER) * (width * factor + 2 * BORDER)))
    rows = min(rows, classes)
    columns = max(1, min(columns, max(tiles // rows, min(5, tiles))))
    rows = max(1, min(rows, tiles // columns))
    return Layout(tuple(row * classes // rows for row in range(rows)), columns)


def image_grid(
    images: Tensor, labels: Tensor, columns: int, classes: Sequence[int] | None = None, tile: int = 48
) -> Image.Image:
    """One sheet of images: row ``i`` holds the first ``columns`` images of class ``classes[i]``.

    Args:
        images: uint8, N C H W. One or two channels show as gray (the first), more as colour (the first
            three).
        labels: the class of each image.
        columns: images in a row; a class with fewer leaves transparent places.
        classes: the rows, top to bottom; default: the classes that occur, in order.
        tile: images are enlarged by a whole factor (nearest neighbour) to at least so many pixels.

    Returns:
        An RGBA image of ``len(classes) * (H * factor + 2)`` by ``columns * (W * factor + 2)`` pixels; the
        border of one pixel around each image is transparent.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise UserError(
            f"image_grid needs uint8 images N C H W and N labels, got {images.dtype} {tuple(images.shape)} "
            f"and {len(labels)} labels; convert the images with (255 * x).round().byte()"
        )
    rows = sorted(set(labels.tolist())) if classes is None else list(classes)
    if not rows or columns < 1:
        raise UserError(
            f"image_grid needs a class and a column at least, got {len(rows)} classes and {columns} columns; "
            "give images to show"
        )
    height, width = images.shape[-2:]
    factor = magnification(height, width, tile)
    pixels = _rgb(images).repeat(factor, axis=1).repeat(factor, axis=2)
    down, across = height * factor + 2 * BORDER, width * factor + 2 * BORDER
    sheet = np.zeros((len(rows) * down, columns * across, 4), np.uint8)
    for row, label in enumerate(rows):
        columns_of_label = (labels == label).nonzero().flatten()[:columns].tolist()
        for column, index in enumerate(columns_of_label):
            top, left = row * down + BORDER, column * across + BORDER
            place = sheet[top : top + height * factor, left : left + width * factor]
            place[..., :3] = pixels[index]
            place[..., 3] = 255
    return Image.fromarray(sheet)


def with_names(
    picture: Image.Image, rows: Sequence[str] = (), columns: Sequence[str] = (), most: int = 120, size: int = 13
) -> Image.Image:
    """``picture`` with names to the left of its rows and above its columns, on no background.

    Args:
        picture: rows and columns of equal size.
        rows, columns: names, each for an equal part of the height or width; too long ones are cut.
        most: pixels for the names of rows.
        size: of the letters, in pixels.
    """
    gap, letters = size // 2, font(size)
    left = min(most, max((int(letters.getlength(name)) + 3 for name in rows), default=-gap)) + gap
    top = size + gap if columns else 0
    sheet = Image.new("RGBA", (left + picture.width, top + picture.height))
    sheet.paste(picture.convert("RGBA"), (left, top))
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(rows):
        middle = top + round((i + 0.5) * picture.height / len(rows))
        pen.text((left - gap, middle), _shorten(name, left - gap, size), fill=INK, font=letters, anchor="rm")
    for i, name in enumerate(columns):
        middle, width = left + round((i + 0.5) * picture.width / len(columns)), picture.width // len(columns)
        pen.text((middle, 2), _shorten(name, width - 2, size), fill=INK, font=letters, anchor="mt")
    return sheet


def _shorten(name: str, width: int, size: int) -> str:
    """As much of ``name`` as fits into ``width`` pixels."""
    if font(size).getlength(name) <= width:
        return name
    while name and font(size).getlength(name + "…") > width:
        name = name[:-1]
    return f"{name.rstrip()}…"


def _rgb(images: Bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """N C H W of any number of channels to N H W 3."""
    colours = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return colours.permute(0, 2, 3, 1).contiguous().cpu().numpy()
