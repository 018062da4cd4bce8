"""Spaceship-Net: Data-Free Knowledge Distillation via Feature Exchange and Activation Region Constraint.

Shikang Yu, Jiachen Chen, Hu Han, Shuqiang Jiang. CVPR 2023.

A generator G is inverted against the teacher, but what is stored is not its images: it is what three of its layers
(the taps) computed. The student's images are decoded by the rest of G from stored features, of which two samples
exchange half the channels (CFE), so there are far more of them than were optimised. CFE also makes noise; so the
student must not only predict what the teacher predicts, but look where it looks (mSARC).

The paper's algorithm and this file:

    1  initialise G; three empty feature pools                ``setup``
    2  for each of E epochs:                                  the driver's rounds
    3      draw z and labels y; a new optimiser for G         ``synthesize``
    4      for g steps: x = G(z); update G on λ_cls CE + λ_BN L_BN (eq. 2)
    5      store what the taps saw at the best step
    6      for each student step:                             the driver's student steps
    7          choose a tap i; draw a batch F of its pool     ``batch``
    8          with probability p exchange channels of F
    9          x = G_{i+1...m}(F), with the current G
    10         update S on λ_KL L_KL + λ_mSARC L_mSARC (eq. 3) ``loss``
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.data.pool import Pool
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Betas, Count, Positive, Several, Share, Whole
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.stages import equal_stages
from dfkd.engine.views import Grid, View
from dfkd.errors import UserError
from dfkd.losses.divergence import cross_entropy, knowledge_distillation
from dfkd.losses.regions import Regions, attention_transfer, fitnets, msarc, regions
from dfkd.losses.statistics import moment_distance
from dfkd.nets.generators import ConvGenerator
from dfkd.nets.initialise import initialise
from dfkd.ops.augment import crop_flip
from dfkd.ops.distances import within_class_distance
from dfkd.ops.exchange import draw_cutmix, draw_mixup, exchange_channels
from dfkd.ops.labels import balanced_labels, uniform_labels
from dfkd.ops.pixels import as_bytes
from dfkd.types import Batch, Bytes, Images, Labels, Logits, Readout, Scalar

__all__ = ["SpaceshipNet", "SpaceshipState", "pool_bytes"]

SHOWN_PAIRS = 8  # columns of the picture of exchanges


@dataclass
class SpaceshipState(State):
    """What Spaceship-Net remembers. ``choices`` are this round's draws for every student step: tap, and mix or not."""

    pool: Pool  # columns tap0, tap1, tap2 (float16) and labels
    G: ConvGenerator
    choices: list[tuple[int, bool]] = field(default_factory=list)


