"""A network that the user lends for a run: what a run changes of it, and how that is put back."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfkd.engine.runtime import Runtime

__all__ = ["Flags", "flags_of", "lay_out_contiguously", "put_back", "seeded_devices"]


def seeded_devices(runtime: Runtime) -> list[int]:
    """CUDA devices whose default streams a run touches: seeding touches all, once CUDA is in use."""
    in_use = torch.cuda.is_initialized() or runtime.device.type == "cuda"
    return list(range(torch.cuda.device_count())) if in_use else []


class Flags(NamedTuple):
    """What a network was when it was lent: of each parameter its gradient flag and its numbers where they lay, the
    buffers of each module, and its mode. Layers that it makes later are not among them.
    """

    parameters: list[tuple[nn.Parameter, bool, Tensor]]
    buffers: list[tuple[nn.Module, str, Tensor]]
    modes: list[tuple[nn.Module, bool]]


def flags_of(net: nn.Module) -> Flags:
    """What a run changes of a network that is not its own, to be put back; nothing is copied."""
    parameters = [(p, p.requires_grad, p.data) for p in net.parameters() if not is_lazy(p)]
    buffers = [
        (module, name, buffer)
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    return Flags(parameters, buffers, [(module, module.training) for module in net.modules()])


@torch.no_grad()
def put_back(flags: Flags) -> None:
    """The user's network asks for gradients, is in the modes, and has the numbers that it was given with.

    They are those that it came with, so their device, memory format and precision are, too.
    """
    for parameter, requires_grad, data in flags.parameters:
        parameter.data = data
        parameter.requires_grad_(requires_grad)
    for module, name, buffer in flags.buffers:  # another device, format or precision makes new ones
        module._buffers[name] = buffer
    for module, mode in flags.modes:
        module.training = mode


def lay_out_contiguously(net: nn.Module) -> None:
    """In the user's hands, weights lie in memory as they do in plain PyTorch."""
    if not any(is_lazy(parameter) for parameter in net.parameters()):
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
