"""Wide residual networks WRN-d-w (Zagoruyko and Komodakis 2016): pre-activation units, no dropout."""

from torch import nn

from dfkd.types import Logits, Maps


class WideUnit(nn.Module):
    """BatchNorm, ReLU, 3 by 3 convolution, twice.

    Where the width changes, the shortcut is a 1 by 1 convolution of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        widens = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if widens else None

    def forward(self, x: Maps) -> Maps:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride), rounded up, not activated."""
        active = self.before(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Stem of 16 channels, three groups of ``(depth - 4) / 6`` units, BatchNorm and ReLU, pooling, head.

    Args:
        classes: number of classes.
        channels: image channels.
        depth: 6n + 4 with n at least 1.
        width: widening factor; the groups have 16, 32 and 64 times as many channels.
    """

    def __init__(self, classes: int, channels: int = 3, *, depth: int = 40, width: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        inputs = 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            rest = (WideUnit(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1))
            self.stages.append(nn.Sequential(WideUnit(inputs, outputs, stride), *rest))
            inputs = outputs
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, h, w) of any size."""
        x = self.relu(self.norm(self.stages(self.stem(x))))
        return self.head(self.flatten(self.pool(x)))
