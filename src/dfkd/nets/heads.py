"""Small trained parts that sit beside a network: projectors to another width (SimKD), contrast heads (KD3, CMI)."""

from torch import nn

__all__ = ["contrast_head", "contrast_mlp", "map_projector", "vector_projector"]


def map_projector(inputs: int, outputs: int, side: tuple[int, int] | None = None, relu: bool = True) -> nn.Sequential:
    """SimKD's projector from maps of ``inputs`` channels to maps of ``outputs``.

    1x1, 3x3 and 1x1 convolutions, each with BatchNorm and ReLU, the inner ones ``outputs // 2`` wide. With ``side``
    (h, w) the map is first averaged down to that size. ``relu=False`` leaves the last ReLU out, for features that may
    be negative.
    """
    inner = max(outputs // 2, 1)
    layers: list[nn.Module] = [] if side is None else [nn.AdaptiveAvgPool2d(side)]
    for a, b, kernel in ((inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)):
        layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*(layers if relu else layers[:-1]))


def vector_projector(inputs: int, outputs: int, relu: bool = True) -> nn.Sequential:
    """The same for networks whose classifier does not read a pooled map: linear, BatchNorm, ReLU."""
    layers = [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*(layers if relu else layers[:-1]))


def contrast_head(features: int, width: int = 128) -> nn.Linear:
    """KD3's head (equations 13 and 14); the loss normalises its output."""
    return nn.Linear(features, width)


def contrast_mlp(features: int, width: int = 256) -> nn.Sequential:
    """CMI's head, as wide inside as its input; the loss normalises its output."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))
