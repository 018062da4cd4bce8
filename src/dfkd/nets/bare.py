"""The network itself, where something is put around it."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["bare_network"]


def bare_network(net: nn.Module) -> nn.Module:
    """The network within what ``torch.compile`` and data parallelism put around it."""
    parallel = isinstance(net, DataParallel | DistributedDataParallel)
    inner = net._modules.get("module" if parallel else "_orig_mod")  # by name: the class would load the compiler
    return net if inner is None else bare_network(inner)
