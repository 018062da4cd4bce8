"""Web images as strokes: ``python -m benchmarks.strokes .data/web32.npy .data/strokes32.npy``.

KD3 on MNIST uses MNIST-M and SVHN, photographs with digits in them, as its web images. Where only photographs without
digits are at hand, their edges are closer to handwriting: bright lines on black, with an empty margin. Nothing of
MNIST is used, except that its digits are bright strokes in the middle of a black square.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MARGIN = 5  # pixels left black on each side
PIECES = 2  # connected strokes kept of each image, the largest
COVER = 0.15  # share of the pixels of an image that become strokes
CHUNK = 4096


def strokes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Photographs (n, h, w, 3) as strokes (n, h, w): the steepest places of each image, drawn soft and bright."""
    grey = images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    smooth = ndimage.gaussian_filter(grey, (0, 1.0, 1.0))
    steep = np.hypot(ndimage.sobel(smooth, axis=1), ndimage.sobel(smooth, axis=2))
    steep[:, :MARGIN], steep[:, -MARGIN:], steep[:, :, :MARGIN], steep[:, :, -MARGIN:] = 0, 0, 0, 0
    least = np.quantile(steep.reshape(len(steep), -1), 1 - COVER, axis=1)[:, None, None]
    lines = np.stack([_largest(mask) for mask in (steep >= least) & (steep > 0)])
    drawn = ndimage.gaussian_filter(lines.astype(np.float32), (0, 0.6, 0.6))
    peak = drawn.max(axis=(1, 2), keepdims=True)
    return np.rint(255 * drawn / np.maximum(peak, 1e-6)).astype(np.uint8)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected pieces of a mask."""
    pieces, n = ndimage.label(mask, np.ones((3, 3)))
    if n <= PIECES:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return np.isin(pieces, np.argsort(sizes)[-PIECES:] + 1)


def main() -> None:
    """Convert a file of photographs, block by block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    convert(options.source, options.target)


def convert(source: Path, target: Path) -> None:
    """Write the strokes of the photographs in ``source`` (.npy, n h w 3) to ``target`` (.npy, n h w 1)."""
    photographs = np.load(source, mmap_mode="r")
    shape = (*photographs.shape[:3], 1)
    drawn = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(photographs), CHUNK):
        part = slice(start, start + CHUNK)
        drawn[part] = strokes(np.asarray(photographs[part]))[..., None]
    drawn.flush()


if __name__ == "__main__":
    main()
