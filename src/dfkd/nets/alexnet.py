"""AlexNet for 32 by 32 pixels, the variant of ZSKD (Nayak et al. 2019, used by STTS), and its two halves."""

from torch import nn

from dfkd.types import Logits, Maps

RADIUS = 2  # channels on either side that the local response normalisation sees
SIZE = 2 * RADIUS + 1


def _relu_and_lrn(relu: nn.Module) -> list[nn.Module]:
    """ReLU, then local response normalisation with the published alpha 1e-4, beta 0.75, bias 1.

    The published alpha multiplies the sum over the window; torch's multiplies the mean, hence ``SIZE``.
    """
    return [relu, nn.LocalResponseNorm(SIZE, alpha=1e-4 * SIZE, beta=0.75, k=1.0)]


def _block(inputs: int, outputs: int, side: int, lrn: bool, pool: bool) -> nn.Sequential:
    """Convolution that keeps the size, ReLU, perhaps normalisation and 3/2 max pooling, BatchNorm."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, side, padding=side // 2)]
    layers += _relu_and_lrn(nn.ReLU()) if lrn else [nn.ReLU()]
    if pool:
        layers.append(nn.MaxPool2d(3, 2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs))


class AlexNet(nn.Module):
    """Five convolutions, BatchNorm after each, then linear layers with dropout and BatchNorm.

    The published net is ``widths=(48, 128, 192, 192, 128), hidden=(512, 256)``. The half of the convolutions
    is ``(24, 64, 96, 96, 64)``; ZSKD's half has ``hidden=(256, 128)`` as well. ``flatten`` gives nine numbers
    per channel of the last block.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        widths: tuple[int, int, int, int, int] = (48, 128, 192, 192, 128),
        hidden: tuple[int, int] = (512, 256),
    ) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        layout = ((5, True, True), (5, True, True), (3, False, False), (3, False, False), (3, False, True))
        self.stages = nn.Sequential(*(_block(a, b, *row) for a, b, row in zip(inputs, widths, layout, strict=True)))
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(9 * widths[-1], hidden[0])
        self.tail1 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden[0]))
        self.hidden2 = nn.Linear(hidden[0], hidden[1])
        self.tail2 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden[1]))
        self.head = nn.Linear(hidden[1], classes)

    def forward(self, x: Maps) -> Logits:
        """Classify images (n, channels, 32, 32)."""
        x = self.flatten(self.stages(x))
        x = self.tail1(self.hidden1(x))
        x = self.tail2(self.hidden2(x))
        return self.head(x)
