"""NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation.

Minh-Tuan Tran, Trung Le, Xuan-May Le, Mehrtash Harandi, Quan Hung Tran, Dinh Phung. CVPR 2024.

A generator G is fed the constant text embedding e_y of a class instead of noise; randomness lives in a noisy layer Z,
a linear layer drawn anew for every batch and then trained with G for a few tens of steps.

The paper's algorithm box and this file:

    1  P <- embeddings of the K class names          the task's ``text``, encoded once before the run
    2  M <- {}                                       ``setup``
    3  for each of E epochs:                         the driver's rounds
    4      for each of I iterations:                 ``synthesize``
    5          re-initialise Z; draw y; e <- P[y]
    6          for g steps: x = G(Z(e)); update G and Z on L_Z (eq. 5)
    7          M <- M + {x}
    8      for each of S iterations:                 the driver's student steps
    9          draw x from M                         ``batch``
    10         update S on KL(T(x), S(x)) (eq. 6)    ``loss``

What only the authors' code has, each its own field: warm-up batches, renewal of G every ten rounds, the momentum of
the BN statistics, the decision mask, keeping the images of the best step, balanced labels, several noisy layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.data.pool import Pool
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Betas, Count, Positive, Several, Share, Whole
from dfkd.engine.measures import Measure
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.views import Bars, Cloud, View
from dfkd.errors import UserError
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.losses.statistics import blend_moments, moment_distance, update_moments
from dfkd.nets.generators import ConvGenerator, DeepGenerator, NoisyLayer, redraw
from dfkd.ops.augment import crop_flip, draw_boxes, resize_boxes, roll_flip
from dfkd.ops.distances import within_class_distance
from dfkd.ops.keep_best import keep_best, no_best
from dfkd.ops.labels import balanced_labels, uniform_labels
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Batch, Bytes, Images, Labels, Logits, Moments, Scalar

__all__ = ["NAYER", "NayerState"]

MOST_CLASSES = 20  # colours of a cloud
CLASS_LOSS_REACHED = 0.1  # a batch counts as classified when its cross-entropy is below (Table 4)


@dataclass
class NayerState(State):
    """What NAYER remembers."""

    pool: Pool  # M
    G: nn.Module
    Z: nn.Module  # embeddings to codes
    moments: list[Moments] = field(default_factory=list)  # running average of the batches' BN statistics
    codes: Tensor = field(default_factory=lambda: torch.empty(0))  # Z(e) of the newest batch, as its steps left Z
    born: int = 0  # round in which G was last made anew


@final
@dataclass(frozen=True)
class NAYER(Method[NayerState]):
    """Hyper-parameters of NAYER; the defaults are the authors' CIFAR-10 setting. The paper's symbol follows each."""

    # The paper's
    steps: Count = 30  # g, generator steps per batch (CIFAR-100: 40, Tiny-ImageNet: 60)
    synthesis_batch: Several = 400  # images per batch and process
    batches: Count = 2  # I, batches per round (Tiny-ImageNet: 4)
    lr: Positive = 4e-3  # Adam's rate for G and Z, a new optimiser per batch
    betas: Betas = (0.5, 0.999)
    alpha_cls: float = 0.5  # α_cls
    alpha_adv: float = 1.33  # α_adv
    alpha_bn: float = 10.0  # α_bn
    width: Count = 1000  # r, length of a code; noise of code="z" and "concat" has this length too
    channels: Count = 64  # ngf, channels of G's last block
    generator: Literal["auto", "conv", "deep"] = "auto"  # auto: the deep one from 128 pixels on, where it fits
    temperature: Positive = 20.0  # τ of the student's KL
    memory: Count | None = None  # |M|, the newest images kept; None: all
    augmentation: Literal["crop", "imagenet"] = "crop"  # how images are augmented (code: "imagenet" on ImageNet)
    pad: Whole = 4  # random crop, of G's images and of the student's
    flip: bool = True  # random mirror, likewise
    # What only the authors' code says
    warmup_batches: Count = 10  # batches per warm-up round (code)
    momentum: Share = 0.9  # m, of the BN statistics over batches (code); 0 is the paper
    mask: bool = True  # adversarial term only where T and S agree (code)
    keep: Literal["best", "last"] = "best"  # which step's images enter M (code: best; paper: last)
    renew: Count | None = 10  # rounds between re-creations of G (code); None: never, as in the paper
    labels: Literal["balanced", "uniform", "permuted"] = "balanced"  # ŷ (paper: uniform; ImageNet: permuted)
    student_trains: bool = False  # the code's slip: S in train mode from a round's second batch on
    # Ablations: Table 4's rows
    code: Literal["nl", "lte", "onehot", "z", "concat", "sum"] = "nl"  # what feeds G: Table 4's rows
    beta: float = 1.0  # β, weight of the noise for code="sum"
    text_scale: float = 1.0  # factor of e for "lte", "sum", "concat" (norm of MiniLM's is 1, CLIP's 10.7)
    redraw: bool = True  # re-initialise Z for every batch
    group: Literal["classes", "one", "batch"] = "classes"  # K-to-1, 1-to-1, or one noisy layer for a whole batch
    norm: bool = True  # BatchNorm in the noisy layer

    default_plan: ClassVar[Plan] = Plan(
        rounds=300, warmup=20, steps=400, batch_size=512, lr=0.2, weight_decay=1e-4, schedule="cosine", lr_min=2e-4
    )

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {"steps_to_class": Measure("generator steps until cross-entropy < 0.1", meaning="all steps if it never is")}
    )

    def views(self, task: Task, state: NayerState | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """What feeds G (Figure 3): the newest codes by class, and how much G listens to text and to noise."""
        if state is None:
            return {}
        codes = {"codes": lambda: _codes_view(task, state)} if self.code == "nl" else {}
        weights = {"input-weights": lambda: _weights_view(task, state)} if self.code == "concat" else {}
        return {**codes, **weights}

    def needs(self) -> frozenset[Need]:
        """BN statistics unless their weight is 0, text unless the code does without, sides that G can double up to."""
        needs = {Need.GRADIENT, Need.sides_of(16 if self.generator == "deep" else 4)}
        if self.alpha_bn != 0:
            needs.add(Need.BN)
        if self.code not in ("onehot", "z"):
            needs.add(Need.TEXT)
        return frozenset(needs)

    def setup(self, task: Task, plan: Plan) -> NayerState:
        """Line 2, and the networks."""
        Z, length = _code(self, task)
        G = _generator_class(self, task.image_shape)(length, task.image_shape, self.channels)
        capacity = self.synthesis_batch * plan.turns * (plan.warmup * self.warmup_batches + plan.rounds * self.batches)
        columns = {"images": (task.image_shape, torch.uint8), "labels": ((), torch.int64)}
        M = Pool(capacity if self.memory is None else min(capacity, self.memory), columns, task.runtime.device)
        return NayerState(pool=M, G=task.runtime.place(G), Z=task.runtime.place(Z))

    def synthesize(self, task: Task, state: NayerState, clock: Clock) -> Metrics:
        """Lines 4 to 7."""
        T, S, G, Z, M, rng = task.teacher, task.student, state.G, state.Z, state.pool, task.runtime.generator
        make, step = task.runtime.compile(generate), task.runtime.compile(objective)
        if self.renew is not None and clock.round % self.renew == 0 and clock.turn == 0:
            redraw(nn.ModuleList([G, Z]))
            state.born = clock.round
        G.train()
        Z.train()
        hit_steps = []
        order = torch.randperm(task.classes, generator=rng, device=rng.device) if self.labels == "permuted" else None
        for i in range(self.warmup_batches if clock.warmup else self.batches):
            if self.redraw and isinstance(Z, NoisyLayer):
                Z.redraw()  # line 5
            S.train(self.student_trains and i > 0 and not clock.warmup)
            y = _labels(self, task, i, order)
            e = _embed(self, task, y)
            optimizer = Adam([*G.parameters(), *Z.parameters()], lr=self.lr, betas=self.betas, fused=True)
            best = no_best(e.new_zeros(len(y), *task.image_shape))
            hit_step = e.new_tensor(float(self.steps))
            for k in range(self.steps):  # line 6
                with task.runtime.autocast():
                    x = make(G, Z, e).float()
                out = step(self, T, S, _view(self, x, rng), y, state.moments, not clock.warmup)
                best = keep_best(best, out.loss, x)
                hit_step = torch.where(out.cls.detach() < CLASS_LOSS_REACHED, hit_step.clamp(max=k), hit_step)
                task.runtime.step(out.loss, optimizer)
            state.moments = update_moments(state.moments, out.stats, self.momentum)
            images = best.images if self.keep == "best" else x.detach()
            M.add(images=as_bytes(images), labels=y)  # line 7
            hit_steps.append(hit_step)
        S.eval()
        with torch.no_grad():
            state.codes = Z(e)
        return {
            "loss/generator": out.loss.detach(),
            "loss/class": out.cls.detach(),
            "loss/statistics": out.bn.detach(),
            "loss/adversarial": out.adv.detach(),
            "class_entropy": class_entropy(out.logits),
            "steps_to_class": torch.stack(hit_steps).mean(),
            **within_class_distance(images, y, task.classes),
        }

    def batch(self, task: Task, state: NayerState, clock: Clock) -> Batch:
        """Line 9."""
        rows = state.pool.draw(clock.plan.batch_size, task.runtime.generator)
        rng = task.runtime.generator
        if self.augmentation == "imagenet":
            x = as_images(rows["images"])
            parts = resize_boxes(x, draw_boxes(len(x), task.image_shape[1:], rng, (0.08, 1.0)))
            return Batch(crop_flip(parts, rng, 0, self.flip), rows["labels"])
        return Batch(as_images(crop_flip(rows["images"], rng, self.pad, self.flip)), rows["labels"])

    def loss(self, task: Task, state: NayerState, batch: Batch) -> Scalar:
        """Line 10, eq. 6."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        return knowledge_distillation(t, task.student(batch.images).logits, self.temperature)


