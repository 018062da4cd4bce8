"""Wrap a network of the user's own so that it computes what it computes without us.

Channels-last, autocast, compilation and hooks speed a network up, or read it. A network may rely on what they change: a
``view`` on strides, a dtype, a tensor's identity. So a forward and a backward pass with them is compared with one of
the untouched network, before the first round, and what raises or differs is left away.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd.engine.joint import join, unjoinable_paths
from dfkd.engine.probe import Probe, check_normalisation
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.imports import first_line
from dfkd.nets.adapters import LogitsOnly
from dfkd.nets.outputs import Output, as_logits
from dfkd.types import Images, Logits

__all__ = ["Verified", "preserving", "verify"]

IMAGES = 4  # in a pass: BatchNorm in train mode needs several


class Tolerance(NamedTuple):
    """How far two passes that compute the same may lie apart, relative to the norm of what is compared.

    ``rounding`` is the relative size of one rounding. Other kernels round otherwise, and a deep network in train mode
    amplifies that by a factor of its own; so the untouched network also runs on images that are off by ``rounding``,
    and ten times the distance that this makes is allowed, or ``logits`` (``gradients``), whichever is larger.
    Gradients may differ more: a unit of a ReLU that rounding moves over 0 changes its part of them wholly, and a
    ResNet-56 on four images of 16 x 16 has a few of those (3 % here). A wrong stride or a lost operation makes errors
    of order 1.
    """

    rounding: float
    logits: float
    gradients: float


FP32 = Tolerance(1e-6, 1e-3, 0.1)
TF32 = Tolerance(5e-4, 2e-2, 0.1)  # what CUDA devices make of float32 convolutions
BF16 = Tolerance(4e-3, 0.1, 0.5)  # 8 bits


@dataclass(frozen=True)
class Choice:
    """What is changed in a network; ``stats`` and ``maps``: BatchNorm layers and stages are read by hooks."""

    channels_last: bool
    bf16: bool
    compiled: bool
    stats: bool = True
    maps: bool = True


@dataclass(frozen=True)
class Verified:
    """A wrapped network, and what became of the changes that were asked for.

    Attributes:
        probe: the network on the runtime's device.
        compiles: may be part of a compiled objective, if the runtime compiles at all.
        notes: what was left away and why, one sentence each.
    """

    probe: Probe
    compiles: bool
    notes: tuple[str, ...]


class _Pass(NamedTuple):
    """Logits (n, k) and gradients of a fixed random combination of them: of the images, and of the parameters."""

    logits: Tensor
    images: Tensor | None
    parameters: Tensor | None


def verify(
    net: nn.Module,
    runtime: Runtime,
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    role: str,
    trains: bool,
    head: str | None = None,
    stages: Sequence[str] = (),
    norms: Sequence[str] | None = None,
    outputs: Output = "logits",
) -> Verified:
    """A probe of ``net`` in which everything that ``runtime`` asks for, and every hook, was seen to change nothing.

    Weights, buffers, modes, plain attributes of the modules and random streams are left as they were; only the
    weights' memory format, device and, from half or double precision, dtype change. The package's own networks, as
    they were built, are not tried: its test suite does that.

    Args:
        net: the classifier.
        runtime: device, precision, memory format, compilation.
        image_shape: (c, h, w).
        mean, std: per channel, of pixels in [0, 1].
        role: "teacher" or "student", for messages.
        trains: the network is used in train mode, too.
        head, stages, norms, outputs: as for :class:`~dfkd.engine.probe.Probe`.

    Raises:
        UserError: the untouched network fails in a mode in which it will be used, or is to be trained and passes no
            gradient to its weights.
    """
    check_normalisation(mean, std)
    net = net.to(runtime.device)
    notes = _to_float32(net, role)
    trial = _Trial(net, runtime, image_shape, tuple(mean), tuple(std), role, trains, head, stages, norms, outputs)
    choice = Choice(runtime.channels_last, runtime.precision == "bf16", runtime.compiled)
    gradients = True
    if not _is_of_zoo(net):
        with preserving(net):
            gradients = trial.run_untouched()
            choice = _working_part(choice, trial, notes)
    if not gradients:
        notes.append(f"{role}: passes no gradient to its images (a quantized network, or one that detaches them)")
    probe = trial.probe(choice, joint=runtime.joint)
    probe.passes_gradients = gradients
    if runtime.joint:
        join(net)
        notes += _notes_on_unjoinable(net, role)
    return Verified(probe, choice.compiled == runtime.compiled, tuple(notes))


def _is_of_zoo(net: nn.Module) -> bool:
    """Is ``net`` one of the package's own, in which nothing was replaced (quantized, parametrized) or hooked since?"""
    own = type(net).__module__.startswith("dfkd.nets.") and not isinstance(net, LogitsOnly)
    return own and all(
        type(module).__module__.startswith(("dfkd.nets.", "torch.nn.modules."))
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        for module in net.modules()
    )


