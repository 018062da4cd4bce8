"""ShuffleNetV1 with three groups (Zhang et al. 2018) and ShuffleNetV2 x1 (Ma et al. 2018), for small images.

Both have a 1 by 1 stem of 24 channels and no pooling before the stages, as in the distillation benchmarks.
"""

import torch
from torch import nn

from dfkd.nets.layers import ChannelShuffle, conv_bn, conv_bn_relu
from dfkd.types import Logits, Maps

STEM = 24
GROUPS = 3
FEATURES_V2 = 1024


class UnitV1(nn.Module):
    """Grouped 1 by 1 convolution, shuffle, depthwise 3 by 3, grouped 1 by 1; ReLU after joining the shortcut.

    With ``shrink`` the stride is 2 and the average-pooled input is concatenated; otherwise it is added.
    The first grouped convolution of the whole net has one group, since the stem is narrow.
    """

    def __init__(self, inputs: int, outputs: int, shrink: bool) -> None:
        super().__init__()
        added = outputs - inputs if shrink else outputs
        narrow = added // 4
        groups = 1 if inputs == STEM else GROUPS
        self.body = nn.Sequential(
            conv_bn_relu(inputs, narrow, 1, groups=groups),
            ChannelShuffle(groups),
            conv_bn_relu(narrow, narrow, 3, 2 if shrink else 1, groups=narrow),
            conv_bn(narrow, added, 1, groups=GROUPS),
        )
        self.shortcut = nn.AvgPool2d(3, 2, padding=1) if shrink else None
        self.relu = nn.ReLU()

    def forward(self, x: Maps) -> Maps:
        """Map (n, inputs, h, w) to (n, outputs, h, w), or to half the side, rounded up."""
        out = self.body(x)
        joined = out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], dim=1)
        return self.relu(joined)


class ShuffleNetV1(nn.Module):
    """Stem, stages of 4, 8 and 4 units with 240, 480 and 960 channels, global average pooling, head."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn_relu(channels, STEM, 1)
        self.stages = nn.Sequential()
        inputs = STEM
        for outputs, units in ((240, 4), (480, 8), (960, 4)):
            rest = (UnitV1(outputs, outputs, shrink=False) for _ in range(units - 1))
            self.stages.append(nn.Sequential(UnitV1(inputs, outputs, shrink=True), *rest))
            inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w) of any size."""
        x = self.pool(self.stages(self.stem(x)))
        return self.head(self.flatten(x))


class DownV2(nn.Module):
    """Halve the side: two branches that both see the whole input, concatenated and shuffled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(conv_bn(inputs, inputs, 3, 2, groups=inputs), conv_bn_relu(inputs, half, 1))
        self.right = nn.Sequential(
            conv_bn_relu(inputs, half, 1), conv_bn(half, half, 3, 2, groups=half), conv_bn_relu(half, half, 1)
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Maps) -> Maps:
        """Map (n, inputs, h, w) to (n, outputs, h / 2, w / 2), rounded up."""
        return self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))


class UnitV2(nn.Module):
    """Half of the channels pass unchanged, the other half through three convolutions; shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.right = nn.Sequential(
            conv_bn_relu(half, half, 1), conv_bn(half, half, 3, groups=half), conv_bn_relu(half, half, 1)
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Maps) -> Maps:
        """Map (n, width, h, w) to the same shape."""
        left, right = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([left, self.right(right)], dim=1))


class ShuffleNetV2(nn.Module):
    """Stem, stages of 116, 232 and 464 channels (one down unit and 3, 7, 3 others), 1 by 1 to 1024, head."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn_relu(channels, STEM, 1)
        self.stages = nn.Sequential()
        inputs = STEM
        for outputs, units in ((116, 3), (232, 7), (464, 3)):
            rest = (UnitV2(outputs) for _ in range(units))
            self.stages.append(nn.Sequential(DownV2(inputs, outputs), *rest))
            inputs = outputs
        self.top = conv_bn_relu(inputs, FEATURES_V2, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(FEATURES_V2, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w) of any size."""
        x = self.top(self.stages(self.stem(x)))
        return self.head(self.flatten(self.pool(x)))