class Parts(NamedTuple):
    """The terms of eq. 5, unweighted, and what they were computed from."""

    loss: Scalar
    cls: Scalar
    bn: Scalar
    adv: Scalar
    logits: Logits
    stats: tuple[Moments, ...]


def generate(G: nn.Module, Z: nn.Module, e: Tensor) -> Images:
    """``G(Z(e))``; line 6 compiles it apart from the objective, for the random crop lies between the two."""
    images: Images = G(Z(e))
    return images


def objective(
    method: NAYER, T: Probe, S: Probe, x: Images, y: Labels, average: Sequence[Moments], adversarial: bool
) -> Parts:
    """Eq. 5, ``L_Z = α_cls CE(T(x), y) − α_adv KL(T(x) ‖ S(x)) + α_bn L_BN``."""
    t, _, _, stats, stored, *_ = T(x, stats=True)
    zero = t.new_zeros(())
    cls = cross_entropy(t, y)
    moments = blend_moments(stats, average, method.momentum) if average else stats
    bn = moment_distance(moments, stored) if stats else zero
    adv = agreeing_divergence(t, S(x).logits, method.mask) if adversarial else zero
    loss = method.alpha_cls * cls - method.alpha_adv * adv + method.alpha_bn * bn
    return Parts(loss, cls, bn, adv, t, stats)


