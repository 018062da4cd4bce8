"""DFND: Learning Student Networks in the Wild.

Hanting Chen, Tianyu Guo, Chang Xu, Wenshuo Li, Chunjing Xu, Chao Xu, Yunhe Wang. CVPR 2021.

Nothing is synthesised. Of many unlabelled images those are kept of whose class the teacher is surest. The student
imitates the teacher on them, and learns from the teacher's classes as from noisy labels: a matrix that is trained
beside it says how often each class is taken for which other.

The paper's algorithm and this file:

    1  keep the n web images with the lowest CE(T(x), argmax T(x))     ``synthesize``, once
    2  Q: T's accuracy on the diagonal, the rest evenly beside it      ``setup``
    3  for each of E epochs:                                           the driver's rounds
    4      for each mini-batch x of them:                              ``batch``
    5          y = argmax T(x)
    6          update S and Q on τ² KL(T(x) ‖ S(x)) − log (σ(S(x)) Q)_y  ``loss``
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task
from dfkd.engine.limits import Count, Positive, PositiveShare, Whole
from dfkd.engine.measures import Measure
from dfkd.engine.plan import Plan
from dfkd.engine.views import View
from dfkd.engine.web import (
    SELECTION_MEASURES,
    own_rows,
    read_blocks,
    selection_metrics,
    selection_views,
    web_of,
)
from dfkd.errors import UserError
from dfkd.losses.divergence import knowledge_distillation
from dfkd.losses.noise import noisy_label_loss
from dfkd.nets.noise import NoiseMatrix
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import most_certain
from dfkd.types import Batch, Bytes, Scalar

__all__ = ["DFND", "DFNDState"]


@dataclass
class DFNDState(State):
    """What DFND remembers. Row numbers are of the task's web images."""

    rows: Tensor  # this process's part of the web images, ascending (m,)
    chosen: Tensor  # the images that were kept (s,)
    predicted: Tensor  # T's class of each (s,)
    Q: nn.Module = field(default_factory=nn.Identity)  # NoiseMatrix; Identity without adaptation


@final
@dataclass(frozen=True)
class DFND(Method[DFNDState]):
    """Hyper-parameters of DFND; the defaults are the authors' CIFAR-10 setting."""

    # The selection
    selected: Count = 600_000  # n, web images that are kept, of all processes together; all where there are fewer
    block: Count = 512  # images per forward pass of the selection
    # The loss
    temperature: Positive = 4.0  # τ
    label_weight: float = 1.0  # weight of the label term
    teacher_accuracy: float = 0.9523  # of T on its own data, the diagonal of Q (CIFAR-100: 0.7774)
    lr: Positive = 1e-3  # Adam's rate for Q
    # Augmentation
    pad: Whole = 4  # random crop of the web images
    flip: bool = True  # random mirror, likewise
    # Ablations, and our own
    selected_share: PositiveShare | None = None  # n as a part of the web images instead
    select: Literal["certain", "random"] = "certain"  # images kept: those T is most confident of, or random ones
    adaptation: Literal["matrix", "none"] = "matrix"  # the label term with Q, or imitation alone

    default_plan: ClassVar[Plan] = Plan(
        rounds=34,
        steps=2344,
        batch_size=256,
        lr=0.1,
        weight_decay=5e-4,
        schedule="step",
        milestones=(14, 28),
    )

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {**SELECTION_MEASURES, "certainty/least": Measure("lowest confidence of the teacher among the selected images")}
    )

    def check_values(self) -> None:
        """An accuracy is neither 0 nor 1."""
        if not 0 < self.teacher_accuracy < 1:
            raise UserError(f"DFND needs teacher_accuracy above 0 and below 1, got {self.teacher_accuracy}; change it")

    def needs(self) -> frozenset[Need]:
        """Web images."""
        return frozenset({Need.WEB})

    def views(self, task: Task, state: DFNDState | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """The selection."""
        return {} if state is None else selection_views(task, state.chosen, state.predicted, real)

    def setup(self, task: Task, plan: Plan) -> DFNDState:
        """Line 2."""
        none = torch.zeros(0, dtype=torch.int64, device=task.runtime.device)
        state = DFNDState(own_rows(task), none, none)
        if self.adaptation == "matrix":
            state.Q = task.runtime.place(NoiseMatrix(task.classes, self.teacher_accuracy))
            state.optimizers = (Adam(state.Q.parameters(), lr=self.lr, fused=True),)
        return state

    def synthesize(self, task: Task, state: DFNDState, clock: Clock) -> Metrics:
        """Line 1, in the first round."""
        if len(state.chosen):
            return {}
        certainty = torch.empty(len(state.rows), device=task.runtime.device)
        predicted = torch.empty(len(state.rows), dtype=torch.int64, device=task.runtime.device)
        with torch.no_grad():
            for part, x in read_blocks(task, state.rows, self.block):
                certainty[part], predicted[part] = task.teacher(x).logits.log_softmax(dim=1).max(dim=1)
        total = len(web_of(task))
        n = self.selected if self.selected_share is None else round(self.selected_share * total)
        rank = certainty
        if self.select == "random":
            rank = torch.rand(len(certainty), generator=task.runtime.generator, device=certainty.device)
        best = most_certain(rank, max(1, n // task.runtime.world))
        state.chosen, state.predicted = state.rows[best], predicted[best]
        return {**selection_metrics(task, state.predicted), "certainty/least": certainty[best].amin().exp()}

    def batch(self, task: Task, state: DFNDState, clock: Clock) -> Batch:
        """Line 4: images that were kept, drawn uniformly with replacement."""
        rng, device = task.runtime.generator, task.runtime.device
        pick = torch.randint(len(state.chosen), (clock.plan.batch_size,), generator=rng, device=device)
        rows = state.chosen[pick]
        pixels = web_of(task).take(rows).to(device)
        return Batch(as_images(crop_flip(pixels, rng, self.pad, self.flip)), state.predicted[pick], rows)

    def loss(self, task: Task, state: DFNDState, batch: Batch) -> Scalar:
        """Lines 5 and 6."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        s = task.student(batch.images).logits
        loss = knowledge_distillation(t, s, self.temperature)
        if self.adaptation == "none":
            return loss
        return loss + self.label_weight * noisy_label_loss(s, t.argmax(dim=1), state.Q())