def _notes_on_unjoinable(net: nn.Module, role: str) -> list[str]:
    paths = unjoinable_paths(net)
    if not paths:
        return []
    kinds = sorted({type(net.get_submodule(path)).__name__ for path in paths})
    some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
    return [
        f"{role}: sync_bn leaves out {len(paths)} BatchNorm layers with a forward pass of their own "
        f"({', '.join(kinds)}: {some}), which normalise by the batch of their process"
    ]


def _to_float32(net: nn.Module, role: str) -> list[str]:
    """Optimisers and statistics want float32 weights; a note where they had another dtype."""
    tensors = [*net.parameters(), *net.buffers()]
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    if not kinds:
        return []
    net.float()
    return [f"the {role}'s weights are converted from {' and '.join(sorted(kinds))} to float32 for the run"]


def _working_part(requested: Choice, trial: "_Trial", notes: list[str]) -> Choice:
    """``requested``, or the part of it that works; what does not is added to ``notes``."""
    if requested.channels_last and _shares_memory(trial.net):
        requested = replace(requested, channels_last=False)
        notes.append(f"{trial.role}: contiguous memory format; some of its tensors share memory")
    if trial.fault(requested) is None:
        return requested
    choice = Choice(False, False, False)
    if (why := trial.fault(choice)) is not None:
        choice = _without_failing_hooks(choice, trial, notes, why)
    for change, description in _CHANGES.items():
        if getattr(requested, change):
            why = trial.fault(replace(choice, **{change: True}))
            choice = replace(choice, **{change: why is None})
            if why is not None:
                notes.append(f"{trial.role}: {description}, {why}")
    return choice


_CHANGES = {
    "channels_last": "contiguous memory format; in channels-last",
    "bf16": "float32; in bfloat16",
    "compiled": "nothing is compiled; with torch.compile",
}


def _without_failing_hooks(choice: Choice, trial: "_Trial", notes: list[str], why: str) -> Choice:
    """Without the hooks that make a network fail."""
    for part, description in (
        ("maps", "stage maps are not read; with them"),
        ("stats", "BatchNorm is not read; with it"),
    ):
        choice = replace(choice, **{part: False})
        notes.append(f"{trial.role}: {description}, {why}")
        if trial.fault(choice) is None:
            return choice
    raise UserError(f"{trial.role} needs to allow forward hooks, got a network which with them {why}; rewrite it")


