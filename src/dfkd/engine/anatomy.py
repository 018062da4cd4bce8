"""What a network is: its head, stages, BatchNorm layers, size. Found by one dry forward pass, checked once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.engine.probe import tracking_norms
from dfkd.errors import UserError
from dfkd.nets.adapters import suggest
from dfkd.nets.count import count_macs, count_parameters
from dfkd.nets.zoo import known_layers

__all__ = ["Anatomy", "survey"]


@dataclass(frozen=True)
class Anatomy:
    """A network as methods care about it.

    Attributes:
        kind: class name.
        classes: width of its logits.
        head: path of the linear layer that makes the logits, or None.
        features: length of the head's input (0 without a head).
        stages: paths of the modules whose outputs are stage maps, shallow to deep.
        sides: (channels, h, w) of each stage map.
        norms: BatchNorm layers that keep running statistics and take part in a forward pass.
        norm_channels: their channels together.
        norm_names: their paths, in the order in which they first run.
        repeated_norms: paths of those that run more than once (shared layers).
        idle_norms: paths of BatchNorm layers that no forward pass in eval mode reaches (auxiliary heads).
        parameters: number of parameters.
        macs: multiply-adds of one image.
        notes: what is done otherwise than asked to run it (:mod:`dfkd.engine.verify`), one sentence each.
    """

    kind: str
    classes: int
    head: str | None
    features: int
    stages: tuple[str, ...]
    sides: tuple[tuple[int, int, int], ...]
    norms: int
    norm_channels: int
    parameters: int
    macs: int
    norm_names: tuple[str, ...] = ()
    repeated_norms: tuple[str, ...] = ()
    idle_norms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def survey(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int | None = None,
    role: str = "teacher",
    head: str | None = None,
    stages: Sequence[str] | None = None,
) -> Anatomy:
    """Look through ``net`` with one image of ``image_shape`` (c, h, w); its mode and weights are left as they were.

    Args:
        net: maps (1, c, h, w) to logits (1, k).
        image_shape: (c, h, w).
        classes: expected k, or None.
        role: "teacher" or "student", for messages.
        head, stages: paths, where neither the zoo (for a network of its own) nor the search should decide.

    Raises:
        UserError: the network cannot take such images, returns something else than logits or another number of
            classes, holds weights that are not finite, or lacks a layer that ``head`` or ``stages`` names.
    """
    _check_finite(net, role)
    seen = _Trace(net)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    logits = seen.run(torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype), role)
    if classes is not None and logits.shape[1] != classes:
        raise UserError(
            f"{role} needs as many outputs as there are classes, got {logits.shape[1]} outputs for {classes} classes; "
            "give the classes the network was trained on"
        )
    known_head, known_stages = seen.known()
    head = seen.linear(head, role) if head is not None else known_head or seen.head()
    stages = tuple(seen.mapped(name, role) for name in stages) if stages is not None else known_stages or seen.stages()
    norms = tracking_norms(net)
    read = tuple(dict.fromkeys(name for name in seen.calls if name in norms))
    layer = net.get_submodule(head) if head is not None else None
    return Anatomy(
        kind=type(net).__name__,
        classes=logits.shape[1],
        head=head,
        features=layer.in_features if isinstance(layer, nn.Linear) else 0,
        stages=stages,
        sides=tuple(seen.shapes[name] for name in stages),
        norms=len(read),
        norm_channels=sum(norms[name].num_features for name in read),
        parameters=count_parameters(net),
        macs=count_macs(net, image_shape),
        norm_names=read,
        repeated_norms=tuple(name for name in read if seen.calls.count(name) > 1),
        idle_norms=tuple(name for name in norms if name not in read),
    )


class _Trace:
    """Which modules ran in one forward pass, in order of completion, and what they returned."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.calls: list[str] = []
        self.order: list[tuple[str, nn.Module, Tensor]] = []
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.logits: Tensor | None = None

    def run(self, image: Tensor, role: str) -> Tensor:
        """The logits of one image."""
        modes = {name: module.training for name, module in self.net.named_modules()}
        handles = [m.register_forward_hook(self._note(name)) for name, m in self.net.named_modules() if name]
        self.net.eval()
        try:
            with torch.no_grad():
                logits = self.net(image)
        except (RuntimeError, ValueError, IndexError) as error:
            why = str(error).strip().splitlines()[0][:200]
            shape = "x".join(map(str, image.shape[1:]))
            raise UserError(
                f"{role} needs images it can take, got {shape} (channels x height x width), on which it fails with "
                f"{why!r}; give the image size it was trained on"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            for name, module in self.net.named_modules():
                module.training = modes[name]
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{role} needs to return logits of shape (images, classes), got {got}; wrap it so that it returns "
                "only these"
            )
        self.logits = logits
        return logits

    def known(self) -> tuple[str | None, tuple[str, ...]]:
        """Head and stages of a network of the zoo, as far as it still has them."""
        head, stages = known_layers(self.net)
        linear = {name for name, module, _ in self.order if isinstance(module, nn.Linear)}
        whole = stages is not None and set(stages) <= self.shapes.keys()
        return head if head in linear else None, stages if whole and stages is not None else ()

    def head(self) -> str | None:
        """The linear layer whose output is the network's output."""
        for name, module, output in reversed(self.order):
            if isinstance(module, nn.Linear) and output is self.logits:
                return name
        return None

    def stages(self) -> tuple[str, ...]:
        """Of all modules that return maps, the one that finishes last at every size above 1x1."""
        last: dict[tuple[int, int], str] = {}
        for name, _, output in self.order:
            if output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1:
                size = (output.shape[-2], output.shape[-1])
                last.pop(size, None)
                last[size] = name
                self.shapes[name] = (output.shape[1], *size)
        return tuple(last.values())

    def linear(self, path: str, role: str) -> str:
        """``path`` of a head, where the network has such a layer; a UserError with the nearest linear ones if not."""
        linear = [name for name, module, _ in self.order if isinstance(module, nn.Linear)]
        return self._has(path, role, "head", linear, f"its linear layers are {', '.join(linear[-8:]) or 'none'}")

    def mapped(self, path: str, role: str) -> str:
        """``path`` of a stage, where the network has such a layer and it returned a map; a UserError if not."""
        hint = f"the last of each size are {', '.join(self.stages()) or 'none'}"
        self._has(path, role, "stage", self.shapes, hint)
        if path not in self.shapes:
            raise UserError(f"{role} needs stages that return maps (images, channels, h, w), got {path!r}; {hint}")
        return path

    def _has(self, path: str, role: str, what: str, fitting: Iterable[str], hint: str) -> str:
        if path not in [name for name, _ in self.net.named_modules(remove_duplicate=False)]:
            near = suggest(path, fitting, hint)
            raise UserError(f"{role} needs the path of a layer it has as its {what}, got {path!r}; {near}")
        return path

    def _note(self, name: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, inputs: object, output: object) -> None:
            self.calls.append(name)
            if isinstance(output, Tensor):
                self.order.append((name, module, output))
                if output.dim() == 4:
                    self.shapes[name] = (output.shape[1], output.shape[2], output.shape[3])

        return note


def _check_finite(net: nn.Module, role: str) -> None:
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{role} needs finite weights, got NaN or infinity in {name!r}; the checkpoint is damaged or "
                "training diverged"
            )
