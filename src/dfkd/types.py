"""Names for the arrays that cross a boundary. Shapes are checked in the tests, not in production.

Letters: ``n`` images, ``c`` channels, ``h`` by ``w`` pixels, ``k`` classes, ``d`` feature width.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # in [0, 1]
Bytes = UInt8[Tensor, "n c h w"]  # in 0..255
Logits = Float[Tensor, "n k"]
Labels = Int[Tensor, " n"]
Features = Float[Tensor, "n d"]
Maps = Float[Tensor, "n c h w"]
PerImage = Float[Tensor, " n"]
Mask = Bool[Tensor, " n"]
Scalar = Float[Tensor, ""]


class Moments(NamedTuple):
    """Mean and biased variance of one layer's input, per channel, over images and positions."""

    mean: Float[Tensor, " c"]
    var: Float[Tensor, " c"]


class Readout(NamedTuple):
    """What one forward pass read from a network (see ``engine.probe.Probe``).

    ``features`` is the input of the classifier head; ``maps`` the outputs of the named stages, shallow to
    deep, the last one being the map that global pooling (or flattening) sees; ``stats`` the batch moments of the
    input of every call of a BatchNorm layer, in the order of the calls, and ``stored`` the running moments of the layer
    that was called; ``means`` the means of the same inputs over positions only, one row per image. ``maps``, ``stats``,
    ``stored`` and ``means`` are empty unless they were asked for.
    """

    logits: Logits
    features: Features
    maps: tuple[Maps, ...] = ()
    stats: tuple[Moments, ...] = ()
    stored: tuple[Moments, ...] = ()
    means: tuple[Features, ...] = ()


class Batch(NamedTuple):
    """What the student sees in one step: images in [0, 1], and, where a method has them, labels or row numbers.

    ``extra`` has whatever else a method's loss reads, by name, one row per image.
    """

    images: Images
    labels: Labels | None = None
    rows: Labels | None = None
    extra: dict[str, Tensor] | None = None
