"""The forward and backward passes a method cannot avoid, and nothing else.

Same networks, batch size, dtype and memory layout as the method, on the bare modules: no probe and no hooks, no
augmentation, no losses (the sum of the logits is differentiated), no optimiser, no pool, no statistics.

A generator step of NAYER and D3K: G forward and backward (weights); teacher and student forward and backward to the
image alone, their weights frozen. Of Spaceship-Net: the same without the student, which its generator never sees.

A student step of NAYER and D3K: teacher forward without gradients; student forward and backward (weights). Of
Spaceship-Net: also the decoding of stored features by the rest of G (from the tap the step drew), without gradients,
and for Grad-CAM the backward passes of both networks from the chosen logits to the first stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.cases import CLASSES, SHAPE, Case
from dfkd.engine.core import Task
from dfkd.engine.probe import Probe
from dfkd.losses.statistics import moment_distance
from dfkd.methods.d3k import D3K
from dfkd.methods.nayer import NayerState
from dfkd.methods.spaceship import SpaceshipNet, SpaceshipState
from dfkd.nets.supernet import SubnetShape, SuperNet

__all__ = ["Bare"]


@dataclass
class Bare:
    """The bare passes of one case, on the networks of ``task`` and of the method's ``state``.

    Attributes:
        case, task, state: as the method has them.
        G: the generator's weights that are trained.
        make: one forward pass of the generator.
        x: normalised images for the student's steps.
        features: what Spaceship-Net's taps see, for the same.
    """

    case: Case
    task: Task
    state: object
    G: nn.Module = field(init=False)
    make: Callable[[], Tensor] = field(init=False)
    x: Tensor = field(init=False)
    features: tuple[Tensor, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Draw what the passes start from."""
        n, state = self.case.batch, self.state
        self.x = torch.randn(n, *SHAPE).contiguous(memory_format=torch.channels_last)
        if isinstance(state, SpaceshipState):
            G, z = state.G, torch.randn(n, state.G.project.in_features)
            self.G, self.make = G, lambda: G(z)
            with torch.no_grad():
                self.features = G.features(z)
        elif isinstance(state, NayerState) and self.task.text is not None:
            e = self.task.text[torch.arange(n) % CLASSES]
            whole = nn.Sequential(state.Z, state.G)
            self.G, self.make = whole, lambda: whole(e)
        else:
            method = self.case.method
            if not isinstance(method, D3K):
                raise TypeError(f"no bare passes for {type(method).__name__}")
            shape = SubnetShape((method.widths[0],) * 3, (method.kernels[0],) * 3)
            net, z = self.task.runtime.place(SuperNet(method.width, SHAPE, shape)), torch.randn(n, method.width)
            self.G, self.make = net, lambda: net(z)

    def generator_step(self, statistics: bool = False) -> None:
        """One; ``statistics`` adds the comparison of the teacher's batch moments with the stored ones."""
        T, S = self.task.teacher, self.task.student
        self.G.train()
        S.freeze()
        x = self.make().contiguous(memory_format=torch.channels_last)
        if statistics:
            out = T.read_normalised(x, stats=True)
            total = out.logits.sum() + moment_distance(out.stats, T.stored)
        else:
            total = T.net(x).sum()
        if not isinstance(self.case.method, SpaceshipNet):
            total = total + S.net(x).sum()
        torch.autograd.grad(total, list(self.G.parameters()))

    def student_step(self, k: int = 0) -> None:
        """One; ``k`` is its number in the round."""
        T, S = self.task.teacher, self.task.student
        S.requires_grad_(True).train()
        if isinstance(self.state, SpaceshipState):
            self._regions_step(self.state, k)
            return
        with torch.no_grad():
            T.net(self.x)
        torch.autograd.grad(S.net(self.x).sum(), list(S.net.parameters()))

    def _regions_step(self, state: SpaceshipState, k: int) -> None:
        T, S, tap = self.task.teacher, self.task.student, state.choices[k][0]
        state.G.eval()
        with torch.no_grad():
            x = state.G.decode(self.features[tap], tap).contiguous(memory_format=torch.channels_last)
        with _maps(T) as theirs:
            torch.autograd.grad(T.net(x.requires_grad_(True)).amax(dim=1).sum(), theirs)
        with _maps(S) as ours:
            logits = S.net(x.detach())
            torch.autograd.grad(logits.amax(dim=1).sum(), ours, retain_graph=True)
            torch.autograd.grad(logits.sum(), list(S.net.parameters()))


@contextmanager
def _maps(probe: Probe) -> Iterator[list[Tensor]]:
    """The outputs of the stages of the next forward pass."""
    found: list[Tensor] = []

    def read(module: nn.Module, given: object, made: Tensor) -> None:
        found.append(made)

    handles = [probe.net.get_submodule(name).register_forward_hook(read) for name in probe.stage_names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
