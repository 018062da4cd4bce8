"""LeNet-5 for 32 by 32 pixels and its two halves (LeCun et al. 1998; the halves: DAFL, KD3)."""

from torch import nn

from dfkd.types import Logits, Maps


class LeNet5(nn.Module):
    """Three 5 by 5 convolutions with ReLU, max pooling after the first two, then two linear layers.

    The published net is ``widths=(6, 16, 120), hidden=84`` on one channel. KD3's half keeps the 84 hidden
    units, ``(3, 8, 60), 84``; DAFL's half also halves those, ``(3, 8, 60), 42``.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        widths: tuple[int, int, int] = (6, 16, 120),
        hidden: int = 84,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Sequential(nn.Conv2d(channels, first, 5), nn.ReLU())
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Sequential(nn.Conv2d(first, second, 5), nn.ReLU())
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Sequential(nn.Conv2d(second, third, 5), nn.ReLU())
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(third, hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, 32, 32)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = self.flatten(self.conv3(x))
        return self.head(self.relu(self.hidden(x)))
