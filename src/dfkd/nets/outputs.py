"""What a classifier may return, and the logits (n, k) that are made of it."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.types import Logits

__all__ = ["OUTPUTS", "Output", "activation_of", "as_logits", "class_rows", "noise_images", "output_kind", "tensor_of"]

Output = Literal["logits", "log-probabilities", "probabilities", "one logit", "one probability", "several sigmoids"]
OUTPUTS: tuple[Output, ...] = get_args(Output)

LEAST = 1e-30  # of a probability whose logarithm is taken
SHAPES = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Clone", "ToCopy", "UnsafeView")  # of grad_fn
EDGE = 1e-7  # of a probability whose logit is taken: logits end at -16 and 16, where float32 cannot tell them from 1


def tensor_of(output: object) -> Tensor:
    """The one tensor in ``output`` that can be the logits, as (n, k).

    That is a tensor itself; the field or entry ``logits``; the only tensor of a mapping; the first of a tuple or list
    (auxiliary classifiers follow). Of shape (n,) it gets a second dimension, (n, k, 1, 1) loses two.

    Raises:
        TypeError: there is none, or it has another shape.
    """
    part = output
    if not isinstance(part, Tensor) and isinstance(getattr(part, "logits", None), Tensor):
        part = getattr(part, "logits", None)
    if isinstance(part, Mapping):
        tensors = [value for value in part.values() if isinstance(value, Tensor)]
        part = part.get("logits", tensors[0] if len(tensors) == 1 else None)
    if isinstance(part, tuple | list) and part:
        part = part[0]
    if not isinstance(part, Tensor):
        raise TypeError(f"{type(output).__name__} without logits")
    if part.dim() == 1:
        return part.unsqueeze(1)
    if part.dim() == 4 and part.shape[2:] == (1, 1):
        return part.flatten(1)
    if part.dim() != 2:
        raise TypeError(f"a tensor of shape {tuple(part.shape)} instead of logits (images, classes)")
    return part


def as_logits(output: object, kind: Output = "logits") -> Logits:
    """Logits (n, k), k at least 2, of what a network returned.

    One logit z becomes (-z/2, z/2), which softmax maps to 1 - sigmoid(z) and sigmoid(z), so that z > 0 decides for the
    second class. Logarithms of probabilities are logits that softmax maps to the same probabilities.
    """
    raw = tensor_of(output)
    if kind == "probabilities":
        return raw.float().clamp_min(LEAST).log()
    if kind == "one probability":
        raw = torch.logit(raw.float(), EDGE)
    if kind in ("one logit", "one probability"):
        return torch.cat((-raw / 2, raw / 2), 1)
    return raw


def noise_images(net: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Eight images of normal noise on the network's device: four of standard deviation 1, two of 10, two of 100."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.randn(8, *image_shape, generator=torch.Generator().manual_seed(0))
    contrast = torch.tensor([1.0] * 4 + [10.0] * 2 + [100.0] * 2).view(-1, 1, 1, 1)
    return (images * contrast).to(like.device, like.dtype)


def output_kind(net: nn.Module, images: Tensor, raw: Tensor) -> Output:
    """What ``raw`` (n, k) is, which ``net`` in eval mode returned for these :func:`noise_images`."""
    x = raw.detach().double()
    several = x.shape[1] > 1
    if several and bool((x >= 0).all()) and torch.allclose(x.sum(1), x.new_ones(len(x)), atol=1e-3):
        return "probabilities"
    if several and bool((x <= 1e-6).all()) and torch.allclose(torch.logsumexp(x, 1), x.new_zeros(len(x)), atol=1e-3):
        return "log-probabilities"
    if bool(((x >= 0) & (x <= 1)).all()) and _ends_in_sigmoid(net, images):
        return "several sigmoids" if several else "one probability"
    return "logits" if several else "one logit"


def _ends_in_sigmoid(net: nn.Module, images: Tensor) -> bool:
    """Is the last operation, up to changes of shape, a sigmoid? The graph tells it from logits that are small."""
    modes = [(module, module.training) for module in net.modules()]
    with torch.enable_grad():
        output = tensor_of(net.eval()(images.clone().requires_grad_().clone()))
    for module, mode in modes:
        module.training = mode
    node = output.grad_fn
    while node is not None and type(node).__name__.startswith(SHAPES):
        node = node.next_functions[0][0]
    return type(node).__name__.startswith(("Sigmoid", "Hardsigmoid"))


def activation_of(kind: Output, units: Tensor) -> Tensor:
    """What follows the classifier in a network of that kind."""
    if kind == "probabilities":
        return F.softmax(units, 1)
    if kind == "log-probabilities":
        return F.log_softmax(units, 1)
    return torch.sigmoid(units) if kind == "one probability" else units


def class_rows(weight: Tensor) -> Tensor:
    """A classifier's weight (k, d) with one row for each class: that of one logit counts half, for and against."""
    return torch.cat((-weight / 2, weight / 2)) if len(weight) == 1 else weight
