"""Labelled image sets from files that are already on disk: test sets, and training sets for teachers.

Nothing is downloaded, torchvision is not needed, and no file can run code.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dfkd.data._formats import read_cifar, read_idx
from dfkd.data._limits import zip_members
from dfkd.data._pixels import as_nchw, recolour, resize
from dfkd.data._sources import labelled_folder
from dfkd.data.text import class_list
from dfkd.datasets import DATASETS
from dfkd.errors import UserError

SPLITS = ("train", "test")
Size = tuple[int, int] | None  # height and width, or as they are
STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {name: (known.mean, known.std) for name, known in DATASETS.items()}
)
"""Mean and standard deviation per channel, images in [0, 1], with which published teachers were trained."""


@dataclass(frozen=True)
class ImageSet:
    """Images (uint8, N C H W), their labels (int64, N), class names in label order (or none), and a title.

    ``folders``: the names are those of folders, and the labels only their order.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    names: tuple[str, ...]
    title: str
    folders: bool = False


Labelled = ImageSet | tuple[Any, Any] | str | Path
"""Labelled images as callers give them: a set, a pair of arrays or tensors, or a source for :func:`read_images`."""


def read_images(
    source: str | Path, split: str = "test", side: int | tuple[int, int] | None = None, channels: int | None = None
) -> ImageSet:
    """Read a labelled image set into memory.

    Args:
        source: "digits" (8x8, from scikit-learn), "mnist:DIR", "cifar10:DIR", "cifar100:DIR" (bare names
            look in $DFKD_DATA, then ./data), "FILE.npz" (keys images or x, labels or y), "folder:DIR" or a
            directory (one folder per class; DIR/train and DIR/test or DIR/val are used where DIR has them; png, jpg,
            webp and bmp are read, other pictures are left out, with a warning).
        split: "train" or "test". A .npz file, or a folder without such parts, is the same for both.
        side: height and width wanted, as one number where they are equal. Digits are enlarged bilinearly, MNIST is
            padded with zeros to 32, everything else is resized by Lanczos (other aspect ratios: centre crop). None
            keeps the size.
        channels: 1 or 3. None keeps what the files hold; in a folder the first image decides.

    Raises:
        UserError: missing, damaged or unlabelled files.
    """
    if split not in SPLITS:
        raise UserError(f"read_images needs split 'train' or 'test', got {split!r}; choose one of them")
    size = (side, side) if isinstance(side, int) else side
    if size is not None and min(size) < 1:
        raise UserError(f"read_images needs a side of at least 1 pixel, got {side}; choose a larger one")
    if channels not in (None, 1, 3):
        raise UserError(f"read_images needs channels 1 or 3, got {channels}; choose one of them")
    source = str(source)
    name, _, place = source.partition(":")
    if source == "digits":
        return _finish(_digits(split, size), size, channels)
    if name in _PUBLISHED and (place or source == name):
        return _finish(_PUBLISHED[name](place or None, split, size), size, channels)
    path = Path(place if name == "folder" else source).expanduser()
    if path.is_dir():
        pixels, rows, classes = labelled_folder(path, split, size, channels)
        labels = torch.tensor(rows, dtype=torch.int64)
        return ImageSet(torch.from_numpy(pixels), labels, classes, f"{path.name} {split}", folders=True)
    if name == "folder" or (not path.exists() and path.suffix == ".npz"):
        raise UserError(f"read_images needs an existing file or folder, got {str(path)!r}; check the path")
    if path.suffix == ".npz" and path.is_file():
        return _finish(_npz(path), size, channels)
    if path.suffix == ".npy":
        raise UserError(f"read_images needs labels, got {path} with images only; store both in a .npz")
    names = ", ".join(["digits", *_PUBLISHED])
    raise UserError(f"read_images needs {names}, a .npz file or a folder, got {source!r}; check the name")


def _finish(dataset: ImageSet, size: Size, channels: int | None) -> ImageSet:
    """Colour and size; checks that the labels fit."""
    images, labels = dataset.images, dataset.labels
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(
            f"{dataset.title} needs one label per image, got {len(labels)} for {len(images)} images; check it"
        )
    if bool((labels < 0).any()) or (dataset.names and int(labels.max()) >= len(dataset.names)):
        top = len(dataset.names) - 1 if dataset.names else "K-1"
        raise UserError(
            f"{dataset.title} needs labels 0..{top}, got {int(labels.min())}..{int(labels.max())}; check it"
        )
    array = images.numpy()
    array = recolour(array, array.shape[1] if channels is None else channels, dataset.title)
    if size is not None:
        array = resize(array, *size)
    return ImageSet(torch.from_numpy(np.ascontiguousarray(array)), labels, dataset.names, dataset.title)