def _generator_class(method: NAYER, image_shape: tuple[int, int, int]) -> type[ConvGenerator] | type[DeepGenerator]:
    """The one that is named; ``auto`` takes the deep one for large images whose sides it can make."""
    large = all(side >= 128 and side % 16 == 0 for side in image_shape[1:])
    return DeepGenerator if method.generator == "deep" or (method.generator == "auto" and large) else ConvGenerator


def _code(method: NAYER, task: Task) -> tuple[nn.Module, int]:
    """The network between embeddings and G, and the length of its output."""
    d = task.classes if task.text is None else task.text.shape[1]
    if method.code == "nl":
        group = {"classes": task.classes, "one": 1, "batch": method.synthesis_batch}[method.group]
        return NoisyLayer(d, method.width, method.synthesis_batch, group, method.norm), method.width
    lengths = {"lte": d, "sum": d, "onehot": task.classes, "z": method.width, "concat": d + method.width}
    return nn.Identity(), lengths[method.code]


def _labels(method: NAYER, task: Task, i: int, order: Tensor | None) -> Labels:
    """ŷ of this round's i-th batch; ``order`` are the classes as they are taken one after another, all round long."""
    n, rng, device = method.synthesis_batch, task.runtime.generator, task.runtime.device
    if order is not None:
        return order[torch.arange(i * n, (i + 1) * n, device=device) % task.classes]
    return (balanced_labels if method.labels == "balanced" else uniform_labels)(n, task.classes, rng, device)


