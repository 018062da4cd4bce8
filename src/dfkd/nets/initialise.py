"""Initial weights that differ from PyTorch's default."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["initialise"]


def initialise(net: nn.Module, fill: Callable[[Tensor], object]) -> None:
    """Weights of convolutions and linear layers by ``fill``, of BatchNorm from N(1, 0.02); biases 0. In place.

    From the default random stream of the parameters' device; Spaceship-Net's code starts generator and student so.
    Parameters that ask for no gradient are frozen: they keep their values, and nothing is drawn for them.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fill_weight = fill
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            fill_weight = _fill_gain
        else:
            continue
        if module.weight.requires_grad:
            fill_weight(module.weight)
        if module.bias is not None and module.bias.requires_grad:
            nn.init.zeros_(module.bias)


def _fill_gain(weight: Tensor) -> object:
    return nn.init.normal_(weight, 1, 0.02)
