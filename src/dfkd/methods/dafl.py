"""DAFL: Data-Free Learning of Student Networks.

Hanting Chen, Yunhe Wang, Chang Xu, Zhaohui Yang, Chuanjian Liu, Boxin Shi, Chunjing Xu, Chao Xu, Qi Tian. ICCV 2019.

One generator learns, step by step beside the student, to make images of which the teacher is sure, that excite its last
features, and that show all classes equally often. The student imitates the teacher on the very images that the
generator was just trained on; nothing is stored.

The paper's algorithm and this file:

    1  initialise G                                        ``setup``
    2  repeat:                                             the driver's rounds, ``Plan.turns`` times in each
    3      draw z; x = G(z); y = argmax T(x)               ``synthesize``
    4      update G on α_cls CE(T(x), y) + α_act L_a + α_ie L_ie    ``objective``
    5      update S on KL(T(x) ‖ S(x))                     ``batch``, ``loss``
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.engine.core import Cache, Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Betas, Count, Positive
from dfkd.engine.measures import Measure, class_entropy_measure
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.losses.priors import activation_loss, class_balance
from dfkd.nets.generators import ConvGenerator, TanhGenerator
from dfkd.types import Batch, Logits, Scalar

__all__ = ["DAFL", "DAFLState"]


@dataclass
class DAFLState(State):
    """What DAFL remembers."""

    G: nn.Module
    optimizer: Adam  # of G; it lives as long as G
    x: Cache[Tensor] = field(default_factory=Cache)  # the newest images, in normalised space


@final
@dataclass(frozen=True)
class DAFL(Method[DAFLState]):
    """Hyper-parameters of DAFL; the code's name follows each. The defaults are the authors' CIFAR-10 setting.

    The three weights belong to a batch size (``Plan.batch_size``: 1024; MNIST: 512), says an author: change all.
    """

    # The generator's loss
    alpha_cls: float = 0.05  # oh, weight of the one-hot loss (MNIST: 1, CIFAR-100: 0.5)
    alpha_act: float = 0.01  # a, weight of the activation loss (MNIST and CIFAR-100: 0.1)
    alpha_ie: float = 5.0  # ie, weight of the class balance (CIFAR-100: 20)
    logarithm: Literal["ten", "natural"] = "ten"  # of the class balance (CMI's harness: natural)
    activation: Literal["features", "map"] = "features"  # f_T: what T's classifier reads, or its last stage (LeNet)
    # The generator
    lr: Positive = 0.02  # lr_G, Adam's rate for G (MNIST: 0.2)
    betas: Betas = (0.9, 0.999)
    width: Count = 1000  # latent_dim, length of z (MNIST: 100)
    channels: Count = 64  # of G's last block
    generator: Literal["tanh", "large"] = "tanh"  # DAFL's, which paints in normalised space, or CMI's harness's
    # The student
    images: Literal["same", "fresh"] = "same"  # S learns from the batch that G was trained on, or from new z
    temperature: Positive = 1.0  # τ of the student's KL

    default_plan: ClassVar[Plan] = Plan(
        rounds=2000,
        steps=120,
        turns=120,
        batch_size=1024,
        lr=0.1,
        weight_decay=5e-4,
        schedule="step",
        milestones=(800, 1600),
    )

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {"class_entropy": class_entropy_measure("raise alpha_ie, or lower alpha_cls")}
    )

    def needs(self) -> frozenset[Need]:
        """Two doublings; a classifier or stages, whose input or last map is to be excited."""
        reads = {"features": Need.HEAD, "map": Need.STAGES}[self.activation]
        return frozenset({Need.GRADIENT, Need.sides_of(4)} | ({reads} if self.alpha_act != 0 else set()))

    def setup(self, task: Task, plan: Plan) -> DAFLState:
        """Line 1."""
        if self.generator == "tanh":
            G: nn.Module = TanhGenerator(self.width, task.image_shape, self.channels)
        else:
            G = ConvGenerator(self.width, task.image_shape, self.channels, first=4)
        G = task.runtime.place(G)
        return DAFLState(G, Adam(G.parameters(), lr=self.lr, betas=self.betas, fused=True))

    def synthesize(self, task: Task, state: DAFLState, clock: Clock) -> Metrics:
        """Lines 3 and 4. The images are those from before G's step."""
        T, G = task.teacher, state.G
        make, step = task.runtime.compile(generate), task.runtime.compile(objective)
        G.train()
        z = _codes(self, task, clock)
        with task.runtime.autocast():
            x = make(G, z).float()
        x = x if self.generator == "tanh" else T.normalise(x)  # line 3
        out = step(self, T, x)
        task.runtime.step(out.loss, state.optimizer)  # line 4
        state.x.value = x.detach()
        return {
            "loss/generator": out.loss.detach(),
            "loss/class": out.cls.detach(),
            "loss/activation": out.act.detach(),
            "loss/balance": out.ie.detach(),
            "class_entropy": class_entropy(out.logits),
        }

    def batch(self, task: Task, state: DAFLState, clock: Clock) -> Batch:
        """Line 5: the images of line 3, or those of new codes; with a copy clipped to [0, 1] for display."""
        x = state.x.value
        if self.images == "fresh" or x is None:
            state.G.eval()
            with task.runtime.autocast():
                images = state.G(_codes(self, task, clock)).float()
            x = images if self.generator == "tanh" else task.teacher.normalise(images)
        return Batch(task.teacher.denormalise(x).clamp(0, 1), extra={"normalised": x})

    def loss(self, task: Task, state: DAFLState, batch: Batch) -> Scalar:
        """Line 5. Images that another method made are taken as they are."""
        x = task.teacher.normalise(batch.images) if batch.extra is None else batch.extra["normalised"]
        with torch.no_grad():
            t = task.teacher.read_normalised(x).logits
        return knowledge_distillation(t, task.student.read_normalised(x).logits, self.temperature)


class Parts(NamedTuple):
    """The terms of line 4, unweighted, and T's answer."""

    loss: Scalar
    cls: Scalar
    act: Scalar
    ie: Scalar
    logits: Logits


def generate(G: nn.Module, z: Tensor) -> Tensor:
    """``G(z)``."""
    x: Tensor = G(z)
    return x


def objective(method: DAFL, T: Probe, x: Tensor) -> Parts:
    """Line 4: ``α_cls CE(t, argmax t) − α_act mean |f_T| + α_ie Σ_k p̄_k log p̄_k``, with ``x`` in normalised space."""
    out = T.read_normalised(x, maps=method.activation == "map")
    t = out.logits
    cls = cross_entropy(t, t.argmax(dim=1))
    act = activation_loss(out.maps[-1] if out.maps else out.features)
    ie = class_balance(t, 10.0 if method.logarithm == "ten" else math.e)
    return Parts(method.alpha_cls * cls + method.alpha_act * act + method.alpha_ie * ie, cls, act, ie, t)


def _codes(method: DAFL, task: Task, clock: Clock) -> Tensor:
    """As many codes z as the student sees images."""
    rng, device = task.runtime.generator, task.runtime.device
    return torch.randn(clock.plan.batch_size, method.width, generator=rng, device=device)
