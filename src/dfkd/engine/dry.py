"""A dry run of a network that somebody else wrote: whatever it does, it is told in one sentence."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import UserError
from dfkd.imports import first_line
from dfkd.nets.outputs import Output, output_kind, tensor_of

__all__ = ["CONSTANT", "check_finite", "check_kind", "make_weights", "notes_on", "outputs_of", "run_dry", "spread"]

CONSTANT = 1e-6  # largest relative difference between logits that are the same
OUTPUTS_TOLD = {
    "probabilities": "returns probabilities; their logarithms are taken as logits",
    "log-probabilities": "returns logarithms of probabilities, which are taken as logits",
    "one logit": "returns one logit; above 0 it decides for the second of two classes",
    "one probability": "returns one probability; above 0.5 it decides for the second of two classes",
}


def check_kind(net: nn.Module, role: str) -> None:
    """Refuse what is no network of Python code: its layers take no hooks, and its modes do not change."""
    is_exported = isinstance(net, torch.fx.GraphModule) and "_guards_fn" in dict(net.named_children())
    if isinstance(net, torch.jit.ScriptModule) or is_exported or hasattr(net, "_export_root"):
        kind = "TorchScript" if isinstance(net, torch.jit.ScriptModule) else "an exported program"
        raise UserError(
            f"{role} needs to be a network of Python code, got {kind}, whose layers cannot be read; build it from its "
            "class and load its state dict"
        )
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{role} needs to be a network of Python code, got TorchScript in its layer {path!r}, which cannot be "
                "read; build that layer from its class and load its state dict"
            )


def make_weights(net: nn.Module, image_shape: tuple[int, int, int], role: str) -> None:
    """Lazy layers get their weights in the first forward pass."""
    if role == "teacher":
        raise UserError(
            f"{role} needs weights, got lazy layers, which have none before the first forward pass; run it once on an "
            "image, then load its state dict"
        )
    run_dry(net, torch.zeros(2, *image_shape), role)


def run_dry(net: nn.Module, images: Tensor, role: str) -> Tensor:
    """What ``net`` returns for ``images`` (n, c, h, w) in eval mode, as (n, k); its modes are restored."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        output = net(images)
    except Exception as error:  # the network is the user's and may fail in any way
        shape = "x".join(map(str, images.shape[1:]))
        inputs = isinstance(error, TypeError)
        hint = "wrap it so that it takes one batch of images" if inputs else "give the image size it was trained on"
        raise UserError(
            f"{role} needs images it can take, got {shape} (channels x height x width), on which it fails with "
            f"{first_line(error)[:200]!r}; {hint}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    try:
        logits = tensor_of(output)
    except TypeError as error:
        raise UserError(
            f"{role} needs to return logits of shape (images, classes), got {error}; wrap it so that it returns these"
        ) from error
    if len(logits) != len(images) or not logits.is_floating_point():
        raise UserError(
            f"{role} needs to return logits of shape (images, classes), got {logits.dtype} of shape "
            f"{tuple(logits.shape)} for {len(images)} images; wrap it so that it returns one row for each"
        )
    return logits


def outputs_of(net: nn.Module, images: Tensor, logits: Tensor, role: str) -> Output:
    """What the outputs are; a UserError for those that no logits can be made of."""
    if not bool(torch.isfinite(logits[:4]).all()):
        raise UserError(
            f"{role} needs finite logits, got NaN or infinity on images of normal noise; check its weights and its "
            "forward pass"
        )
    kind = output_kind(net, images, logits)
    if kind == "several sigmoids":
        raise UserError(
            f"{role} needs to return logits of classes that exclude each other, got {logits.shape[1]} sigmoids (labels "
            "that may hold together, which no method here distils); return what the sigmoid reads, if they do exclude "
            "each other"
        )
    return kind


def notes_on(role: str, outputs: Output, norms: Sequence[_BatchNorm]) -> Iterator[str]:
    """What is odd about a network, one sentence each."""
    if outputs in OUTPUTS_TOLD:
        yield f"{role}: {OUTPUTS_TOLD[outputs]}"
    if role == "teacher" and norms and all(_fresh(norm) for norm in norms):
        yield (
            f"{role}: its BatchNorm statistics are those of layers that never saw an image (mean 0, variance 1); load "
            "its trained weights"
        )


def spread(logits: Tensor) -> float:
    """Largest difference that images (n, k) make, relative to the largest logit."""
    return float((logits.amax(0) - logits.amin(0)).max() / logits.abs().max().clamp_min(1e-30))


def _fresh(norm: _BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is None or var is None or bool((mean == 0).all() and (var == 1).all())


def check_finite(net: nn.Module, role: str) -> None:
    """Refuse weights and buffers that are NaN or infinite."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{role} needs finite weights, got NaN or infinity in {name!r}; the checkpoint is damaged or "
                "training diverged"
            )