@dataclass
class _Trial:
    """Passes of the untouched network, and of the network as it would be run, on the same noise images."""

    net: nn.Module
    runtime: Runtime
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    role: str
    trains: bool
    head: str | None
    stages: Sequence[str]
    norms: Sequence[str] | None
    outputs: Output

    def __post_init__(self) -> None:
        self.modes = (False, True) if self.trains else (False,)
        stream = torch.Generator().manual_seed(0)
        self.noise = torch.rand(IMAGES, *self.image_shape, generator=stream).to(self.runtime.device)
        self.jitter = torch.randn(IMAGES, *self.image_shape, generator=stream).to(self.runtime.device)
        self.references: dict[bool, _Pass] = {}
        self.floors: dict[tuple[bool, float], _Pass] = {}

    def probe(self, choice: Choice, joint: bool = False) -> Probe:
        """The network wrapped with these changes."""
        probe = Probe(
            self.net,
            mean=self.mean,
            std=self.std,
            head=self.head,
            stages=self.stages if choice.maps else (),
            norms=self.norms if choice.stats else (),
            precision="bf16" if choice.bf16 else "fp32",
            channels_last=choice.channels_last,
            joint=joint,
            outputs=self.outputs,
        )
        return probe.to(self.runtime.device)

    def run_untouched(self) -> bool:
        """Run the untouched network in every mode; do gradients reach the images?"""
        for training in self.modes:
            try:
                self.references[training] = self._pass(self._reference_answers, self.noise, training)
            except Exception as error:  # the network is the user's and may fail in any way
                mode = "train" if training else "eval"
                raise UserError(
                    f"{self.role} needs to run forward and backward on {IMAGES} images in {mode} mode, got "
                    f"{first_line(error)}; correct the network (--debug shows where)"
                ) from error
        self._check_trainable()
        return self.references[False].images is not None

    def _check_trainable(self) -> None:
        """Refuse, before the first round, a network that cannot be trained."""
        may_change = any(parameter.requires_grad for parameter in self.net.parameters())
        if self.trains and may_change and self.references[True].parameters is None:
            raise UserError(
                f"{self.role} needs weights that learn, got a network that passes no gradient to any of them in train "
                "mode; take torch.no_grad, detach and the like out of its forward pass, or build it unquantized"
            )

    def fault(self, choice: Choice) -> str | None:
        """What goes wrong with ``choice``: "it fails with ..." or "its logits differ by ..."; None if nothing does."""
        tolerance = BF16 if choice.bf16 else FP32 if self.runtime.device.type == "cpu" else TF32
        for training in self.modes:  # before the weights change their format
            self._floor(training, tolerance)
        with preserving(self.net):
            probe = self.probe(choice)
            try:
                return self._objection(probe, choice, tolerance)
            except Exception as error:  # as above
                return f"it fails with {first_line(error)}"
            finally:
                probe.release()

    def _objection(self, probe: Probe, choice: Choice, tolerance: Tolerance) -> str | None:
        reader: Callable[[Images], tuple[Logits, Tensor | None]] = lambda images: _answers(probe, images)  # noqa: E731
        reader = self.runtime.compile(reader) if choice.compiled else reader
        for training in self.modes:
            outcome = self._pass(reader, self.noise, training)
            difference = _difference(self.references[training], outcome, self._floor(training, tolerance), tolerance)
            if difference is not None:
                return f"{difference} in {'train' if training else 'eval'} mode"
        return None

    def _floor(self, training: bool, tolerance: Tolerance) -> _Pass:
        """The untouched network on images that are off by one rounding, with other random numbers."""
        key = (training, tolerance.rounding)
        if key not in self.floors:
            near = self.noise * (1 + tolerance.rounding * self.jitter)
            self.floors[key] = self._pass(self._reference_answers, near, training, seed=1)
        return self.floors[key]

    def _reference_answers(self, images: Images) -> tuple[Logits, Tensor | None]:
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return as_logits(self.net((images - mean) * (1 / std)), self.outputs), None

    def _pass(
        self, read: Callable[[Images], tuple[Logits, Tensor | None]], images: Images, training: bool, seed: int = 0
    ) -> _Pass:
        with preserving(self.net), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself gives them, once
            torch.manual_seed(seed)
            self.net.train(training)
            images = images.clone().requires_grad_()
            logits, readings = read(images)
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits.device)
            total = (logits.float() * weights).sum()
            if readings is not None:  # changes no gradient, but goes through all that the hooks read
                total = total + 0 * readings
            parameters = [p for p in self.net.parameters() if p.requires_grad] if training else []
            grads: Sequence[Tensor | None] = [None] * (1 + len(parameters))
            if total.requires_grad:
                grads = torch.autograd.grad(total, [images, *parameters], allow_unused=True)
            of_weights = [grad.float().flatten() for grad in grads[1:] if grad is not None]
            gradients = torch.cat(of_weights) if of_weights else None
            return _Pass(logits.detach().float(), None if grads[0] is None else grads[0].float(), gradients)


