"""The forward and backward passes a method cannot avoid, and nothing else.

Same networks, batch size, dtype and memory layout as the method, on the bare modules: no probe and no hooks, no
augmentation, no losses (the sum of the logits is differentiated), no optimiser, no pool, no statistics.

A generator step of NAYER and D3K: G forward and backward (weights); teacher and student forward and backward to the
image alone, their weights frozen. Of Spaceship-Net: the same without the student, which its generator never sees. Of
CMI: the teacher twice, for the two views, and its head on both views of the batch and of as many stored images as a
step draws. A pixel step of STTS: teacher forward and backward to the image. Of DAFL: G forward
and backward, the teacher forward and backward to the image. The others make no images.

A student step: teacher forward without gradients; student forward and backward (the weights that are learnt). Of KD3
with its contrast: the same for the perturbed images, which go through the student apart, and through the teacher
where that has a head of its own for them; the two small heads are left out. Of Spaceship-Net: also the decoding of
stored features by the rest of G (from the tap the step drew), without gradients, and for Grad-CAM the backward passes
of both networks from the chosen logits to the first stage.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine.core import Method, State, Task
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.losses.statistics import moment_distance
from dfkd.methods import d3k, nayer
from dfkd.methods.cmi import CMI, CMIState
from dfkd.methods.d3k import D3K
from dfkd.methods.dafl import DAFL, DAFLState
from dfkd.methods.dfnd import DFND
from dfkd.methods.kd3 import KD3
from dfkd.methods.nayer import NAYER, NayerState
from dfkd.methods.noise import NoiseInput
from dfkd.methods.spaceship import SpaceshipNet, SpaceshipState
from dfkd.methods.stts import STTS
from dfkd.methods.vanilla import VanillaKD
from dfkd.nets.supernet import draw_subnet

__all__ = ["Bare", "trained_weights"]

KNOWN = (NAYER, SpaceshipNet, D3K, CMI, DAFL, KD3, DFND, STTS, VanillaKD, NoiseInput)


def trained_weights(task: Task, state: State) -> list[Tensor]:
    """The student's weights that are trained."""
    return [p for name, p in task.student.net.named_parameters() if name not in state.fixed_parameters]


