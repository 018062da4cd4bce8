"""The last part of a network: its last feature map, and what follows one of its linear layers."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.nets.outputs import Output, activation_of, as_logits, noise_images, output_kind, tensor_of
from dfkd.types import Logits

__all__ = ["Tail", "find_tail", "last_map"]


class _Step(NamedTuple):
    """One module's turn in a forward pass; the tensors are kept so that they can be told apart by identity."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor


class Tail:
    """The part of ``net`` that follows one linear layer, as a function of that layer's output.

    Attributes:
        layer: path of the linear layer whose units are modelled.
        weight: its weight (units, inputs).
    """

    def __init__(
        self,
        net: nn.Module,
        image_shape: tuple[int, int, int],
        layer: str,
        place: str | None,
        weight: Tensor,
        outputs: Output = "logits",
    ) -> None:
        self._net, self._shape, self._place, self._outputs = net, image_shape, place, outputs
        self.layer, self.weight = layer, weight.detach()

    @property
    def models_logits(self) -> bool:
        """Are the units the logits, with nothing that follows?"""
        return self._place is None

    @torch.no_grad()
    def __call__(self, units: Tensor, background: float = 0.0) -> Logits:
        """The logits of ``units`` (n, number of units); the network should be in eval mode.

        The whole network runs, on images of the constant ``background``, and the units take the place of the
        layer's output, so that nothing needs to be known of how the network is written. They are copied, for what
        follows may work in place.
        """
        if self._place is None:
            return as_logits(units, self._outputs)
        images = units.new_full((len(units), *self._shape), background)
        handle = self._net.get_submodule(self._place).register_forward_hook(
            lambda module, inputs, output: units.clone()
        )
        try:
            return as_logits(self._net(images), self._outputs)
        finally:
            handle.remove()


def last_map(net: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
    """The module whose output is the map that global pooling or flattening sees; None where there are no maps.

    It is the last one to return four dimensions, pooling left aside: a module without parameters that changes the
    shape. Of a chain (``nn.Sequential``) the last link with parameters is named.
    """
    steps = _trace(net, image_shape)[0]
    for step in reversed(steps):
        unchanged = step.input is not None and step.input.shape == step.output.shape
        if step.output.dim() == 4 and (unchanged or _has_parameters(step.module)):
            return _last_link(step.name, step.module)
    return None


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _last_link(name: str, module: nn.Module) -> str:
    while isinstance(module, nn.Sequential) and _has_parameters(module[-1]) and len(list(module[-1].children())):
        name, module = f"{name}.{len(module) - 1}", module[-1]
    return name


def find_tail(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    layer: str = "auto",
    space: Literal["logits", "pre_act", "post_act"] = "pre_act",
) -> Tail:
    """The linear layer to model, and what follows it.

    Args:
        net: a classifier in eval mode.
        image_shape: (c, h, w).
        layer: path of a linear layer; "logits" for the classifier; "auto" for the last but one linear layer if
            the rest of the network reads nothing else, and for the classifier otherwise.
        space: what the units are: "pre_act" the layer's output, "post_act" that of the activation module after it,
            "logits" the classifier's output whatever ``layer`` says.

    Raises:
        UserError: no linear classifier, no such linear layer, or a network that goes around the layer.
    """
    steps, logits = _trace(net, image_shape)
    with torch.no_grad():
        noise = noise_images(net, image_shape)
        outputs = output_kind(net, noise, tensor_of(net(noise)))
    linears = [step for step in steps if isinstance(step.module, nn.Linear) and step.output.dim() == 2]
    if layer == "logits" or space == "logits":
        return _classifier(net, image_shape, linears, logits, outputs)
    if layer != "auto":
        return _tail_at(net, image_shape, steps, layer, space, outputs)
    before = [step for step in linears if not _is_classifier_step(step, logits, outputs)]
    if before:
        try:
            return _tail_at(net, image_shape, steps, before[-1].name, space, outputs)
        except UserError:  # a layer beside the main path, as in squeeze-and-excitation
            pass
    return _classifier(net, image_shape, linears, logits, outputs)


def _is_classifier_step(step: _Step, logits: Tensor, outputs: Output) -> bool:
    """Is this layer's output that of the network, up to what the kind of its outputs implies?"""
    if step.output.shape != logits.shape:
        return False
    return torch.allclose(activation_of(outputs, step.output), logits, rtol=1e-4, atol=1e-6)


def _classifier(
    net: nn.Module, image_shape: tuple[int, int, int], linears: list[_Step], logits: Tensor, outputs: Output
) -> Tail:
    for step in reversed(linears):
        if _is_classifier_step(step, logits, outputs):
            place = None if outputs in ("logits", "one logit") else step.name
            return Tail(net, image_shape, step.name, place, step.module.weight, outputs)  # type: ignore[arg-type]
    raise UserError(
        f"soft targets need a teacher whose classifier is one linear layer, got {type(net).__name__} without; "
        "name a linear layer of it by layer="
    )


def _tail_at(
    net: nn.Module, image_shape: tuple[int, int, int], steps: list[_Step], layer: str, space: str, outputs: Output
) -> Tail:
    turns = [step for step in steps if step.name == layer]
    if len(turns) != 1 or not isinstance(turns[0].module, nn.Linear) or turns[0].output.dim() != 2:
        names = [step.name for step in steps if isinstance(step.module, nn.Linear)]
        raise UserError(
            f"soft targets need the path of a linear layer that runs once per image, got {layer!r}; "
            f"the linear layers of {type(net).__name__} are: {', '.join(names) or 'none'}"
        )
    place = layer if space == "pre_act" else _activation(steps, turns[0])
    tail = Tail(net, image_shape, layer, place, turns[0].module.weight, outputs)
    units = torch.linspace(-1, 1, turns[0].output.shape[1]).to(turns[0].output)[None]
    if not torch.equal(tail(units), tail(units, background=1.0)):
        raise UserError(
            f"soft targets need a layer that everything after it depends on alone, got {layer!r}, "
            'which the network goes around; use layer="logits"'
        )
    return tail


def _activation(steps: list[_Step], layer: _Step) -> str:
    """The module without parameters that reads the layer's output."""
    for step in steps:
        if (
            step.input is layer.output
            and not _has_parameters(step.module)
            and sum(candidate.name == step.name for candidate in steps) == 1
        ):
            return step.name
    raise UserError(
        f"soft targets need an activation module of its own after {layer.name!r} for space='post_act', got none; "
        "use space='pre_act'"
    )


@torch.no_grad()
def _trace(net: nn.Module, image_shape: tuple[int, int, int]) -> tuple[list[_Step], Tensor]:
    """Every module's turn on one black image, in order of completion, and the logits."""
    steps: list[_Step] = []
    names = {module: name for name, module in net.named_modules() if name}

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor):
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            steps.append(_Step(names[module], module, first, output))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
        logits = tensor_of(net(torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype)))
    finally:
        for handle in handles:
            handle.remove()
    return steps, logits