def _answers(probe: Probe, images: Images) -> tuple[Logits, Tensor | None]:
    """The logits, and a sum over everything else that is read."""
    out = probe(images, stats=bool(probe.norms), maps=bool(probe.stage_names))
    sums = [part.float().sum() for moments in out.stats for part in moments] + [m.float().sum() for m in out.maps]
    return out.logits, torch.stack(sums).sum() if sums else None


def _difference(reference: _Pass, outcome: _Pass, floor: _Pass, tolerance: Tolerance) -> str | None:
    for part, expected, actual, near in zip(
        ("logits", "gradients", "gradients"), reference, outcome, floor, strict=True
    ):
        if expected is None and actual is not None:
            return f"{part} reach its images which its logits do not pass"
        if (expected is None) != (actual is None) or (expected is not None and expected.shape != actual.shape):  # type: ignore[union-attr]
            return f"its {part} have another shape"
        if expected is None or actual is None or not bool(torch.isfinite(expected).all()):
            continue
        gap = _distance(expected, actual)
        noise = _distance(expected, near) if near is not None and near.shape == expected.shape else 0.0
        if not gap <= max(getattr(tolerance, part), 10 * noise):
            return f"its {part} differ by {gap:.1%}"
    return None


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over that of ``a``; 0 where both are 0."""
    gap, size = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a))
    return 0.0 if gap == 0 else gap / max(size, 1e-30)


def _shares_memory(net: nn.Module) -> bool:
    """Do tensors of four dimensions share memory with others, so that another format would tear them apart?"""
    owners: dict[int, set[int]] = {}
    four: set[int] = set()
    for module in net.modules():
        plain = [value for value in vars(module).values() if isinstance(value, Tensor)]
        plain += [value for many in vars(module).values() if isinstance(many, list | tuple) for value in many]
        for tensor in (*module._parameters.values(), *module._buffers.values(), *plain):
            if isinstance(tensor, Tensor) and tensor.numel():
                place = tensor.untyped_storage().data_ptr()
                owners.setdefault(place, set()).add(id(tensor))
                four |= {place} if tensor.dim() == 4 else set()
    return any(len(owners[place]) > 1 for place in four)


@contextmanager
def preserving(net: nn.Module) -> Iterator[None]:
    """Whatever happens inside, ``net`` is afterwards what it was.

    Put back are the values, memory and dtype of parameters and buffers, modes, gradient flags and other attributes of
    the modules, and torch's default random streams. Hooks are not: who registers one removes it.
    """
    restore = _snapshot(net)
    devices = sorted({t.device.index or 0 for t in net.parameters() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            restore()


def _snapshot(net: nn.Module) -> Callable[[], None]:
    """Remember everything about ``net``; the function that is returned puts it back."""
    tensors = [(t, t.data, t.data.clone(), t.requires_grad) for t in (*net.parameters(), *net.buffers())]
    grads = [(p, p.grad) for p in net.parameters() if p.is_leaf]
    attributes = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in net.modules()]

    @torch.no_grad()
    def restore() -> None:
        for module, plain, buffers, parameters in attributes:
            _put_back(vars(module), plain)
            _put_back(module._buffers, buffers)
            _put_back(module._parameters, parameters)
        for tensor, data, value, requires_grad in tensors:
            data.copy_(value)
            tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        for parameter, grad in grads:
            parameter.grad = grad

    return restore


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for key in [key for key in now if key not in before]:
        del now[key]
    for key, value in before.items():
        if now.get(key) is not value:
            now[key] = value
