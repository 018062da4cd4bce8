"""VGG with BatchNorm and one linear layer, for images of 32 or 64 pixels (Simonyan and Zisserman 2015)."""

from collections.abc import Sequence

from torch import nn

from dfkd.types import Logits, Maps

WIDTHS = (64, 128, 256, 512, 512)
LARGE = 64  # from this side on, the fourth block is followed by pooling too


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """3 by 3 convolution with bias, BatchNorm, ReLU, as many times as asked."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        conv = nn.Conv2d(outputs if index else inputs, outputs, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Five blocks with 2 by 2 max pooling between them, global average pooling, one linear head.

    There are three poolings, and a fourth one for a side of 64 or more: the last map is 4 by 4 at 32 pixels
    and at 64.

    Args:
        classes: number of classes.
        channels: image channels.
        convolutions: convolutions in each of the five blocks.
    """

    def __init__(self, classes: int, channels: int = 3, *, convolutions: Sequence[int] = (1, 1, 2, 2, 2)) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            _block(a, b, count) for a, b, count in zip(inputs, WIDTHS, convolutions, strict=True)
        )
        self.halve = nn.ModuleList(nn.MaxPool2d(2) for _ in range(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w), sides of at least 8."""
        halvings = 4 if min(x.shape[-2:]) >= LARGE else 3
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < halvings:
                x = self.halve[index](x)
        return self.head(self.flatten(self.pool(x)))
