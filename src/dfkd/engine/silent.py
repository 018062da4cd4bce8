"""Units that hardly ever fire: what too high a learning rate leaves of a network without BatchNorm.

Such a teacher classifies well all the same, and has less to teach: images are made, and features matched, through the
few filters that are left.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd.engine.probe import Probe
from dfkd.types import Images

__all__ = ["RARE", "Silent", "silent_units"]

RARE = 1e-3  # of images and places: a channel that is positive in fewer carries next to nothing
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class Silent(NamedTuple):
    """Of the ``units`` (channels) of the activation ``layer``, ``silent`` were positive hardly anywhere (``RARE``)."""

    layer: str
    silent: int
    units: int


@torch.no_grad()
def silent_units(probe: Probe, images: Images) -> list[Silent]:
    """Count, for every ReLU module of ``probe.net``, the channels that ``images`` hardly ever make positive.

    A module that is used several times counts once for each use. Networks with normalisation layers give an empty list:
    there silent channels are the work of weight decay, and harmless.

    Args:
        probe: the network, in eval mode, and its normalisation.
        images: in [0, 1], (n, c, h, w).
    """
    if any(isinstance(module, NORMS) for module in probe.net.modules()):
        return []
    shares: list[tuple[str, Tensor]] = []
    relus = {name: module for name, module in probe.net.named_modules() if isinstance(module, nn.ReLU | nn.ReLU6)}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: shares.append((name, _share(out))))
        for name, module in relus.items()
    ]
    try:
        probe(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [Silent(name, int((share < RARE).sum()), len(share)) for name, share in shares]


def _share(out: Tensor) -> Tensor:
    """The share of images and places in which each channel (dimension 1) is positive."""
    return (out.detach() > 0).transpose(0, 1).flatten(1).float().mean(dim=1)
