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
    """What a network was when it was lent; layers that it makes later are not among them.

    Attributes:
        requires_grad: of each parameter.
        numbers: of each parameter and its gradient, where they lay.
        buffers: of each module, by name.
        modes: of each module, whether it trains.
    """

    requires_grad: list[tuple[nn.Parameter, bool]]
    numbers: list[tuple[Tensor, Tensor]]
    buffers: list[tuple[nn.Module, str, Tensor]]
    modes: list[tuple[nn.Module, bool]]


def flags_of(net: nn.Module) -> Flags:
    """What a run changes of a network that is not its own, to be put back; nothing is copied."""
    parameters = [p for p in net.parameters() if not is_lazy(p)]
    numbers = [(t, t.data) for p in parameters for t in (p, p.grad) if t is not None]
    buffers = [
        (module, name, buffer)
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    modes = [(module, module.training) for module in net.modules()]
    return Flags([(p, p.requires_grad) for p in parameters], numbers, buffers, modes)


@torch.no_grad()
def put_back(flags: Flags) -> None:
    """The user's network asks for gradients, is in the modes, and has the numbers that it was given with.

    They are those that it came with, so their device, memory format and precision are, too.
    """
    for tensor, data in flags.numbers:
        tensor.data = data
    for parameter, requires_grad in flags.requires_grad:
        parameter.requires_grad_(requires_grad)
    for module, name, buffer in flags.buffers:  # another device, format or precision makes new ones
        module._buffers[name] = buffer
    for module, mode in flags.modes:
        module.training = mode


def lay_out_contiguously(net: nn.Module) -> None:
    """In the user's hands, weights lie in memory as they do in plain PyTorch."""
    if not any(is_lazy(parameter) for parameter in net.parameters()):
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
