"""Generators: from a code to images in [0, 1], or to normalised ones (DAFL)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dfkd.ops.doubling import DoublingConv
from dfkd.types import Images

__all__ = ["ConvGenerator", "DeepGenerator", "NoisyLayer", "TanhGenerator", "redraw"]

SLIP = 0.8  # eps of DAFL's BatchNorm layers: the public code passes it where it surely meant something else


def redraw(module: nn.Module) -> None:
    """Initialise every layer anew from torch's default stream, in place: what constructing it again would give."""
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()


def _block(inputs: int, outputs: int, double: bool = True) -> Iterable[nn.Module]:
    yield DoublingConv(inputs, outputs) if double else nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.LeakyReLU(0.2, inplace=True)


class ConvGenerator(nn.Module):
    """The CMI family's generator (CMI, Fast, Spaceship-Net; NAYER for small images).

    ``Linear(inputs, 2w·s0²) -> BN -> x2 -> conv 2w -> x2 -> conv w -> conv c -> sigmoid`` with s0 = side / 4 and w =
    ``width``. It decodes in stages, so that a method may read or exchange features between them: tap 0 after the
    first BN (2w at side/4), tap 1 after the first block (2w at side/2), tap 2 after the second (w at full side). A
    doubling and the convolution after it are one layer, ``dfkd.ops.doubling.DoublingConv``.

    Args:
        inputs: length of the code.
        image_shape: (c, h, w), sides multiples of 4.
        width: channels of the last block, ``ngf`` in the public codes.
        first: channels that the linear layer makes, times ``width``; 4 is the large generator of CMI's harness.
    """

    taps = 3

    def __init__(self, inputs: int, image_shape: tuple[int, int, int], width: int = 64, first: int = 2) -> None:
        super().__init__()
        channels, h, w = image_shape
        self.start = (first * width, h // 4, w // 4)
        self.project = nn.Linear(inputs, first * width * (h // 4) * (w // 4))
        self.norm = nn.BatchNorm2d(first * width)
        self.block1 = nn.Sequential(*_block(first * width, 2 * width))
        self.block2 = nn.Sequential(*_block(2 * width, width))
        self.paint = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, code: Tensor) -> Images:
        """Codes (n, inputs) to images (n, c, h, w) in [0, 1]."""
        return self.decode(self.features(code)[-1], self.taps - 1)

    def features(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the three taps see."""
        first = self.norm(self.project(code).view(-1, *self.start))
        second = self.block1(first)
        return first, second, self.block2(second)

    def decode(self, features: Tensor, tap: int) -> Images:
        """The rest of the network after ``tap`` (0, 1 or 2), in the weights' type and memory format from the start."""
        weight = next(self.block2.parameters())
        last = weight.is_contiguous(memory_format=torch.channels_last)
        # One copy for both.
        features = features.to(weight.dtype, memory_format=torch.channels_last if last else torch.preserve_format)
        for block in (self.block1, self.block2, self.paint)[tap:]:
            features = block(features)
        return features


class TanhGenerator(nn.Module):
    """DAFL's generator: like :class:`ConvGenerator`, but it paints in normalised space, with no bound.

    ``Linear(inputs, 2w·s0²) -> BN -> x2 -> conv 2w -> x2 -> conv w -> conv c -> tanh -> BN without scale`` with s0 =
    side / 4 and w = ``width``; convolutions have biases, the two BatchNorm layers behind them an eps of 0.8.

    Args:
        inputs: length of the code.
        image_shape: (c, h, w), sides multiples of 4.
        width: channels of the last block, 64 in the public code.
    """

    def __init__(self, inputs: int, image_shape: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        channels, h, w = image_shape
        self.start = (2 * width, h // 4, w // 4)
        self.project = nn.Linear(inputs, 2 * width * (h // 4) * (w // 4))
        self.norm = nn.BatchNorm2d(2 * width)
        layers: list[nn.Module] = []
        for outputs in (2 * width, width):
            layers.append(DoublingConv(2 * width, outputs, bias=True))
            layers += [nn.BatchNorm2d(outputs, eps=SLIP), nn.LeakyReLU(0.2, inplace=True)]
        self.blocks = nn.Sequential(*layers)
        last = nn.BatchNorm2d(channels, affine=False)
        self.paint = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(), last)

    def forward(self, code: Tensor) -> Tensor:
        """Codes (n, inputs) to normalised images (n, c, h, w), of mean 0 and variance 1 per channel in train mode."""
        first = self.norm(self.project(code).view(-1, *self.start))
        return self.paint(self.blocks(first))


class DeepGenerator(nn.Module):
    """NAYER's generator for 224 pixels: four doublings from side / 16, no BN directly after the linear layer.

    Args:
        inputs: length of the code.
        image_shape: (c, h, w), sides multiples of 16.
        width: 64 in the public code.
    """

    def __init__(self, inputs: int, image_shape: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        channels, h, w = image_shape
        self.start = (2 * width, h // 16, w // 16)
        self.project = nn.Linear(inputs, 2 * width * (h // 16) * (w // 16))
        layers: list[nn.Module] = [*_block(2 * width, 2 * width, double=False)]
        for a, b in ((2 * width, 2 * width), (2 * width, width), (width, width), (width, width)):
            layers += _block(a, b)
        self.blocks = nn.Sequential(*layers)
        self.paint = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, code: Tensor) -> Images:
        """Codes (n, inputs) to images (n, c, h, w) in [0, 1]."""
        return self.paint(self.blocks(self.project(code).view(-1, *self.start)))


class NoisyLayer(nn.Module):
    """NAYER's noisy layer, ``Z(e) = W·BN(e) + b`` (eq. 3): n parallel linear layers behind one shared BatchNorm.

    Row i of the batch goes through linear layer ``i // group``, as one batched product. ``redraw`` gives every linear
    layer weights from N(0, 1) and bias 0; the BatchNorm keeps its affine parameters until the generator is renewed.

    Args:
        inputs: length d of an embedding.
        outputs: length r of a code.
        rows: batch size.
        group: rows that share one linear layer (K classes: "K-to-1").
        norm: normalise the embeddings first.
    """

    def __init__(self, inputs: int, outputs: int, rows: int, group: int, norm: bool = True) -> None:
        super().__init__()
        group = min(group, rows)  # a batch of fewer rows than a group has one layer and needs no filling up
        self.rows, self.group = rows, group
        layers = -(-rows // group)
        self.norm = nn.BatchNorm1d(inputs) if norm else nn.Identity()
        self.weight = nn.Parameter(torch.empty(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(layers, 1, outputs))
        self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """New noise: weights N(0, 1), bias 0."""
        self.weight.normal_()
        self.bias.zero_()

    def reset_parameters(self) -> None:
        """For :func:`redraw` of a whole generator."""
        self.redraw()

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (rows, d) to codes (rows, r)."""
        normed = self.norm(embedding)
        short = self.weight.shape[0] * self.group - self.rows
        padded = torch.cat([normed, normed.new_zeros(short, normed.shape[1])]) if short else normed
        grouped = padded.view(self.weight.shape[0], self.group, -1)
        return torch.baddbmm(self.bias, grouped, self.weight).flatten(0, 1)[: self.rows]
