"""What a method shows of a run, as data: the report draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from dfkd.types import Bytes, Labels

__all__ = ["Bars", "Cloud", "Curves", "Grid", "View", "affordable"]


@dataclass(frozen=True)
class View:
    """One figure.

    Attributes:
        caption: what it shows, one or two sentences.
        alt: what is said to those who do not see it.
        numbers: what can be read from it, or belongs beside it.
    """

    caption: str
    alt: str
    numbers: Mapping[str, float] = field(default_factory=dict, kw_only=True)


@final
@dataclass(frozen=True)
class Grid(View):
    """Images in rows.

    Attributes:
        images: uint8 (n, c, h, w).
        rows: the row of each image, from 0 (n,).
        columns: images in a row, at most.
        names: of equal parts of the height, top to bottom.
    """

    images: Bytes
    rows: Labels
    columns: int
    names: Sequence[str] = ()


@final
@dataclass(frozen=True)
class Bars(View):
    """One bar for each name; ``unit`` is what is counted."""

    heights: Mapping[str, float]
    unit: str


@final
@dataclass(frozen=True)
class Curves(View):
    """Lines of points (x, y) by name; ``across`` says what x is, ``levels`` are heights of dashed lines by name."""

    lines: Mapping[str, Sequence[tuple[float, float]]]
    across: str
    levels: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Cloud(View):
    """Points (n, d) by the name of their group, shown in two dimensions; later ones on top, ``backdrop`` is faint."""

    groups: Mapping[str, Tensor]
    backdrop: str = ""


def affordable(image_shape: tuple[int, int, int], pixels: int, low: int, high: int) -> int:
    """How many images may be looked at: about ``pixels`` together, at least ``low`` and at most ``high``."""
    _, height, width = image_shape
    return max(low, min(high, pixels // (height * width)))
