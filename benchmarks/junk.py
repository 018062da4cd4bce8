"""A pool of which half is junk: ``python -m benchmarks.junk .data/web32.npy .data/halfjunk32.npy``.

KD3 selects web images. Where nearly all of them are photographs like the teacher's data, who selects hardly matters.
Here every second image shows nothing: noise, textures (gratings and blotches of colour), or strokes on black.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.strokes import strokes

Pictures = NDArray[np.uint8]  # (n, h, w, 3)


def noise(n: int, side: int, rng: np.random.Generator) -> Pictures:
    """Independent uniform pixels."""
    return rng.integers(256, size=(n, side, side, 3), dtype=np.uint8)


def textures(n: int, side: int, rng: np.random.Generator) -> Pictures:
    """Half gratings of two colours, half blotches: smoothed noise, stretched to the full range."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    half = n // 2
    angle, period, phase = rng.uniform(0, np.pi, half), rng.uniform(2, 12, half), rng.uniform(0, 2 * np.pi, half)
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    share = 0.5 + 0.5 * np.sin(2 * np.pi * across / period[:, None, None] + phase[:, None, None])[..., None]
    first, second = rng.uniform(0, 255, (2, half, 1, 1, 3))
    gratings = share * first + (1 - share) * second
    blotches = ndimage.gaussian_filter(rng.normal(size=(n - half, side, side, 3)), (0, 2, 2, 0))
    low, high = (edge(blotches, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return np.rint(np.concatenate([gratings, 255 * (blotches - low) / (high - low)])).astype(np.uint8)


def coloured_strokes(photographs: Pictures, rng: np.random.Generator) -> Pictures:
    """The edges of photographs, each in a colour of its own, on black."""
    colours = rng.uniform(0.3, 1, (len(photographs), 1, 1, 3))
    return np.rint(strokes(photographs)[..., None] * colours).astype(np.uint8)


def convert(source: Path, target: Path) -> None:
    """Write a pool as large as ``source`` (.npy, n h w 3): its even rows, and junk in place of the odd ones."""
    photographs, rng = np.load(source, mmap_mode="r"), np.random.default_rng(0)
    pool = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=photographs.shape)
    side, odd = photographs.shape[1], photographs.shape[0] // 2
    pool[::2] = photographs[::2]
    third = odd // 3
    lines = coloured_strokes(np.asarray(photographs[1 : 2 * third : 2]), rng)
    junk = np.concatenate([lines, noise(third, side, rng), textures(odd - third - len(lines), side, rng)])
    pool[1::2] = junk[rng.permutation(len(junk))]
    pool.flush()


def main() -> None:
    """Convert a file of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    convert(options.source, options.target)


if __name__ == "__main__":
    main()
