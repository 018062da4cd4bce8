"""CMI: Contrastive Model Inversion for Data-Free Knowledge Distillation.

Gongfan Fang, Jie Song, Xinchao Wang, Chengchao Shen, Xingen Wang, Mingli Song. IJCAI 2021.

Every batch of images comes from a generator with fresh weights, trained for a few hundred steps together with its
latent codes. A contrastive loss in the teacher's features asks each new image to be told apart from the others of its
batch and from those made before, of which a bank keeps the features of two views.

The paper's algorithm and this file:

    1  M <- {}, bank B <- {}, head h                        ``setup``
    2  for each of E epochs:                                the driver's rounds
    3      initialise G; draw z and labels y                ``synthesize``
    4      for g steps: x = G(z); update G, z and h on
    5          α_bn L_bn + α_cls L_cls + α_adv L_adv        ``objective``
    6          + α_cr L_cr, each local view against all global views of the batch and of B     ``contrast``
    7      M <- M + {x}; B <- B + {features of the two views of x}
    8      for each student step: draw x from M             ``batch``
    9          update S on KL(T(x), S(x))                   ``loss``

Warm-up rounds leave the adversarial term out: the authors' "pre-inverted" images.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.data.pool import Pool
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Betas, Count, Positive, Several, Whole
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.losses.contrast import cmi_contrast
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.losses.statistics import moment_distance
from dfkd.nets.generators import ConvGenerator
from dfkd.nets.heads import contrast_mlp
from dfkd.nets.initialise import initialise
from dfkd.ops.augment import crop_flip, draw_boxes, resize_boxes
from dfkd.ops.keep_best import keep_best, no_best
from dfkd.ops.labels import balanced_labels, uniform_labels
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Batch, Features, Images, Labels, Logits, Readout, Scalar

__all__ = ["CMI", "CMIState"]


@dataclass
class CMIState(State):
    """What CMI remembers."""

    pool: Pool  # M
    bank: Pool  # B: the features of an image's local and global view, one after the other, as float16
    G: nn.Module
    h: nn.Module
    head_optimizer: Adam  # of h; it lives as long as h


@final
@dataclass(frozen=True)
class CMI(Method[CMIState]):
    """Hyper-parameters of CMI; the code's name follows each. Defaults: WRN-40-2 to WRN-16-1, CIFAR-10, from scratch."""

    # The loss
    alpha_bn: float = 1.0  # bn
    alpha_cls: float = 1.0  # oh (from pre-inverted images: 0.5)
    alpha_adv: float = 0.5  # adv
    alpha_cr: float = 0.8  # cr, weight of the contrast
    contrast_temperature: Positive = 0.1  # cr_T (0.2 in another script)
    negatives: Count = 4096  # n_neg, bank rows used as negatives in each step, drawn without replacement
    temperature: Positive = 20.0  # τ of the student's KL
    # Generator, head and bank
    steps: Count = 200  # g_steps, generator steps per batch
    synthesis_batch: Several = 256  # images per batch and process
    lr: Positive = 1e-3  # lr_g, Adam's rate for G, z and h
    betas: Betas = (0.5, 0.999)  # of G's and z's optimiser; h has Adam's default
    width: Count = 256  # nz, length of z
    channels: Count = 64  # ngf, channels of G's last block
    bank: Count = 40960  # bank_size, images whose features are kept, the newest
    head_width: Count = 256  # length of h's output
    memory: Count | None = None  # |M|, the newest images kept; None: all
    # The views
    layers: Literal["norms", "stages"] = "norms"  # features contrasted: means of T's BatchNorm inputs, or of its stages
    local_area: tuple[float, float] = (0.25, 1.0)  # smallest and largest share of an image in its local view
    pad: Whole = 4  # random crop, of the global view and of the student's images
    flip: bool = True  # random mirror, of both views and of the student's images
    # What only the authors' code says
    mask: bool = True  # adversarial term only where T and S agree (code)
    labels: Literal["uniform", "balanced"] = "uniform"  # y
    keep: Literal["best", "last"] = "best"  # which step's images enter M
    # Ablations, and our own
    optimise_z: bool = True  # z is trained with G
    batches: Whole = 1  # batches per round; 0: only warm-up rounds make images
    warmup_batches: Count = 1  # batches per warm-up round

    default_plan: ClassVar[Plan] = Plan(rounds=200, steps=400, batch_size=128, lr=0.1, weight_decay=1e-4)

    def check_values(self) -> None:
        """The local view is a part of the image."""
        if len(self.local_area) != 2 or not 0 < self.local_area[0] <= self.local_area[1] <= 1:
            raise UserError(
                f"CMI needs local_area as two shares above 0 and up to 1, got {self.local_area}; for example (0.25, 1)"
            )

    def needs(self) -> frozenset[Need]:
        """Two doublings; BN layers unless their weight is 0, and the layers whose features are contrasted."""
        features = {"norms": Need.BN, "stages": Need.STAGES}[self.layers]
        return frozenset({Need.GRADIENT, Need.sides_of(4), features} | ({Need.BN} if self.alpha_bn != 0 else set()))

    def setup(self, task: Task, plan: Plan) -> CMIState:
        """Line 1, and G, which line 3 fills."""
        device, runtime = task.runtime.device, task.runtime
        capacity = self.synthesis_batch * plan.turns * (plan.warmup * self.warmup_batches + plan.rounds * self.batches)
        if capacity == 0:
            raise UserError("CMI needs rounds that make images, got batches=0 and no warm-up; set plan.warmup")
        columns = {"images": (task.image_shape, torch.uint8), "labels": ((), torch.int64)}
        M = Pool(min(capacity, self.memory or capacity), columns, device)
        with torch.no_grad():
            d = _features(self, _readout(self, task.teacher, torch.zeros(1, *task.image_shape, device=device))).shape[1]
        B = Pool(min(capacity, self.bank), {"features": ((2 * d,), torch.float16)}, device)
        h = runtime.place(contrast_mlp(d, self.head_width))
        G = runtime.place(ConvGenerator(self.width, task.image_shape, self.channels))
        return CMIState(M, B, G, h, Adam(h.parameters(), lr=self.lr, fused=True))

    def synthesize(self, task: Task, state: CMIState, clock: Clock) -> Metrics:
        """Lines 3 to 7."""
        T, S, G, h, M, B = task.teacher, task.student, state.G, state.h, state.pool, state.bank
        rng, device = task.runtime.generator, task.runtime.device
        make, step = task.runtime.compile(generate), task.runtime.compile(objective)
        draw = uniform_labels if self.labels == "uniform" else balanced_labels
        batches = self.warmup_batches if clock.warmup else self.batches
        if batches == 0:
            return {}
        G.train()
        for _ in range(batches):
            initialise(G, lambda weight: nn.init.normal_(weight, 0, 0.02))  # line 3
            z = torch.randn(self.synthesis_batch, self.width, generator=rng, device=device)
            z.requires_grad_(self.optimise_z)
            y = draw(len(z), task.classes, rng, device)
            optimizer = Adam(G.parameters(), lr=self.lr, betas=self.betas, fused=True)
            z_optimizers = [Adam([z], lr=self.lr, betas=self.betas, fused=True)] if self.optimise_z else []
            best = no_best(z.new_zeros(len(y), *task.image_shape))
            best_features = no_best(z.new_zeros(len(y), *B.columns["features"][0]))
            for _ in range(self.steps):  # line 4
                with task.runtime.autocast():
                    x = make(G, z).float()
                out = step(self, T, S, _views(self, x, rng), y, not clock.warmup)  # line 5
                cr = contrast(self, h, out, _negatives(self, B, rng))  # line 6
                loss = out.loss + self.alpha_cr * cr
                features = torch.cat([out.local, out.global_], dim=1)
                best, best_features = keep_best(best, loss, x), keep_best(best_features, loss, features)
                task.runtime.step(loss, optimizer, state.head_optimizer, private=z_optimizers)
            last = self.keep == "last"
            M.add(images=as_bytes(x if last else best.images), labels=y)  # line 7
            B.add(features=(features if last else best_features.images).to(torch.float16))
        return {
            "loss/generator": loss.detach(),
            "loss/class": out.cls.detach(),
            "loss/statistics": out.bn.detach(),
            "loss/adversarial": out.adv.detach(),
            "loss/contrast": cr.detach(),
            "class_entropy": class_entropy(out.logits),
        }

    def batch(self, task: Task, state: CMIState, clock: Clock) -> Batch:
        """Line 8."""
        rows = state.pool.draw(clock.plan.batch_size, task.runtime.generator)
        images = crop_flip(rows["images"], task.runtime.generator, self.pad, self.flip)
        return Batch(as_images(images), rows["labels"])

    def loss(self, task: Task, state: CMIState, batch: Batch) -> Scalar:
        """Line 9."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        return knowledge_distillation(t, task.student(batch.images).logits, self.temperature)


class Views(NamedTuple):
    """Two views of the same images: cropped and mirrored as the student sees them, and a part of each, enlarged."""

    global_: Images
    local: Images


class Parts(NamedTuple):
    """The terms of line 5, unweighted, T's answer to the global view, and the features of both views."""

    loss: Scalar
    cls: Scalar
    bn: Scalar
    adv: Scalar
    logits: Logits
    local: Features
    global_: Features


