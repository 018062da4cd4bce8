"""What a network is: its head, stages, BatchNorm layers, size, outputs. Found by dry forward passes, checked once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfkd.engine.dry import CONSTANT, check_finite, check_kind, make_weights, notes_on, outputs_of, run_dry, spread
from dfkd.engine.probe import tracking_norms
from dfkd.engine.verify import preserving
from dfkd.errors import UserError
from dfkd.nets.adapters import suggest
from dfkd.nets.bare import bare_network
from dfkd.nets.count import count_macs, count_parameters
from dfkd.nets.outputs import Output, activation_of, noise_images
from dfkd.nets.zoo import known_layers

__all__ = ["Anatomy", "survey"]


@dataclass(frozen=True)
class Anatomy:
    """A network as methods care about it.

    Attributes:
        kind: class name.
        classes: number of classes: the width of its logits, 2 for a network with one logit.
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
        macs: multiply-adds of one image, or None where they cannot be counted.
        outputs: what it returns (:mod:`dfkd.nets.outputs`).
        constant: its logits are the same for all images.
        notes: what is odd about it, and what is done otherwise than asked to run it (:mod:`dfkd.engine.verify`), one
            sentence each.
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
    macs: int | None
    norm_names: tuple[str, ...] = ()
    repeated_norms: tuple[str, ...] = ()
    idle_norms: tuple[str, ...] = ()
    outputs: Output = "logits"
    constant: bool = False
    notes: tuple[str, ...] = ()


def survey(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int | None = None,
    role: str = "teacher",
    head: str | None = None,
    stages: Sequence[str] | None = None,
) -> Anatomy:
    """Look through ``net`` with noise images of ``image_shape`` (c, h, w); its mode and weights are left as they were.

    Args:
        net: maps (n, c, h, w) to logits (n, k), or to something that :mod:`dfkd.nets.outputs` makes logits of.
        image_shape: (c, h, w).
        classes: expected k, or None.
        role: "teacher" or "student", for messages.
        head, stages: paths, where neither the zoo (for a network of its own) nor the search should decide.

    Raises:
        UserError: the network cannot take such images, returns something else than logits, logits that are not finite,
            or another number of classes, holds weights that are not finite or not there, or lacks a layer that ``head``
            or ``stages`` names.
    """
    check_kind(net, role)
    if any(is_lazy(parameter) for parameter in net.parameters()):
        make_weights(net, image_shape, role)
    check_finite(net, role)
    with preserving(net):
        return _survey(net, image_shape, classes, role, head, stages)


def _survey(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int | None,
    role: str,
    head: str | None,
    stages: Sequence[str] | None,
) -> Anatomy:
    """:func:`survey` of a network that has its weights."""
    trace = _Trace(net)
    images = noise_images(net, image_shape)
    logits = trace.run(images, role)
    outputs = outputs_of(net, images, logits, role)
    k = 2 if logits.shape[1] == 1 else logits.shape[1]
    if classes is not None and k != classes:
        outputs_text = "1 output, which tells 2 classes apart," if logits.shape[1] == 1 else f"{k} outputs"
        raise UserError(
            f"{role} needs as many outputs as there are classes, got {outputs_text} for {classes} classes; "
            "give the classes the network was trained on"
        )
    known_head, known_stages = trace.zoo_places()
    head = trace.linear(head, role) if head is not None else known_head or trace.head(outputs)
    stages = (
        tuple(trace.map_at(name, role) for name in stages) if stages is not None else known_stages or trace.stages()
    )
    norms = tracking_norms(net)
    read_norms = tuple(dict.fromkeys(name for name in trace.calls if name in norms))
    layer = net.get_submodule(head) if head is not None else None
    return Anatomy(
        kind=type(bare_network(net)).__name__,
        classes=k,
        head=head,
        features=layer.in_features if isinstance(layer, nn.Linear) else 0,
        stages=stages,
        sides=tuple(trace.shapes[name] for name in stages),
        norms=len(read_norms),
        norm_channels=sum(norms[name].num_features for name in read_norms),
        parameters=count_parameters(net),
        macs=count_macs(net, image_shape),
        norm_names=read_norms,
        repeated_norms=tuple(name for name in read_norms if trace.calls.count(name) > 1),
        idle_norms=tuple(name for name in norms if name not in read_norms),
        outputs=outputs,
        constant=spread(logits[:4]) <= CONSTANT,
        notes=tuple(notes_on(role, outputs, [norms[name] for name in read_norms])),
    )


class _Trace:
    """Which modules ran in one forward pass, in order of completion, and what they returned."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.calls: list[str] = []
        self.order: list[tuple[str, nn.Module, Tensor]] = []
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.logits: Tensor | None = None

    def run(self, images: Tensor, role: str) -> Tensor:
        """The outputs (n, k) for images (n, c, h, w)."""
        handles = [m.register_forward_hook(self._note(name)) for name, m in self.net.named_modules() if name]
        try:
            with torch.no_grad():
                self.logits = run_dry(self.net, images, role)
        finally:
            for handle in handles:
                handle.remove()
        return self.logits

    def zoo_places(self) -> tuple[str | None, tuple[str, ...]]:
        """Head and stages of a network of the zoo, as far as it still has them."""
        head, stages = known_layers(self.net)
        linear = {name for name, module, _ in self.order if isinstance(module, nn.Linear)}
        whole = stages is not None and set(stages) <= self.shapes.keys()
        return head if head in linear else None, stages if whole and stages is not None else ()

    def head(self, outputs: Output = "logits") -> str | None:
        """The linear layer whose output is the network's output, before what the kind of its outputs implies."""
        for name, module, output in reversed(self.order):
            if isinstance(module, nn.Linear) and self.logits is not None and output.numel() == self.logits.numel():
                activation = activation_of(outputs, output.reshape(self.logits.shape))
                if torch.allclose(activation, self.logits, rtol=1e-4, atol=1e-6, equal_nan=True):
                    return name
        return None

    def stages(self) -> tuple[str, ...]:
        """Of all modules that run once and return maps, the one that finishes last at every size above 1x1."""
        last: dict[tuple[int, int], str] = {}
        runs = Counter(self.calls)
        for name, _, output in self.order:
            if output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1 and runs[name] == 1:
                size = (output.shape[-2], output.shape[-1])
                last.pop(size, None)
                last[size] = name
        return tuple(last.values())

    def linear(self, path: str, role: str) -> str:
        """``path`` of a head, where the network has such a layer; a UserError with the nearest linear ones if not."""
        linear = [name for name, module, _ in self.order if isinstance(module, nn.Linear)]
        return self._has(path, role, "head", linear, f"its linear layers are {', '.join(linear[-8:]) or 'none'}")

    def map_at(self, path: str, role: str) -> str:
        """``path`` of a stage, where the network has such a layer and it returned one map; a UserError if not."""
        hint = f"the last of each size are {', '.join(self.stages()) or 'none'}"
        self._has(path, role, "stage", self.shapes, hint)
        if path not in self.shapes:
            raise UserError(f"{role} needs stages that return maps (images, channels, h, w), got {path!r}; {hint}")
        if self.calls.count(path) > 1:
            raise UserError(
                f"{role} needs stages that run once in a forward pass, got {path!r}, which runs "
                f"{self.calls.count(path)} times; {hint}"
            )
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
