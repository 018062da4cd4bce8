"""A plain CNN without BatchNorm and a smaller one, as many people have them: for 28 x 28 pixels."""

from torch import Tensor, nn


class PlainCNN(nn.Module):
    """Three times convolution, ReLU and pooling, then two linear layers.

    Args:
        widths: channels of the convolutions.
        hidden: width of the first linear layer.
    """

    def __init__(self, widths: tuple[int, int, int], hidden: int, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * 9, hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (n, channels, 28, 28)."""
        return self.head(self.relu(self.hidden(self.convolutions(x).view(len(x), -1))))


def large() -> PlainCNN:
    """390,410 parameters."""
    return PlainCNN((32, 64, 128), 256)


def small() -> PlainCNN:
    """9,778 parameters."""
    return PlainCNN((8, 16, 16), 40)
