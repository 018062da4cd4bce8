"""A plain CNN without BatchNorm for 28 by 28 pixels, as many people have one, and a smaller one."""

from torch import nn

from dfkd.types import Logits, Maps


class PlainCNN(nn.Module):
    """Three times convolution, ReLU and pooling, then two linear layers.

    Args:
        classes: outputs.
        channels: of the images.
        widths: channels of the convolutions.
        hidden: width of the first linear layer.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        widths: tuple[int, int, int] = (32, 64, 128),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(widths[-1] * 9, hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Maps) -> Logits:
        """Classify normalised images (n, channels, 28, 28)."""
        return self.head(self.relu(self.hidden(self.flatten(self.convolutions(x)))))