def generate(G: nn.Module, z: Tensor) -> Images:
    """``G(z)``; compiled apart from the objective, for the random views lie between the two."""
    images: Images = G(z)
    return images


def objective(method: CMI, T: Probe, S: Probe, views: Views, y: Labels, adversarial: bool) -> Parts:
    """Line 5: ``α_bn L_bn + α_cls CE(T(x), y) − α_adv KL(T(x) ‖ S(x))`` on the global view."""
    readout = _readout(method, T, views.global_, stats=True)
    t, zero = readout.logits, readout.logits.new_zeros(())
    cls = cross_entropy(t, y)
    bn = moment_distance(readout.stats, readout.stored) if readout.stats else zero
    adv = agreeing_divergence(t, S(views.global_).logits, method.mask) if adversarial else zero
    loss = method.alpha_bn * bn + method.alpha_cls * cls - method.alpha_adv * adv
    local = _features(method, _readout(method, T, views.local))
    return Parts(loss, cls, bn, adv, t, local, _features(method, readout))


def contrast(method: CMI, h: nn.Module, out: Parts, stored: Tensor) -> Scalar:
    """Line 6: L_cr over the batch and the ``stored`` features (m, 2d) of other images."""
    local, global_ = stored.chunk(2, dim=1)
    rows = h(torch.cat([out.local, local, out.global_, global_]))
    first, second = rows.chunk(2)
    return cmi_contrast(first, second, len(out.local), method.contrast_temperature)


def _views(method: CMI, x: Images, rng: torch.Generator) -> Views:
    """Both views of ``x``, each image by its own draw."""
    global_ = crop_flip(x, rng, method.pad, method.flip)
    boxes = draw_boxes(len(x), (x.shape[2], x.shape[3]), rng, method.local_area)
    return Views(global_, crop_flip(resize_boxes(x, boxes), rng, 0, method.flip))


def _negatives(method: CMI, bank: Pool, rng: torch.Generator) -> Tensor:
    """Features of some other images (m, 2d); none while the bank is empty."""
    rows = torch.randperm(len(bank), generator=rng, device=rng.device)[: method.negatives]
    return bank.take(rows)["features"].float()


def _readout(method: CMI, T: Probe, x: Images, stats: bool = False) -> Readout:
    """What the losses want to know of T's answer."""
    norms = method.layers == "norms"
    return T(x, stats=stats and method.alpha_bn != 0, maps=not norms, means=norms)


def _features(method: CMI, readout: Readout) -> Features:
    """Spatial means of an image, layer after layer (n, d)."""
    means = readout.means if method.layers == "norms" else [m.float().mean(dim=(2, 3)) for m in readout.maps]
    return torch.cat(list(means), dim=1)
