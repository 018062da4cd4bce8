"""Units that never fire: what too high a learning rate leaves of a network without BatchNorm.

Such a teacher classifies well all the same, and has less to teach: images are made, and features matched, through the
few filters that are left.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd.engine.probe import Probe
from dfkd.types import Images

__all__ = ["Silent", "silent_units"]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class Silent(NamedTuple):
    """Of the ``units`` (channels) of the activation ``layer``, ``silent`` were zero on every image."""

    layer: str
    silent: int
    units: int


@torch.no_grad()
def silent_units(probe: Probe, images: Images) -> list[Silent]:
    """Count, for every ReLU module of ``probe.net``, the channels that ``images`` never make positive.

    A module that is used several times counts once for each use. Networks with normalisation layers give an empty list:
    there silent channels are the work of weight decay, and harmless.

    Args:
        probe: the network, in eval mode, and its normalisation.
        images: in [0, 1], (n, c, h, w).
    """
    if any(isinstance(module, NORMS) for module in probe.net.modules()):
        return []
    seen: list[tuple[str, Tensor]] = []
    relus = {name: module for name, module in probe.net.named_modules() if isinstance(module, nn.ReLU | nn.ReLU6)}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.append((name, _most(out))))
        for name, module in relus.items()
    ]
    try:
        probe(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [Silent(name, int((most <= 0).sum()), len(most)) for name, most in seen]


def _most(out: Tensor) -> Tensor:
    """The largest value of each channel (dimension 1) over images and places."""
    return out.detach().transpose(0, 1).flatten(1).amax(dim=1)