@final
@dataclass(frozen=True)
class SpaceshipNet(Method[SpaceshipState]):
    """Hyper-parameters of Spaceship-Net; defaults are the authors' CIFAR-10 code. The paper's symbol follows each."""

    # The paper's
    steps: Count = 200  # generator steps per round
    synthesis_batch: Several = 256  # samples per round and process
    lr: Positive = 1e-3  # Adam's rate for G, a new optimiser per round
    betas: Betas = (0.5, 0.999)
    lambda_cls: float = 0.5  # λ_cls
    lambda_bn: float = 1.0  # λ_BN
    width: Count = 256  # length of z
    channels: Count = 64  # ngf, channels of G's last block
    p: Share = 0.7  # p, probability per batch of exchanging or mixing (code)
    fraction: Share = 0.5  # share of the channels that are exchanged
    lambda_kl: float = 1.0  # λ_KL
    lambda_cam: float = 1.0  # λ_mSARC of the last map, all classes
    lambda_gradcam: float = 1.0  # λ_mSARC of the stages, the teacher's class
    temperature: Positive = 30.0  # τ
    pad: Whole = 4  # random crop, of G's images and of the student's
    flip: bool = True  # random mirror, likewise
    # What only the authors' code says
    labels: Literal["balanced", "uniform", "fixed"] = "balanced"  # y (paper: uniform; code: fixed, 0 to K-1 repeated)
    keep: Literal["best", "last"] = "best"  # which step's features are stored (code: best)
    first_bn: float = 1.0  # factor of the first BatchNorm layer within L_BN (code)
    init: Literal["kaiming", "torch"] = "kaiming"  # of G (code: Kaiming; BatchNorm N(1, 0.02))
    init_student: bool = False  # Xavier-normal weights, gain √2, in S's trainable layers (code)
    pairs: Literal["complementary", "independent"] = "complementary"  # independent: each row its own channels (code)
    kl_reduction: Literal["element_mean", "batchmean"] = "element_mean"  # code: a mean over images and classes
    gradcam_last: bool = True  # Grad-CAM at the last stage too (code: ResNet yes, its R2 variant no)
    # Ablations: Table 3's rows
    diversity: Literal["cfe", "mixup", "cutmix", "none"] = "cfe"  # how the student's images are varied
    mixing: Literal["image", "batch"] = "image"  # mixing ratio per image, or per batch and without crop (code)
    mix_alpha: Positive = 1.0  # of the Beta distribution of mixup's and CutMix's shares
    constraint: Literal["msarc", "at", "fitnets", "none"] = "msarc"  # what constrains the student's maps
    lambda_at: float = 1.0  # of constraint="at", summed over stages
    lambda_fitnets: float = 1.0  # of constraint="fitnets", summed over stages
    # What is stored, and where
    taps: tuple[int, ...] = (0, 1, 2)  # which layers of G are stored; one is chosen per student step
    memory: Count | None = None  # samples kept, the newest; None: all
    limit_bytes: int | None = None  # above it the pool is memory-mapped; None: 60 % of the device's free memory

    default_plan: ClassVar[Plan] = Plan(rounds=200, steps=2000, batch_size=256, lr=0.1, weight_decay=1e-4)

    def check_values(self) -> None:
        """Taps that exist, each once."""
        if not self.taps or not set(self.taps) <= {0, 1, 2} or len(set(self.taps)) < len(self.taps):
            raise UserError(f"SpaceshipNet needs different taps among 0, 1 and 2, got {self.taps}; for example (0, 2)")

    def views(self, task: Task, state: SpaceshipState | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """Stored samples, their partners, and what comes of an exchange at each tap (Figure 2b)."""
        return {} if state is None else {"exchange": lambda: _exchange_view(self, task, state)}

    def needs(self) -> frozenset[Need]:
        """Two doublings; BN statistics unless their weight is 0; stages and heads where the constraint reads them."""
        needs = {Need.GRADIENT, Need.sides_of(4)}
        if self.lambda_bn != 0:
            needs.add(Need.BN)
        if self.constraint != "none":
            needs.add(Need.STAGES)
        if self.constraint == "msarc":
            needs |= {Need.HEAD, Need.SAME_HEAD}
        return frozenset(needs)

    def setup(self, task: Task, plan: Plan) -> SpaceshipState:
        """Line 1; checks the stages, and that the features will fit somewhere."""
        G = ConvGenerator(self.width, task.image_shape, self.channels)
        if self.init == "kaiming":
            initialise(G, nn.init.kaiming_normal_)
        if self.init_student:
            initialise(task.student.net, lambda weight: nn.init.xavier_normal_(weight, gain=math.sqrt(2)))
        state = SpaceshipState(_pool(self, task, plan), task.runtime.place(G))  # type: ignore[arg-type]
        if self.constraint != "none":
            state.joint = _check_stages(self, task)
        return state

    def synthesize(self, task: Task, state: SpaceshipState, clock: Clock) -> Metrics:
        """Lines 3 to 5, and the choices of lines 7 and 8 for the whole round: the device is asked once."""
        T, G, rng, device = task.teacher, state.G, task.runtime.generator, task.runtime.device
        make, step = task.runtime.compile(generate), task.runtime.compile(objective)
        z = torch.randn(self.synthesis_batch, self.width, generator=rng, device=device)  # line 3
        y = _labels(self, task)
        optimizer = Adam(G.parameters(), lr=self.lr, betas=self.betas, fused=True)
        best = BestFeatures(torch.full((), torch.inf, device=device), ())
        G.train()
        for _ in range(self.steps):  # line 4
            with task.runtime.autocast():
                taps, x = make(G, z)
            out = step(self, T, crop_flip(x.float(), rng, self.pad, self.flip), y)
            best = keep_features(best, out.loss, [taps[i] for i in self.taps], self.keep)
            task.runtime.step(out.loss, optimizer)
        G.eval()
        task.runtime.level(G)
        columns = {f"tap{i}": value for i, value in zip(self.taps, best.features, strict=True)}
        state.pool.add(**columns, labels=y)  # line 5
        state.choices = _choose(self, clock.plan.steps, rng)
        return {
            "loss/generator": out.loss.detach(),
            "loss/class": out.cls.detach(),
            "loss/statistics": out.bn.detach(),
            "class_entropy": class_entropy(out.logits),
            **within_class_distance(x.float(), y, task.classes),
        }

    def batch(self, task: Task, state: SpaceshipState, clock: Clock) -> Batch:
        """Lines 7 to 9. Labels are those of the rows drawn; the student's loss does not use them."""
        rng = task.runtime.generator
        tap, mixed = state.choices[clock.step]
        rows = state.pool.draw(clock.plan.batch_size, rng, [f"tap{tap}", "labels"])  # line 7
        features = rows[f"tap{tap}"]
        if mixed and self.diversity == "cfe":
            features = exchange_channels(features, self.fraction, rng, self.pairs)  # line 8, in half the bytes
        with task.runtime.autocast():
            x = task.runtime.compile(decode)(state.G, features, tap).float()  # line 9
        if mixed and self.diversity in ("mixup", "cutmix"):
            mix = draw_mixup if self.diversity == "mixup" else draw_cutmix
            x = mix(x, self.mix_alpha, rng, together=self.mixing == "batch")
            if self.mixing == "batch":
                return Batch(x, rows["labels"])
        return Batch(crop_flip(x, rng, self.pad, self.flip), rows["labels"])

    def loss(self, task: Task, state: SpaceshipState, batch: Batch) -> Scalar:
        """Line 10, eq. 3."""
        T, S, maps = task.teacher, task.student, self.constraint != "none"
        x = batch.images
        t = T(_with_graph(x, S) if self.constraint == "msarc" else x, maps=maps)
        s = S(x, maps=maps)
        kl = knowledge_distillation(t.logits.detach(), s.logits, self.temperature, self.kl_reduction)
        loss = self.lambda_kl * kl
        if self.constraint == "msarc":
            y = t.logits.detach().argmax(dim=1)
            student_regions, teacher_regions = _regions(self, s, S, y), _regions(self, t, T, y)
            return loss + msarc(student_regions, teacher_regions, self.lambda_cam, self.lambda_gradcam)
        for i, (a, b) in enumerate(zip(s.maps, t.maps, strict=True)):
            if self.constraint == "at":
                loss = loss + self.lambda_at * attention_transfer(a.float(), b.detach().float())
            elif self.constraint == "fitnets":
                loss = loss + self.lambda_fitnets * fitnets(state.joint[f"stage{i}"](a.float()), b.float())
        return loss


class Parts(NamedTuple):
    """The terms of eq. 2, unweighted, and the teacher's logits."""

    loss: Scalar
    cls: Scalar
    bn: Scalar
    logits: Logits


class BestFeatures(NamedTuple):
    """The lowest loss so far and the features that had it."""

    loss: Scalar
    features: tuple[Tensor, ...]


def generate(G: ConvGenerator, z: Tensor) -> tuple[tuple[Tensor, ...], Images]:
    """What the taps see of ``z``, and the image; line 4 compiles it apart from the objective: a crop lies between."""
    taps = G.features(z)
    return taps, G.decode(taps[-1], G.taps - 1)


def decode(G: ConvGenerator, features: Tensor, tap: int) -> Images:
    """Line 9. Every tap is a graph of its own."""
    return G.decode(features, tap)


def objective(method: SpaceshipNet, T: Probe, x: Images, y: Labels) -> Parts:
    """Eq. 2, ``L_G = λ_cls CE(T(x), y) + λ_BN L_BN``."""
    t, _, _, stats, stored, *_ = T(x, stats=True)
    cls = cross_entropy(t, y)
    bn = t.new_zeros(())
    if stats:
        bn = moment_distance(stats, stored)
        if method.first_bn != 1:
            bn = bn + (method.first_bn - 1) * moment_distance(stats[:1], stored[:1])
    return Parts(method.lambda_cls * cls + method.lambda_bn * bn, cls, bn, t)


def keep_features(
    best: BestFeatures, loss: Scalar, features: Sequence[Tensor], keep: Literal["best", "last"]
) -> BestFeatures:
    """``best``, or these features (as float16) if their loss is lower or the last step counts."""
    new = tuple(value.detach().half() for value in features)
    loss = torch.nan_to_num(loss.detach(), nan=torch.inf)
    if keep == "last" or not best.features:
        return BestFeatures(loss, new)
    better = loss < best.loss
    lower = tuple(torch.where(better, a, b) for a, b in zip(new, best.features, strict=True))
    return BestFeatures(torch.where(better, loss, best.loss), lower)


def pool_bytes(method: SpaceshipNet, image_shape: tuple[int, int, int], plan: Plan) -> int:
    """Bytes of a full feature pool, per process: 213 kB a sample at 32 x 32 with the default channels and taps."""
    rows = method.synthesis_batch * plan.total * plan.turns
    rows = min(rows, method.memory or rows)
    return rows * (8 + 2 * sum(math.prod(shape) for shape in _tap_shapes(method, image_shape)))


def _tap_shapes(method: SpaceshipNet, image_shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    _, h, w = image_shape
    c = method.channels
    shapes = ((2 * c, h // 4, w // 4), (2 * c, h // 2, w // 2), (c, h, w))
    return [shapes[i] for i in method.taps]


def _pool(method: SpaceshipNet, task: Task, plan: Plan) -> Pool:
    """The pool, on the device where it fits, else memory-mapped."""
    samples = method.synthesis_batch * plan.total * plan.turns
    capacity = min(samples, method.memory or samples)
    shapes = _tap_shapes(method, task.image_shape)
    columns = {f"tap{i}": (shape, torch.float16) for i, shape in zip(method.taps, shapes, strict=True)}
    return Pool(capacity, {**columns, "labels": ((), torch.int64)}, task.runtime.device, method.limit_bytes)


def _check_stages(method: SpaceshipNet, task: Task) -> nn.ModuleDict:
    """Refuse stages that cannot be compared; returns FitNets' regressors, from the student's channels."""
    teacher_maps, student_maps = equal_stages(task, "SpaceshipNet", pooled=method.constraint == "msarc")
    if method.constraint != "fitnets":
        return nn.ModuleDict()
    pairs = enumerate(zip(student_maps, teacher_maps, strict=True))
    return nn.ModuleDict({f"stage{i}": nn.Conv2d(a.shape[1], b.shape[1], 1) for i, (a, b) in pairs})


def _labels(method: SpaceshipNet, task: Task) -> Labels:
    rng, device, n = task.runtime.generator, task.runtime.device, method.synthesis_batch
    if method.labels == "fixed":
        return torch.arange(n, device=device) % task.classes
    return (balanced_labels if method.labels == "balanced" else uniform_labels)(n, task.classes, rng, device)


def _choose(method: SpaceshipNet, steps: int, generator: torch.Generator) -> list[tuple[int, bool]]:
    """For every student step of a round: a uniform tap, and whether to mix. One wait for the device."""
    taps = torch.randint(len(method.taps), (steps,), generator=generator, device=generator.device)
    mixed = torch.rand(steps, generator=generator, device=generator.device) < method.p
    return [(method.taps[i], bool(m)) for i, m in torch.stack([taps, mixed.long()], dim=1).tolist()]


def _with_graph(images: Images, S: Probe) -> Images:
    """The same images, hanging on a parameter that is being trained, so that the teacher's maps can be differentiated.

    Asking the images themselves for gradients cannot be compiled. Nothing flows back: what is read is detached.
    """
    anchor = next(parameter for parameter in S.parameters() if parameter.requires_grad)
    return images + 0 * anchor.flatten()[0]


def _regions(method: SpaceshipNet, out: Readout, net: Probe, y: Labels) -> Regions:
    stages = out.maps if method.gradcam_last else out.maps[:-1]
    return regions(out.logits, out.maps[-1], _weights(net), stages, y)


def _weights(net: Probe) -> Tensor:
    if net.class_weights is None:
        raise RuntimeError("this constraint needs linear heads; the driver checks that before setup")
    return net.class_weights


@torch.no_grad()
def _exchange_view(method: SpaceshipNet, task: Task, state: SpaceshipState) -> Grid:
    """Pairs of stored samples and the first of the two images that their exchange gives, decoded by the present G."""
    if not len(state.pool):
        raise UserError("pictures of an exchange need stored samples, got none; look at a run that has made some")
    rng, G = task.runtime.generator, state.G.eval()
    columns, parts, names = [f"tap{tap}" for tap in method.taps], [], []
    rows = state.pool.draw(2 * SHOWN_PAIRS, rng, columns)
    for tap, column in zip(method.taps, columns, strict=True):
        features = rows[column]
        mixed = exchange_channels(features, method.fraction, rng, method.pairs)
        for word, maps in (("sample", features), ("partner", features.flip(0)), ("exchange", mixed)):
            parts.append(decode(G, maps, tap)[:SHOWN_PAIRS])
            names.append(f"{word} (tap {tap})")
    return Grid(
        f"Stored samples, their partners, and the images after {method.fraction:.0%} of the channels were exchanged.",
        "Images in rows: samples, partners and their mixtures, for each tap",
        as_bytes(torch.cat(parts).float()).cpu(),
        torch.arange(len(parts)).repeat_interleave(SHOWN_PAIRS),
        SHOWN_PAIRS,
        names,
    )