class Bare:
    """The bare passes of one method, on the networks of ``task`` and of the method's ``state``.

    Attributes:
        makes: there are steps that make images.
        reads: these steps' loss compares BatchNorm statistics.

    Raises:
        TypeError: a method whose passes are not known here.
    """

    def __init__(self, method: Method[Any], plan: Plan, task: Task, state: State) -> None:
        if not isinstance(method, KNOWN):
            raise TypeError(f"no bare passes for {type(method).__name__}")
        self.method, self.task, self.state = method, task, state
        self.x, self.other = (self._images(plan.batch_size) for _ in range(2))
        self.makes = isinstance(method, NAYER | SpaceshipNet | D3K | CMI | DAFL | STTS)
        self.reads = self.makes and not isinstance(method, STTS | DAFL) and bool(task.teacher.norms)
        self.features: tuple[Tensor, ...] = ()
        if isinstance(state, SpaceshipState):
            with torch.no_grad():
                self.features = state.G.features(torch.randn(plan.batch_size, state.G.project.in_features))
        self.rows: Tensor | None = None  # what CMI's head reads
        if isinstance(method, CMI) and isinstance(state, CMIState):
            self._fill(method, state)
        self.make: Callable[[], Tensor] | None = None
        self.by: Sequence[Tensor] = ()

    def prepare(self) -> None:
        """Before a turn of generator steps: what they start from. D3K's networks come from torch's default stream."""
        method, task, state = self.method, self.task, self.state
        if isinstance(method, NAYER) and isinstance(state, NayerState):
            y = torch.arange(method.synthesis_batch) % task.classes
            e, whole = nayer._embed(method, task, y), nn.Sequential(state.Z, state.G).train()
            self.make, self.by = lambda: whole(e), list(whole.parameters())
        elif isinstance(method, SpaceshipNet) and isinstance(state, SpaceshipState):
            G, z = state.G.train(), torch.randn(method.synthesis_batch, method.width)
            self.make, self.by = lambda: G(z), list(G.parameters())
        elif isinstance(method, CMI) and isinstance(state, CMIState):
            decoder, codes = state.G.train(), torch.randn(method.synthesis_batch, method.width, requires_grad=True)
            self.make, self.by = lambda: decoder(codes), [*decoder.parameters(), codes, *state.h.parameters()]
        elif isinstance(method, DAFL) and isinstance(state, DAFLState):
            painter, latent = state.G.train(), torch.randn(len(self.x), method.width)
            self.make, self.by = lambda: painter(latent), list(painter.parameters())
        elif isinstance(method, D3K):
            self._prepare_subnet(method)
        elif isinstance(method, STTS):
            x = self._images(method.synthesis_batch).requires_grad_(True)
            self.make, self.by = lambda: x, [x]

    def generator_step(self, statistics: bool = False) -> None:
        """One; ``statistics`` adds the comparison of the teacher's batch moments with the stored ones."""
        if self.make is None:
            raise RuntimeError("generator steps need what they start from; prepare first")
        T, S = self.task.teacher, self.task.student
        S.freeze()
        with self.task.runtime.autocast():
            x = self.make().contiguous(memory_format=torch.channels_last)
            if statistics:
                out = T.read_normalised(x, stats=True)
                total = out.logits.sum() + moment_distance(out.stats, out.stored)
            else:
                total = T.net(x).sum()
            if isinstance(self.method, NAYER | D3K | CMI):
                total = total + S.net(x).sum()
            if isinstance(self.state, CMIState):
                total = total + T.net(x).sum() + self.state.h(self.rows).sum()
        by = self.by if self.rows is None else [*self.by, self.rows]
        torch.autograd.grad(total, by, allow_unused=True)  # a slice of D3K's supernet leaves the rest out

    def student_step(self, k: int = 0) -> None:
        """One; ``k`` is its number in the round."""
        T, S, state = self.task.teacher, self.task.student, self.state
        weights = trained_weights(self.task, state)
        S.freeze().train()
        for weight in weights:
            weight.requires_grad_(True)
        with self.task.runtime.autocast():
            if isinstance(self.method, SpaceshipNet) and isinstance(state, SpaceshipState):
                total = self._decoded_step(self.method, state, k)
            else:
                with torch.no_grad():
                    T.net(self.x)
                total = S.net(self.x).sum()
            if isinstance(self.method, KD3) and self.method.mdcl != "none":
                total = total + S.net(self.other).sum()
                if "teacher" in state.joint:
                    with torch.no_grad():
                        T.net(self.other)
        torch.autograd.grad(total, weights)

    def _fill(self, method: CMI, state: CMIState) -> None:
        """As many images in the bank as a step draws: as it is after some rounds, on both sides."""
        n, d = min(method.negatives, state.bank.capacity), state.bank.columns["features"][0][0]
        state.bank.add(features=torch.randn(n, d).half())
        self.rows = torch.randn(2 * (method.synthesis_batch + n), d // 2, requires_grad=True)

    def _prepare_subnet(self, method: D3K) -> None:
        net, task = d3k._generator(method, self.task), self.task
        z = torch.randn(method.synthesis_batch, method.width, generator=task.runtime.generator)
        z.requires_grad_(method.optimise_z)
        slices = method.resample == "iteration"
        self.make = lambda: net(z, draw_subnet(method.widths, method.kernels) if slices else None)
        self.by = [*net.parameters(), z] if method.optimise_z else list(net.parameters())

    def _decoded_step(self, method: SpaceshipNet, state: SpaceshipState, k: int) -> Tensor:
        """The student's logits, summed, after the decoding, the teacher's pass and both networks' Grad-CAM."""
        T, S, tap = self.task.teacher, self.task.student, state.choices[k][0]
        regions = method.constraint == "msarc"
        state.G.eval()
        with torch.no_grad():
            x = state.G.decode(self.features[tap], tap).contiguous(memory_format=torch.channels_last)
            if not regions:
                T.net(x)
        if regions:
            with _maps(T, method.gradcam_last) as theirs:
                _look(T.net(x.requires_grad_(True)), theirs)
        with _maps(S, method.gradcam_last) as ours:
            logits: Tensor = S.net(x.detach())
        if regions:
            _look(logits, ours)
        return logits.sum()

    def _images(self, n: int) -> Tensor:
        """Normalised images, as the networks take them."""
        return torch.randn(n, *self.task.image_shape).contiguous(memory_format=torch.channels_last)


@contextmanager
def _maps(probe: Probe, last: bool) -> Iterator[list[Tensor]]:
    """The outputs of the stages of the next forward pass, with or without the last one's."""
    found: list[Tensor] = []

    def keep_output(module: nn.Module, given: object, made: Tensor) -> None:
        found.append(made)

    names = probe.stage_names if last else probe.stage_names[:-1]
    handles = [probe.net.get_submodule(name).register_forward_hook(keep_output) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _look(logits: Tensor, maps: Sequence[Tensor]) -> None:
    """Grad-CAM's backward pass, from the chosen logits to the maps; the graph stays."""
    if maps:
        torch.autograd.grad(logits.amax(dim=1).sum(), maps, retain_graph=True)
