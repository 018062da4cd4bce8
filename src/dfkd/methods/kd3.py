"""KD3: Distribution Shift Matters for Knowledge Distillation with Webly Collected Images.

Jialiang Tang, Shuo Chen, Gang Niu, Masashi Sugiyama, Chen Gong. ICCV 2023.

Nothing is synthesised. The student learns from web images whose distribution differs from the teacher's data: those
that a mixture of teacher and student is sure about, more and more by the student's word. It keeps the teacher's
classifier and only aligns features, and it learns that a change of image statistics does not matter.

The paper's algorithm box and this file:

    1  S = g_T ∘ φ_S, with T's classifier g_T frozen      ``setup``; other widths: ``fit``
    2  repeat for I epochs:                               the driver's rounds
    3      select D_s from the web images (eqs. 3, 4)     ``synthesize``
    4      for each mini-batch of D_s:                    the driver's student steps
    5          perturb it by MixDistribution (eqs. 11-12) ``batch``
    6          L = L_wfa + α (L^S + L^T)  (eqs. 9-18)     ``loss``
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from dfkd.engine.core import Cache, Clock, Method, Metrics, Need, State, Task
from dfkd.engine.limits import Count, NotNegative, Positive, PositiveShare, Share, Whole
from dfkd.engine.measures import Measure
from dfkd.engine.plan import Plan
from dfkd.engine.sharing import check_outputs, copy_head, feature_projection, projection, widen
from dfkd.engine.views import View
from dfkd.engine.web import SELECTION_MEASURES, own_rows, read_blocks, selection_metrics, selection_views, web_of
from dfkd.errors import UserError
from dfkd.losses.contrast import agreement_weight, distribution_contrast, weighted_feature_alignment
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.nets.heads import contrast_head
from dfkd.ops.augment import crop_flip
from dfkd.ops.exchange import draw_mixup
from dfkd.ops.mixing import draw_mix_distribution
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import class_counts, class_thresholds, combine, mixing_rate, select
from dfkd.types import Batch, Bytes, Images, Labels, Readout, Scalar

__all__ = ["KD3", "KD3State"]


@dataclass
class KD3State(State):
    """What KD3 remembers. Row numbers are of the task's web images; those of ``rows`` are this process's share."""

    rows: Tensor  # the part of the pool that may be selected, ascending (m,)
    chosen: Tensor  # D_s (s,)
    predicted: Tensor  # the classes predicted for D_s (s,)
    teacher: Cache[Tensor] = field(default_factory=Cache)  # p_T of ``rows`` (m, K), in host memory


@final
@dataclass(frozen=True)
class KD3(Method[KD3State]):
    """Hyper-parameters of KD3; the paper's symbol follows each. Defaults: CIFAR-10 and CIFAR-100."""

    # The paper's
    alpha: float = 0.01  # α, weight of the contrast
    temperature: Positive = 0.30  # τ of the contrast
    v_th: Share = 0.95  # V_th, threshold of the most frequent class
    delta: Positive = 0.1  # δ of Beta(δ, δ), of MixDistribution and of mixup
    head_width: Count = 128  # length of z
    pad: Whole = 4  # random crop of the web images (MNIST: 0)
    flip: bool = True  # random mirror, likewise
    # What the paper leaves open
    reference_batch: Count | None = 1  # the contrast is its batch mean times this; None: the sum over the batch (paper)
    alignment: Literal["mean", "sum"] = "mean"  # H_mse over the features of an image: its mean, or its sum
    select_every: Count = 1  # rounds between selections
    one_pass: bool = False  # a round's steps: one pass over D_s, at most the plan's; else the plan's
    skip_teacher_contrast: bool = False  # leave L^T out: it trains a head that nothing else uses
    # Ablations: Tables 2 and 4, and experiments of ours
    select: Literal["dynamic", "teacher", "student", "random"] = "dynamic"  # who decides (Table 2)
    thresholds: Literal["class", "one"] = "class"  # T_k of each class (paper), or V_th for all, an experiment of ours
    pool_share: PositiveShare = 1.0  # part of the web images that may be selected, drawn once (Table 4)
    share_head: bool = True  # S keeps T's classifier (Table 2: no)
    labels: Literal["soft", "onehot"] = "soft"  # what S's own classifier learns where it is not shared
    label_weight: float = 1.0  # weight of that loss beside the alignment
    label_temperature: Positive = 4.0  # its τ, for soft labels
    mdcl: Literal["paper", "cross", "none"] = "paper"  # the contrast: per network, between the networks, or none
    perturb: Literal["mix", "ordinary", "mixup"] = "mix"  # MixDistribution; Table 2: another crop and mirror, or mixup
    # What it costs
    block: Count = 512  # images per forward pass of a selection
    cache_gib: NotNegative = 4.0  # T's probabilities are kept in host memory up to so many GiB, else computed each time

    default_plan: ClassVar[Plan] = Plan(
        rounds=240,
        steps=782,
        batch_size=64,
        lr=0.05,
        weight_decay=5e-4,
        schedule="step",
        milestones=(150, 180, 210),
    )

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {
            **SELECTION_MEASURES,
            "threshold/low": Measure("threshold of the rarest predicted class"),
            "student_share": Measure("weight of the student's predictions, α(t)"),
        }
    )

    def needs(self) -> frozenset[Need]:
        """Web images, and two linear classifiers."""
        return frozenset({Need.WEB, Need.HEAD, Need.SAME_HEAD})

    def period(self) -> int:
        """Rounds with a selection come back."""
        return self.select_every

    def fit(self, teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> nn.Module:
        """Line 1: where the features differ in width, a projector that stays in S; new weights are PyTorch's."""
        find_projector = projection if self.share_head else feature_projection
        projector = find_projector(teacher, student, image_size)
        return student if projector is None else widen(student, image_size, **projector)

    def views(self, task: Task, state: KD3State | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """What was selected and what was not, how many of each class, and how both look to T."""
        return {} if state is None else selection_views(task, state.chosen, state.predicted, real)

    def setup(self, task: Task, plan: Plan) -> KD3State:
        """Line 1."""
        if self.mdcl != "none" and plan.batch_size < 2:
            raise UserError(
                f"KD3 needs plan.batch_size of at least 2 images to tell apart, got {plan.batch_size}; "
                'raise it, or set mdcl="none"'
            )
        student_head, teacher_head = _heads(self, task)
        none = torch.zeros(0, dtype=torch.int64, device=task.runtime.device)
        state = KD3State(own_rows(task, self.pool_share), none, none)
        if self.share_head:
            copy_head(teacher_head, student_head)
            parts = [name for name, _ in student_head.named_parameters()]
            state.fixed_parameters = tuple(f"{task.student.head_name}.{name}" for name in parts)
        if self.mdcl != "none":
            state.joint["student"] = contrast_head(student_head.in_features, self.head_width)
        if self.mdcl == "cross" or (self.mdcl == "paper" and not self.skip_teacher_contrast):
            state.joint["teacher"] = contrast_head(teacher_head.in_features, self.head_width)
        return state

    def synthesize(self, task: Task, state: KD3State, clock: Clock) -> Metrics:
        """Line 3, in every ``select_every``-th round."""
        t = max(clock.round - clock.plan.warmup, 0)
        if clock.warmup or ((t % self.select_every or clock.turn) and len(state.chosen)):
            return {}
        rate = {"teacher": 0.0, "student": 1.0}.get(self.select, mixing_rate(t, clock.plan.rounds))
        judgement = _judge(self, task, state, rate)
        n_k = task.runtime.total(class_counts(judgement.predicted, task.classes))
        T_k = class_thresholds(n_k, self.v_th)
        if self.thresholds == "one":
            T_k = torch.full_like(T_k, self.v_th)
        D_s = select(judgement.confidence, judgement.predicted, T_k).nonzero().flatten()
        if self.select == "random":  # as many, but any
            order = torch.randperm(len(state.rows), generator=task.runtime.generator, device=D_s.device)
            D_s = order[: len(D_s)].sort().values
        _refuse_empty(task, len(D_s), rate)
        state.chosen, state.predicted = state.rows[D_s], judgement.predicted[D_s]
        return {
            **selection_metrics(task, state.predicted),
            "threshold/low": torch.where(T_k > 0, T_k, math.inf).amin(),
            "student_share": rate,
        }

    def student_steps(self, task: Task, state: KD3State, clock: Clock) -> int:
        """The plan's, or as many as show as many images as D_s holds."""
        if not self.one_pass:
            return clock.plan.steps_in_turn
        selected = task.runtime.total(torch.tensor(float(len(state.chosen)), device=task.runtime.device))
        each = clock.plan.batch_size * task.runtime.world * clock.plan.turns
        return max(1, math.ceil(float(selected) / each))

    def batch(self, task: Task, state: KD3State, clock: Clock) -> Batch:
        """Line 5: images of D_s, drawn uniformly with replacement, and their perturbed copies."""
        rng, device = task.runtime.generator, task.runtime.device
        pick = torch.randint(len(state.chosen), (clock.plan.batch_size,), generator=rng, device=device)
        rows = state.chosen[pick]
        pixels = web_of(task).take(rows).to(device)
        x = as_images(crop_flip(pixels, rng, self.pad, self.flip))
        extra = None if self.mdcl == "none" else {"perturbed": _perturb(self, x, pixels, rng)}  # may leave [0, 1]
        return Batch(x, state.predicted[pick], rows, extra)

    def loss(self, task: Task, state: KD3State, batch: Batch) -> Scalar:
        """Line 6."""
        T, S, x = task.teacher, task.student, batch.images
        with torch.no_grad():
            t = T(x)
        s = S(x)
        w = agreement_weight(s.logits, t.logits)  # eq. 9
        loss = weighted_feature_alignment(s.features, t.features, w, self.alignment)  # eq. 10
        if not self.share_head:
            loss = loss + self.label_weight * _label_loss(self, s, t)
        if self.mdcl == "none":
            return loss
        if batch.extra is None or "perturbed" not in batch.extra:
            raise UserError(
                "KD3's contrast needs batches with a second view of every image, which only KD3 makes, got one view; "
                'set mdcl="none"'
            )
        B_ref = len(x) if self.reference_batch is None else self.reference_batch
        return loss + self.alpha * B_ref * contrast(self, task, state.joint, s, t, batch.extra["perturbed"])  # eq. 18


def _perturb(method: KD3, x: Images, pixels: Bytes, rng: torch.Generator) -> Images:
    """The second view of ``x``, which is ``pixels`` cropped and mirrored."""
    if method.perturb == "mix":
        return draw_mix_distribution(x, method.delta, rng)
    if method.perturb == "mixup":
        return draw_mixup(x, method.delta, rng)
    return as_images(crop_flip(pixels, rng, method.pad, method.flip))


def contrast(method: KD3, task: Task, heads: nn.ModuleDict, s: Readout, t: Readout, perturbed: Tensor) -> Scalar:
    """L_mdcl per image (eqs. 13 to 17), or, with ``mdcl="cross"``, between the networks, both ways."""
    z_s, z_s2 = heads["student"](s.features), heads["student"](task.student(perturbed).features)
    if "teacher" not in heads:
        return distribution_contrast(z_s, z_s2, method.temperature, "mean")
    with torch.no_grad():
        features = task.teacher(perturbed).features
    z_t, z_t2 = heads["teacher"](t.features), heads["teacher"](features)
    pairs = ((z_s, z_t2), (z_s2, z_t)) if method.mdcl == "cross" else ((z_s, z_s2), (z_t, z_t2))
    first, second = (distribution_contrast(a, b, method.temperature, "mean") for a, b in pairs)
    return first + second


class Predictions(NamedTuple):
    """y_i = argmax c_i and p_i = max c_i, of every row that may be selected."""

    predicted: Labels
    confidence: Tensor


@torch.no_grad()
def _judge(method: KD3, task: Task, state: KD3State, rate: float) -> Predictions:
    """Equation 3 over the whole pool, block by block. T's answers never change, so they are kept while they fit."""
    n, device = len(state.rows), task.runtime.device
    fits = n * task.classes * 4 <= method.cache_gib * 2**30
    stored_probs, fresh = state.teacher.value, []
    predicted = torch.empty(n, dtype=torch.int64, device=device)
    confidence = torch.empty(n, device=device)
    for part, x in read_blocks(task, state.rows, method.block):
        p_s = torch.softmax(task.student(x).logits, dim=1)
        if stored_probs is None:
            p_t = torch.softmax(task.teacher(x).logits, dim=1)
            fresh += [p_t.cpu()] if fits else []
        else:
            p_t = stored_probs[part].to(device)
        confidence[part], predicted[part] = combine(p_t, p_s, rate).max(dim=1)
    if fresh:
        state.teacher.value = torch.cat(fresh)
    return Predictions(predicted, confidence)


def _refuse_empty(task: Task, count: int, rate: float) -> None:
    """All processes stop together when one of them has nothing to train on."""
    empty = task.runtime.total(torch.tensor(float(count == 0), device=task.runtime.device))
    if bool(empty > 0):
        raise UserError(
            f"KD3 needs some web images that it is sure about, got none with the student's share at {rate:.2f}; "
            "lower v_th, give more or closer web images, or check that mean and std are the teacher's"
        )


def _label_loss(method: KD3, s: Readout, t: Readout) -> Scalar:
    """What a classifier of the student's own learns: T's class, or T's softened prediction."""
    if method.labels == "onehot":
        return cross_entropy(s.logits, t.logits.argmax(dim=1))
    return knowledge_distillation(t.logits, s.logits, method.label_temperature)


def _heads(method: KD3, task: Task) -> tuple[nn.Linear, nn.Linear]:
    """Both classifiers, of equal width, and of equal shape where they are to be one."""
    student_head, teacher_head = task.student.head, task.teacher.head
    if student_head is None or teacher_head is None:
        raise RuntimeError("KD3 needs two linear classifiers; the driver checks that before setup")
    if method.share_head:
        _check_shareable(student_head, teacher_head)
    elif student_head.in_features != teacher_head.in_features:
        raise UserError(
            f"KD3 needs a student whose classifier reads {teacher_head.in_features} features like the teacher's, got "
            f"{student_head.in_features}; pass it through KD3.fit first"
        )
    return student_head, teacher_head


def _check_shareable(student_head: nn.Linear, teacher_head: nn.Linear) -> None:
    """The weights of one classifier fit into the other."""
    check_outputs(teacher_head, student_head)
    biased = [head.bias is not None for head in (student_head, teacher_head)]
    if student_head.in_features != teacher_head.in_features or biased[0] != biased[1]:
        raise UserError(
            f"KD3 needs a student whose classifier reads {teacher_head.in_features} features"
            f"{_bias_words(teacher_head)} like the teacher's, "
            f"got {student_head.in_features}{_bias_words(student_head)}; pass it through dfkd.share_head first"
        )


def _bias_words(head: nn.Linear) -> str:
    return " with a bias" if head.bias is not None else " without a bias"
