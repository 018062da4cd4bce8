"""Ways to run a network other than train and eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["batch_statistics"]


@contextmanager
def batch_statistics(net: nn.Module, on: bool = True) -> Iterator[None]:
    """Within it, BatchNorm layers normalise by the statistics of the batch at hand and store nothing.

    Everything else (dropout, the stored statistics themselves) stays as it is. ``on=False`` changes nothing.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, _BatchNorm)] if on else []
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, tracking) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracking
