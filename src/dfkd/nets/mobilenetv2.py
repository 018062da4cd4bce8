"""MobileNetV2 for small images in two published forms (Sandler et al. 2018).

The form of the distillation benchmarks shrinks the image in the stem and widens or narrows by a factor; the
form of the quantization papers (``stem_stride=1, projections=True``) keeps it, and puts a 1 by 1 convolution
on shortcuts that change the width.
"""

from torch import nn

from dfkd.nets.layers import conv_bn, conv_bn_relu
from dfkd.types import Logits, Maps

# expansion, channels, units, stride of the first unit
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FEATURES = 1280


class InvertedResidual(nn.Module):
    """1 by 1 expansion, 3 by 3 depthwise convolution, linear 1 by 1 projection.

    The input is added at stride 1 where the widths agree, and, with ``project``, through a 1 by 1 convolution
    with BatchNorm where they do not.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, project: bool) -> None:
        super().__init__()
        wide = inputs * expansion
        self.body = nn.Sequential(
            conv_bn_relu(inputs, wide, 1),
            conv_bn_relu(wide, wide, 3, stride, groups=wide),
            conv_bn(wide, outputs, 1),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif stride == 1 and project:
            self.shortcut = conv_bn(inputs, outputs, 1)

    def forward(self, x: Maps) -> Maps:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride), rounded up, without activation."""
        out = self.body(x)
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Stem, seven groups of inverted residuals, a 1 by 1 convolution to 1280 channels, pooling, head.

    Args:
        classes: number of classes.
        channels: image channels.
        width: factor on the channels of stem and groups (rounded down); the 1280 stay.
        stem_stride: stride of the first convolution.
        projections: whether shortcuts that change the width exist.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        width: float = 1.0,
        stem_stride: int = 2,
        projections: bool = False,
    ) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.stem = conv_bn_relu(channels, inputs, 3, stem_stride)
        self.stages = nn.Sequential()
        for expansion, base, units, stride in GROUPS:
            group = nn.Sequential()
            for index in range(units):
                outputs = int(base * width)
                group.append(InvertedResidual(inputs, outputs, expansion, 1 if index else stride, projections))
                inputs = outputs
            self.stages.append(group)
        self.top = conv_bn_relu(inputs, FEATURES, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w) of any size."""
        x = self.top(self.stages(self.stem(x)))
        return self.head(self.flatten(self.pool(x)))
