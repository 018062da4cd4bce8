"""Initial weights that differ from PyTorch's default."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["initialise"]


def initialise(net: nn.Module, fill: Callable[[Tensor], object]) -> None:
    """Weights of convolutions and linear layers by ``fill``, of BatchNorm from N(1, 0.02); biases 0. In place.

    From the default random stream of the parameters' device; Spaceship-Net's code starts generator and student so.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fill(module.weight)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
