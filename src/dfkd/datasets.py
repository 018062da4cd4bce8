"""The data sets that are known by name, one row each. This module does not import torch: help texts read it.

Class names are in ``data/names.json``; images are read by :func:`dfkd.data.readers.read_images` from a folder of class
folders, or, where the published files have a format of their own, by the reader of that name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DATASETS", "DataSet"]


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set.

    Attributes:
        image_size: (channels, height, width).
        mean, std: per channel, of pixels in [0, 1], with which published teachers were trained.
        upright: a mirrored image belongs to no class (digits), so no default may mirror.
    """

    image_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    upright: bool = False


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "digits": DataSet((1, 8, 8), (0.3053,), (0.3759,), upright=True),
        "mnist": DataSet((1, 32, 32), (0.1307,), (0.3081,), upright=True),
        "svhn": DataSet((3, 32, 32), *_HALF, upright=True),
        "cifar10": DataSet((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": DataSet((3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        # Those of its authors.
        "cinic10": DataSet((3, 32, 32), (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)),
        "tiny-imagenet": DataSet((3, 64, 64), *_HALF),
        "imagenette": DataSet((3, 224, 224), *_IMAGENET),
        "imagenet": DataSet((3, 224, 224), *_IMAGENET),
    }
)
