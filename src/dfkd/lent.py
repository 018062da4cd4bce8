"""A network that the user lends for a run: what a run changes of it, and how that is put back."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfkd.engine.runtime import Runtime

__all__ = ["Loan", "lay_out_contiguously", "loan_of", "put_back", "seeded_devices"]


def seeded_devices(runtime: Runtime) -> list[int]:
    """CUDA devices whose default streams a run touches: seeding touches all, once CUDA is in use."""
    in_use = torch.cuda.is_initialized() or runtime.device.type == "cuda"
    return list(range(torch.cuda.device_count())) if in_use else []


class Layout(NamedTuple):
    """How a tensor lay in memory when its network was lent.

    Attributes:
        device, stride: of the tensor.
        original: its numbers, where a run changes them: those that are not float32 are converted.
    """

    device: torch.device
    stride: tuple[int, ...]
    original: Tensor | None


class Loan(NamedTuple):
    """What a network was when it was lent; layers that it makes later are not among them.

    Attributes:
        parameters: each with whether it asked for gradients, its layout, and that of its gradient.
        buffers: each module's, by name.
        modes: of each module, whether it trained.
    """

    parameters: list[tuple[nn.Parameter, bool, Layout, Layout | None]]
    buffers: list[tuple[nn.Module, str, Layout]]
    modes: list[tuple[nn.Module, bool]]


def loan_of(net: nn.Module) -> Loan:
    """What a run may change of a network that is not its own, to be put back. Nothing is copied."""
    parameters = [
        (p, p.requires_grad, _layout_of(p), None if p.grad is None else _layout_of(p.grad))
        for p in net.parameters()
        if not is_lazy(p)
    ]
    buffers = [
        (module, name, _layout_of(buffer))
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    return Loan(parameters, buffers, [(module, module.training) for module in net.modules()])


@torch.no_grad()
def put_back(loan: Loan) -> None:
    """The network asks for gradients and is in the modes as it was; its numbers lie where and as they lay.

    Numbers that were float32 keep the values they have now; others have those they had.
    """
    for parameter, requires_grad, layout, gradient_layout in loan.parameters:
        parameter.data = _laid_out(parameter.data, layout)
        if parameter.grad is not None and gradient_layout is not None:
            parameter.grad.data = _laid_out(parameter.grad.data, gradient_layout)
        parameter.requires_grad_(requires_grad)
    for module, name, layout in loan.buffers:  # another device, format or precision makes new ones
        buffer = module._buffers.get(name)
        if buffer is not None:
            module._buffers[name] = _laid_out(buffer, layout)
    for module, mode in loan.modes:
        module.training = mode


def _layout_of(tensor: Tensor) -> Layout:
    data = tensor.data
    plain = type(data) is Tensor and data.layout is torch.strided and not data.is_quantized
    if not plain:
        return Layout(tensor.device, (), data)
    converted = data.is_floating_point() and data.dtype != torch.float32
    expanded = any(step == 0 and size > 1 for step, size in zip(data.stride(), data.shape, strict=True))
    return Layout(data.device, data.stride(), data if converted or expanded else None)


def _laid_out(tensor: Tensor, layout: Layout) -> Tensor:
    """The numbers of ``tensor`` as they lay; itself, where they do."""
    if layout.original is not None:
        return layout.original
    if (tensor.device, tensor.stride()) == (layout.device, layout.stride):
        return tensor
    restored = torch.empty_strided(tensor.shape, layout.stride, dtype=tensor.dtype, device=layout.device)
    return restored.copy_(tensor)


def lay_out_contiguously(net: nn.Module) -> None:
    """In the user's hands, weights lie in memory as they do in plain PyTorch."""
    if not any(is_lazy(parameter) for parameter in net.parameters()):
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
