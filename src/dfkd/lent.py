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
    """Gradient flags, modes, and what was not float32, of a network."""

    gradients: list[bool]
    modes: list[bool]
    others: dict[str, Tensor]


def flags_of(net: nn.Module) -> Flags:
    """What a run changes of a network that is not its own, to be put back."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    registered = {
        name: t.data
        for name, t in tensors.items()
        if not is_lazy(t) and t.is_floating_point() and t.dtype != torch.float32
    }
    return Flags([p.requires_grad for p in net.parameters()], [m.training for m in net.modules()], registered)


def put_back(net: nn.Module, flags: Flags) -> None:
    """The user's network asks for gradients, is in the modes, and has the numbers that it was given with."""
    for parameter, requires_grad in zip(net.parameters(), flags.gradients, strict=True):
        if not is_lazy(parameter):
            parameter.requires_grad_(requires_grad)
    for module, mode in zip(net.modules(), flags.modes, strict=True):
        module.training = mode
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, data in flags.others.items():
        tensors[name].data = data.to(tensors[name].device)
    lay_out_contiguously(net)


def lay_out_contiguously(net: nn.Module) -> None:
    """In the user's hands, weights lie in memory as they do in plain PyTorch."""
    if not any(is_lazy(parameter) for parameter in net.parameters()):
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
