"""Residual networks for small images: ResNet-18/34/50 with a 3 by 3 stem, and the thin 6n+2 family.

He et al. 2016. The stem does not shrink the image and there is no max pooling; every shortcut that changes
shape is a 1 by 1 convolution with BatchNorm.
"""

from collections.abc import Sequence

from torch import nn

from dfkd.nets.layers import conv_bn, conv_bn_relu
from dfkd.types import Logits, Maps

EXPANSION = 4  # a bottleneck's output is this many times as wide as its 3 by 3 convolution


class Unit(nn.Module):
    """One residual unit: two 3 by 3 convolutions, or a bottleneck (1, 3, 1); ReLU after the sum."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION if bottleneck else width
        if bottleneck:
            narrow = conv_bn_relu(inputs, width, 1)
            self.body = nn.Sequential(narrow, conv_bn_relu(width, width, 3, stride), conv_bn(width, outputs, 1))
        else:
            self.body = nn.Sequential(conv_bn_relu(inputs, width, 3, stride), conv_bn(width, outputs, 3))
        identity = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if identity else conv_bn(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Maps) -> Maps:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride), rounded up."""
        return self.relu(self.body(x) + self.shortcut(x))


def _stage(inputs: int, width: int, units: int, stride: int, bottleneck: bool) -> nn.Sequential:
    """``units`` residual units; the first one changes width and size."""
    outputs = width * EXPANSION if bottleneck else width
    first = Unit(inputs, width, stride, bottleneck)
    return nn.Sequential(first, *(Unit(outputs, width, 1, bottleneck) for _ in range(units - 1)))


class ResNet(nn.Module):
    """Stem, stages (stride 1 in the first, 2 in the others), global average pooling, linear head.

    Args:
        classes: number of classes.
        channels: image channels.
        units: residual units in each stage.
        widths: width of each stage (of its 3 by 3 convolutions).
        stem: channels after the stem.
        bottleneck: bottleneck units, as in ResNet-50.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        units: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: int = 64,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.stem = conv_bn_relu(channels, stem, 3)
        self.stages = nn.Sequential()
        inputs = stem
        for index, (width, count) in enumerate(zip(widths, units, strict=True)):
            self.stages.append(_stage(inputs, width, count, 2 if index else 1, bottleneck))
            inputs = width * EXPANSION if bottleneck else width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w) of any size."""
        x = self.pool(self.stages(self.stem(x)))
        return self.head(self.flatten(x))


def thin_resnet(classes: int, channels: int = 3, *, depth: int, stem: int = 16, width: int = 16) -> ResNet:
    """The 6n+2 family for 32 by 32 pixels: three stages of n basic units; ``width`` is the first stage's.

    ``depth=20`` is ResNet-20; ``stem=32, width=64`` the "x4" nets and ``stem=16, width=32`` ResNet-110x2 of
    the distillation benchmarks.
    """
    count = (depth - 2) // 6
    return ResNet(classes, channels, units=(count,) * 3, widths=(width, 2 * width, 4 * width), stem=stem)