def _view(method: NAYER, x: Images, rng: torch.Generator) -> Images:
    """What T and S see of G's images: cropped and mirrored one by one; for ImageNet rolled and mirrored as a batch."""
    if method.augmentation == "crop":
        return crop_flip(x, rng, method.pad, method.flip)
    return crop_flip(roll_flip(x, rng, max(x.shape[2:]) // 8, method.flip), rng, method.pad, flip=False)


def _embed(method: NAYER, task: Task, y: Labels) -> Tensor:
    """What enters Z for these labels: the embedding, or what stands in its place in Table 4."""
    rng, device = task.runtime.generator, task.runtime.device
    if method.code == "onehot":
        return torch.nn.functional.one_hot(y, task.classes).float()
    if method.code == "z":
        return torch.randn(len(y), method.width, generator=rng, device=device)
    if task.text is None:
        raise RuntimeError("this code needs text embeddings; the driver checks that before setup")
    e = task.text[y] * method.text_scale
    if method.code == "concat":
        return torch.cat([e, torch.randn(len(y), method.width, generator=rng, device=device)], dim=1)
    if method.code == "sum":
        return e + method.beta * torch.randn(e.shape, generator=rng, device=device)
    return e


def _codes_view(task: Task, state: NayerState) -> Cloud:
    """Z(e) of the newest batch by class. Its labels are those of the newest images."""
    if not len(state.codes) or task.classes > MOST_CLASSES:
        raise UserError(
            f"codes by class need a batch and at most {MOST_CLASSES} classes, got {len(state.codes)} codes of "
            f"{task.classes} classes; look at a run with fewer"
        )
    labels = state.pool.newest(len(state.codes))["labels"]
    codes = state.codes[len(state.codes) - len(labels) :]  # a small memory holds fewer images than the batch had
    names = task.names or tuple(map(str, range(task.classes)))
    groups = {name: codes[labels == k].float() for k, name in enumerate(names)}
    return Cloud(
        f"What the noisy layer makes of the class embeddings, by t-SNE: the {len(codes)} newest codes, "
        "one colour for each class.",
        "Points in two dimensions, one colour for each class",
        {name: rows for name, rows in groups.items() if len(rows)},
    )


def _weights_view(task: Task, state: NayerState) -> Bars:
    """Mean magnitude of the weights with which G's first layer reads either part of its input."""
    if task.text is None:
        raise UserError("input weights need text embeddings, got none; give text, or class names")
    weight, d = state.G.project.weight.detach().abs(), task.text.shape[1]  # type: ignore[union-attr, operator]
    heights = {"label text": float(weight[:, :d].mean()), "noise": float(weight[:, d:].mean())}
    return Bars(
        "Mean magnitude of the weights with which the generator reads the label text and the noise beside it.",
        "Two bars, one for the label text and one for the noise",
        heights,
        "mean magnitude of a weight",
        numbers=heights,
    )