def _digits(split: str, size: Size) -> ImageSet:
    """Scikit-learn's digits, 1797 of 8x8; every fifth of each class (by a fixed shuffle) is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    parts = []
    for label in range(10):
        rows = torch.nonzero(labels == label).squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        last = round(len(rows) / 5)
        parts.append(rows[:last] if split == "test" else rows[last:])
    rows_of_split = torch.cat(parts).sort().values
    images, labels = images[rows_of_split], labels[rows_of_split]
    if size is not None:
        small = min(size) < 8
        grown = torch.nn.functional.interpolate(images.double(), size=size, mode="bilinear", antialias=small)
        images = grown.round().clamp(0, 255).to(torch.uint8)
    return ImageSet(images, labels, class_list("digits"), f"digits {split}")


def _find(name: str, place: str | None, folders: tuple[str, ...], files: tuple[str, ...]) -> list[Path]:
    """The ``files`` (or their .gz forms), all in one of ``folders`` of DIR, $DFKD_DATA or ./data."""
    roots = (
        [Path(place).expanduser()] if place else [Path(root) for root in (os.environ.get("DFKD_DATA"), "data") if root]
    )
    for folder in (root / folder for root in roots for folder in folders):
        paths = [
            next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None) for file in files
        ]
        present = [path for path in paths if path is not None]
        if len(present) == len(files):
            return present
    raise UserError(
        f"{name} needs the published files {', '.join(files)}, got none in {' or '.join(map(str, roots))}; "
        f"put them into {roots[-1] / folders[-1]}, or give their folder as {name}:DIR"
    )


def _mnist(place: str | None, split: str, size: Size) -> ImageSet:
    stem = "train" if split == "train" else "t10k"
    files = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    pictures, answers = _find("mnist", place, ("", "raw", "MNIST/raw"), files)
    images = torch.from_numpy(read_idx(pictures, 3))[:, None]
    labels = torch.from_numpy(read_idx(answers, 1)).long()
    if size == (32, 32) and images.shape[2:] == (28, 28):
        images = torch.nn.functional.pad(images, (2, 2, 2, 2))
    return ImageSet(images, labels, class_list("mnist"), f"mnist {split}")


def _cifar10(place: str | None, split: str, size: Size) -> ImageSet:
    files = tuple(f"data_batch_{batch}" for batch in range(1, 6)) if split == "train" else ("test_batch",)
    return _cifar("cifar10", _find("cifar10", place, ("", "cifar-10-batches-py"), files), "labels", split)


def _cifar100(place: str | None, split: str, size: Size) -> ImageSet:
    return _cifar("cifar100", _find("cifar100", place, ("", "cifar-100-python"), (split,)), "fine_labels", split)


def _cifar(name: str, files: list[Path], key: str, split: str) -> ImageSet:
    images, labels = [], []
    for file in files:
        content = read_cifar(file)
        data, answers = content.get("data"), content.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(f"{name} needs rows of 3072 bytes, got something else in {file}; unpack it again")
        if not isinstance(answers, list) or not all(type(answer) is int and abs(answer) < 1000 for answer in answers):
            raise UserError(f"{name} needs a list of integer {key}, got something else in {file}; unpack it again")
        images.append(torch.from_numpy(data).reshape(-1, 3, 32, 32))
        labels.append(torch.tensor(answers, dtype=torch.int64))
    return ImageSet(torch.cat(images), torch.cat(labels), _cifar_names(name, files[0].parent), f"{name} {split}")


def _cifar_names(name: str, folder: Path) -> tuple[str, ...]:
    """Class names as the metadata beside the data has them; the shipped list where that file is missing."""
    file, key = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    if not (folder / file).is_file():
        return class_list(name)
    names = read_cifar(folder / file).get(key)
    if not isinstance(names, list) or not all(isinstance(label, bytes) for label in names):
        raise UserError(f"{name} needs {key} in {folder / file}, got something else; unpack it again")
    return tuple(label.decode("latin1") for label in names)


_PUBLISHED: Mapping[str, Callable[[str | None, str, Size], ImageSet]] = MappingProxyType(
    {"mnist": _mnist, "cifar10": _cifar10, "cifar100": _cifar100}
)


def _npz(path: Path) -> ImageSet:
    try:
        zip_members(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = (next((arrays[key] for key in keys if key in arrays), None) for keys in _NPZ_KEYS)
    except Exception as error:  # a damaged header makes NumPy raise almost any kind of error
        reason = str(error) if "unpacks to" in str(error) else type(error).__name__
        raise UserError(f"read_images needs a sound .npz, got {path} ({reason}); make it again") from error
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise UserError(
            f"read_images needs arrays images (or x) and labels (or y) in {path}, got other keys; rename them"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"read_images needs one integer label per image, got {labels.dtype} {labels.shape}; convert them"
        )
    pixels = np.ascontiguousarray(as_nchw(images, str(path)))
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)), (), path.stem)


_NPZ_KEYS = (("images", "x"), ("labels", "y"))
