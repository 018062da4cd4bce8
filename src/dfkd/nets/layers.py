"""Pieces that several classifiers share. Every activation is a module of its own, which hooks can find."""

from torch import nn

from dfkd.types import Maps


def conv_bn(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, padded to keep the size at stride 1, then BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_bn_relu(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """The same as ``conv_bn``, then ReLU."""
    return conv_bn(inputs, outputs, side, stride, groups).append(nn.ReLU())


class ChannelShuffle(nn.Module):
    """Deal the channels out: ``a * (c / groups) + b`` becomes ``b * groups + a`` (ShuffleNet, figure 1)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Maps) -> Maps:
        """Shuffle (n, c, h, w); ``c`` must be a multiple of ``groups``."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
