"""Bytes to bytes: layout, channels and size of images, shared by the readers and the web rows."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from dfkd.errors import UserError

ByteArray = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
UNREAD = frozenset({".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm"})  # pictures too
GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
# A photograph has 4 pixels to the byte, a blank JPEG 64, a blank PNG 1,000; up to 16 megapixels any will do.
MOST_PIXELS = 2**24
PIXELS_PER_BYTE = 64
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "F"})


def warn_of_left_out(folder: Path, unread: Mapping[str, int]) -> None:
    """Say how many pictures below ``folder`` are of kinds that are not read, by ending; nothing where none is."""
    if unread:
        listing = ", ".join(f"{unread[ending]:,} {ending}" for ending in sorted(unread))
        warnings.warn(f"{folder}: {listing} are left out; convert them to png or jpg", stacklevel=3)


def as_nchw(array: ByteArray, who: str) -> ByteArray:
    """A view N C H W of images stored as N H W, N H W C or N C H W.

    An axis of 1 or 3 tells channels; failing that, the two equal axes are height and width.

    Raises:
        UserError: not uint8, not images, or both readings are possible.
    """
    if array.dtype != np.uint8:
        raise UserError(f"{who} needs uint8 images in 0..255, got {array.dtype}; convert them first")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise UserError(f"{who} needs images N C H W or N H W C, got shape {array.shape}; reshape them first")
    _, first, middle, last = array.shape
    head, tail = first in (1, 3), last in (1, 3)
    if head == tail:
        head, tail = middle == last != first, first == middle != last
    if head == tail and not first == middle == last == 1:
        raise UserError(f"{who} needs a clear channel axis, got shape {array.shape}; store images as N C H W, C 1 or 3")
    return array.transpose(0, 3, 1, 2) if tail else array


def recolour(images: ByteArray, channels: int, who: str) -> ByteArray:
    """N C H W with ``channels`` channels: gray is repeated, colour is weighted by ``GRAY`` and rounded."""
    channels_now = images.shape[1]
    if channels == channels_now:
        return images
    if channels_now == 1:
        return np.repeat(images, channels, axis=1)
    if channels_now == 3 and channels == 1:
        out = np.empty((len(images), 1, *images.shape[2:]), dtype=np.uint8)
        step = max(1, 2**22 // max(1, images[:1].size))  # images at a time: as numbers they are eight times as large
        for start in range(0, len(images), step):
            luma = np.tensordot(np.asarray(GRAY, dtype=np.float64), images[start : start + step], axes=(0, 1))
            out[start : start + step, 0] = np.rint(luma).astype(np.uint8)
        return out
    fitting = "1 or 3" if channels == 1 else f"1 or {channels}"
    raise UserError(f"{who} needs images with {fitting} channels, got {channels_now}; convert them first")


def resize(images: ByteArray, height: int, width: int) -> ByteArray:
    """N C H W by Lanczos, channel by channel; other aspect ratios lose their border (centre crop)."""
    if images.shape[2:] == (height, width):
        return images
    out = np.empty((*images.shape[:2], height, width), dtype=np.uint8)
    for target, image in zip(out.reshape(-1, height, width), images.reshape(-1, *images.shape[2:]), strict=True):
        target[:] = np.asarray(_fit(Image.fromarray(image), height, width))
    return out


def decode(file: Path | IO[bytes], channels: int | None, size: tuple[int, int] | None) -> ByteArray:
    """One image file as C H W; resized by Lanczos (centre crop) when ``size`` = (height, width) is given.

    ``channels`` None keeps gray gray and makes everything else RGB. Transparency is dropped. A picture that says which
    side is up (EXIF, as those of cameras and phones do) is turned.

    Raises:
        UserError: the file is no image, damaged, or has more pixels than a file of its size should. Pillow's
            decoders raise many kinds of errors on hostile bytes; all of them end here.
    """
    try:
        with Image.open(file) as picture:
            if math.prod(picture.size) > MOST_PIXELS + PIXELS_PER_BYTE * _bytes_of(file):
                raise ValueError("more pixels than a file of its size should have")
            return pixels_of(picture, channels, size)
    except Exception as error:
        name = file if isinstance(file, Path) else "an archive member"
        raise UserError(
            f"the image reader needs a sound image, got {name} ({type(error).__name__}); remove it"
        ) from error


def pixels_of(image: Image.Image, channels: int | None, size: tuple[int, int] | None) -> ByteArray:
    """An opened image as C H W, coloured and resized as :func:`decode` does it. Pillow's errors pass through."""
    image.load()  # damaged pixels are an error; of some formats reading EXIF data decodes them and hides it
    image = turned_picture(image)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # the palette may keep alpha as bytes
    gray = channels == 1 or (channels is None and image.mode in _GRAY_MODES)
    image = _eight_bits(image).convert("L" if gray else "RGB")
    pixels = np.asarray(image if size is None else _fit(image, *size))
    return pixels[None] if gray else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def turned_picture(image: Image.Image) -> Image.Image:
    """The picture with the side up that its EXIF data say; as it is where they say nothing, or are damaged."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # Pillow raises almost any kind of error on hostile bytes; the pixels may be sound
        return image


def _bytes_of(file: Path | IO[bytes]) -> int:
    if isinstance(file, Path):
        return file.stat().st_size
    at = file.tell()
    size = file.seek(0, 2)
    file.seek(at)
    return size


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray scaled to 8 bits; Pillow would clip it."""
    if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        return image
    return Image.fromarray(np.rint(np.clip(np.asarray(image, dtype=np.float64), 0, 65535) / 257).astype(np.uint8))


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
