"""Networks whose weights and activations are rounded to few bits, for training through the rounding.

The quantizers are those of ZAQ (Liu et al. 2021): asymmetric, uniform, with an integer zero point. Weights of
convolutions and linear layers have one range per output channel, that of the present weights; activations have one
range per tensor, after every ReLU or ReLU6 module, whose largest value only ever grows. The rest (the network's input,
sums without a ReLU, BatchNorm, biases) stays in float32. Gradients pass the rounding unchanged. Layers are brevitas'
own; what a range is, is injected into them, as brevitas has no range that only grows.
"""

import copy
import importlib.util
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.nets.ranges import SMALLEST, Largest, freeze_ranges

__all__ = ["Bits", "frozen_copy", "with_quantizers", "quantized_bytes"]


class Bits(NamedTuple):
    """Bits of weights and of activations, 2 to 8 each."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """``W4A8``.

        Raises:
            UserError: something else.
        """
        match = re.fullmatch(r"[wW]([2-8])[aA]([2-8])", text)
        if match is None:
            raise UserError(f"quantize needs bits such as W4A4, 2 to 8 of each, got {text!r}; correct it")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


class _Width(nn.Module):
    """The range of every output channel of a weight: largest less smallest value."""

    def __init__(self) -> None:  # brevitas reads the names of arguments
        super().__init__()

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        low, high = _ends(x)
        width = (high - low).clamp(min=SMALLEST)
        return width if threshold is None else width / threshold


class _ZeroPoint(nn.Module):
    """The integer that stands for 0 in every output channel, so that the smallest weight is code 0."""

    def __init__(self) -> None:  # brevitas reads the names of arguments
        super().__init__()

    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        return torch.round(-_ends(x)[0] / scale)


def _ends(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each output channel, in a shape that broadcasts; no gradient."""
    rows = weight.detach().flatten(1)
    shape = (-1, *[1] * (weight.dim() - 1))
    return rows.amin(dim=1).view(shape), rows.amax(dim=1).view(shape)


def with_quantizers(net: nn.Module, bits: Bits) -> nn.Module:
    """A copy of ``net`` with quantizers, ranges of activations still 0; ``net`` is left alone.

    Raises:
        UserError: brevitas is missing, a layer with weights for which there is no quantizer, or no ReLU module.
    """
    layers = _Layers(bits)
    student = copy.deepcopy(net)
    _check_layers(student)
    for path, module in list(student.named_modules(remove_duplicate=False)):
        replacement = layers.replacement_of(module)
        if replacement is not None:
            _set_module(student, path, replacement.train(module.training))
    return student.requires_grad_(True)


class _Layers:
    """brevitas' layers with ZAQ's quantizers."""

    def __init__(self, bits: Bits) -> None:
        if importlib.util.find_spec("brevitas") is None:
            raise UserError(f"quantize needs the package brevitas, got none installed; run `{install_extra('quant')}`")
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a faster kernel that is not needed here
            import brevitas.nn as layers
            from brevitas.core.function_wrapper import TensorClampSte
            from brevitas.quant import ShiftedUint8WeightPerChannelFloat, Uint8ActPerTensorFloat
        choices = {"scaling_impl_type": None, "tensor_clamp_impl": TensorClampSte}
        self.nn = layers
        self.weight = type(
            "ZAQWeight",
            (ShiftedUint8WeightPerChannelFloat,),
            {**choices, "bit_width": bits.weights, "scaling_impl": _Width, "zero_point_impl": _ZeroPoint},
        )
        self.activation = type(
            "ZAQActivation",
            (Uint8ActPerTensorFloat,),
            {**choices, "bit_width": bits.activations, "scaling_impl": Largest},
        )
        self._replacements: dict[int, nn.Module] = {}

    def replacement_of(self, module: nn.Module) -> nn.Module | None:
        """What stands for ``module``, or None where it stays; a module that has two paths has one range."""
        if id(module) not in self._replacements:
            layer = self._quantizing_layer(module)
            if layer is None:
                return None
            self._replacements[id(module)] = layer
        return self._replacements[id(module)]

    def _quantizing_layer(self, module: nn.Module) -> nn.Module | None:
        if type(module) is nn.Conv2d:
            return self._convolution(module)
        if type(module) is nn.Linear:
            bias = module.bias is not None
            layer = self.nn.QuantLinear(module.in_features, module.out_features, bias=bias, weight_quant=self.weight)
            return _with_weights(layer, module)
        if type(module) in (nn.ReLU, nn.ReLU6):
            return nn.Sequential(type(module)(), self.nn.QuantIdentity(act_quant=self.activation))
        return None

    def _convolution(self, module: nn.Conv2d) -> nn.Module:
        layer = self.nn.QuantConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            weight_quant=self.weight,
        )
        return _with_weights(layer, module)


def _with_weights(layer: nn.Module, module: nn.Module) -> nn.Module:
    layer.weight, layer.bias = module.weight, module.bias
    return layer


def _set_module(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _check_layers(net: nn.Module) -> None:
    """Refuse, by name, layers whose weights would stay in float, and networks without places for activations."""
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and type(module) in (nn.Conv2d, nn.Linear):
            continue
        own = [name for name, weight in module.named_parameters(recurse=False) if weight.dim() > 1]
        if own:
            where = f"the layer {path!r}" if path else "the network itself"
            raise UserError(
                f"quantize needs layers it has quantizers for (Conv2d, Linear, ReLU, ReLU6), got {where} "
                f"({type(module).__name__}) with the weight {own[0]!r}; quantize another network, or "
                "`dfkd export` it to INT8"
            )
    if not any(type(module) in (nn.ReLU, nn.ReLU6) for module in net.modules()):
        raise UserError(
            f"quantize needs ReLU or ReLU6 modules to place quantizers after, got {type(net).__name__} without; write "
            "them as modules, or `dfkd export` the network to INT8"
        )


def frozen_copy(net: nn.Module, bits: str) -> nn.Module:
    """A quantized copy, to load the weights of a trained one into: its ranges do not grow."""
    return freeze_ranges(with_quantizers(net, Bits.parse(bits)))


def quantized_bytes(net: nn.Module, bits: Bits) -> int:
    """Bytes with weights packed at their bits, a scale and a zero point per channel, and the rest as it is.

    What has several names, as the weight of a layer under two paths, counts once.
    """
    tensors = {id(t): t for t in net.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    total = sum(_bytes(tensor) for tensor in tensors.values())
    packed: dict[int, Any] = {}  # by identity: two layers may share a weight
    for module in net.modules():
        if any("Quant" in kind.__name__ for kind in type(module).__mro__) and isinstance(module, nn.Conv2d | nn.Linear):
            packed[id(module.weight)] = module.weight
    for weight in packed.values():
        total += -_bytes(weight) + (weight.numel() * bits.weights + 7) // 8 + 5 * len(weight)
    return total


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
