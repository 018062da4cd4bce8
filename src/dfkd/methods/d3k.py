"""D3K: Dynastic Data-Free Knowledge Distillation.

Xiufang Li, Qigong Sun, Licheng Jiao et al. IEEE Transactions on Multimedia, 2023.

Every batch of images comes from a generator of its own: widths and kernel sizes are drawn, weights are fresh. A loss
on perceptual difference hashes (D-Dhash) is meant to drive new images away from those of the batch before.

The paper's Algorithm 1 and this file:

    1  empty image pool, empty hash bank               ``setup``
    2  for each batch:                                 the driver's rounds, ``batches`` in each
    3      draw a subnet from the supernet, initialise ``draw_subnet``, ``SuperNet``
    4      draw z and labels c
    5      for n iterations: x = G(z);
    6          update G on α L_bn + β L_cls + γ L_adv + θ L_Dhash     ``objective``
    7      store x; the bank becomes its codes
    8  for each student step:                          the driver's student steps
    9      draw x from the pool                        ``batch``
    10     update S on KL(T(x), S(x))                  ``loss``

The authors published no code. The box makes all images before it trains the student, which the adversarial term
contradicts (it needs a trained one): here, as in CMI, whose skeleton and weights the paper uses, both alternate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dfkd.data.pool import Pool
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Betas, Count, NotNegative, Positive, Several, Whole
from dfkd.engine.measures import Measure
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.losses.statistics import gaussian_divergence, moment_distance
from dfkd.nets.supernet import SubnetShape, SuperNet, check_ranges, draw_subnet
from dfkd.ops.augment import crop_flip
from dfkd.ops.distances import within_class_distance
from dfkd.ops.hashing import dhash_codes, dhash_loss
from dfkd.ops.keep_best import keep_best, no_best
from dfkd.ops.labels import balanced_labels, uniform_labels
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Batch, Images, Labels, Logits, Scalar

__all__ = ["D3K", "D3KState"]

MOST_GRAPHS = 8  # generator shapes that are compiled: one width and two kernel sizes


@dataclass
class D3KState(State):
    """What D3K remembers. Generators are not among it: they live for one batch."""

    pool: Pool
    bank: Tensor  # codes (m, bits) of the batch before; no rows at first


@final
@dataclass(frozen=True)
class D3K(Method[D3KState]):
    """Hyper-parameters of D3K; the paper's symbol follows each. What the paper leaves open is CMI's."""

    # The paper's
    steps: Count = 200  # n, generator steps per batch
    synthesis_batch: Several = 256  # images per batch and process
    batches: Count = 1  # batches per round
    lr: Positive = 1e-3  # Adam's rate (the paper prints 1e3)
    betas: Betas = (0.5, 0.999)
    alpha: float = 1.0  # α, of L_bn
    beta: float = 1.0  # β, of L_cls
    gamma: float = 0.5  # γ, of L_adv
    theta: float = 1.0  # θ, of L_Dhash
    widths: tuple[int, int] = (16, 256)  # channels of every layer, both ends included
    kernels: tuple[int, ...] = (3, 5)
    temperature: Positive = 20.0  # τ of the student's KL (the paper says 0.5, CMI's contrastive temperature)
    # What the paper leaves open; CMI's value where it has one
    width: Count = 256  # length of z
    init: Literal["normal", "torch"] = "normal"  # N(0, 0.02) as CMI, or PyTorch's default
    bn_eps: NotNegative = 1e-5  # added to both variances of eq. 14
    bn_cap: Positive | None = None  # largest value of L_bn: above it the term is scaled down
    mask: bool = True  # adversarial term only where T and S agree (CMI's code)
    hash_pool: Count = 4  # side of the pixel blocks that are averaged before hashing
    hash_lambda: float = 1.0  # λ, the constant that replaces the derivative of a bit
    labels: Literal["balanced", "uniform"] = "balanced"  # c
    keep: Literal["best", "last"] = "best"  # which step's images are stored
    memory: Count | None = None  # the newest images kept; None: all
    pad: Whole = 4  # random crop, of G's images and of the student's
    flip: bool = True  # random mirror, likewise
    # Other readings of the text, and CMI's latent codes
    resample: Literal["batch", "iteration"] = "batch"  # Algorithm 1, or the text: a slice of a supernet in every step
    bn: Literal["gaussian", "l2"] = "gaussian"  # eq. 14, or DeepInversion's form
    ste: Literal["literal", "difference"] = "literal"  # eq. 13, or both neighbours
    pairing: Literal["all", "index", "random"] = "all"  # which bank codes a new code is compared with
    hash_form: Literal["square", "xor"] = "square"  # −(b − m)² as printed, or −(b + m − 2bm): equal on bits
    optimise_z: bool = False  # CMI trains z too, D3K only the generator

    default_plan: ClassVar[Plan] = Plan(rounds=200, steps=400, batch_size=256, lr=0.1, weight_decay=1e-4)

    def check_values(self) -> None:
        """The ranges of the subnet make sense."""
        check_ranges(self.widths, self.kernels)

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {
            "bank_distance": Measure(
                "distance to the hash bank", meaning="share of bits", level=0.5, level_name="unrelated codes"
            )
        }
    )

    def needs(self) -> frozenset[Need]:
        """Three doublings, and BN statistics unless their weight is 0."""
        return frozenset({Need.GRADIENT, Need.sides_of(8)} | ({Need.BN} if self.alpha != 0 else set()))

    def setup(self, task: Task, plan: Plan) -> D3KState:
        """Line 1."""
        device = task.runtime.device
        capacity = self.synthesis_batch * self.batches * plan.total * plan.turns
        columns = {"images": (task.image_shape, torch.uint8), "labels": ((), torch.int64)}
        _, h, w = task.image_shape
        if (h // self.hash_pool) * (w // self.hash_pool) < 2:
            raise UserError(
                f"D3K needs images of at least two blocks of hash_pool={self.hash_pool} pixels a side, got {h}x{w}; "
                "lower hash_pool"
            )
        codes = dhash_codes(torch.zeros(1, *task.image_shape, device=device), self.hash_pool)
        return D3KState(Pool(min(capacity, self.memory or capacity), columns, device), bank=codes[:0])

    def synthesize(self, task: Task, state: D3KState, clock: Clock) -> Metrics:
        """Lines 2 to 7."""
        T, S, rng, device = task.teacher, task.student, task.runtime.generator, task.runtime.device
        make = task.runtime.compile(generate) if _few_shapes(self) else generate
        step = task.runtime.compile(objective)
        for _ in range(self.batches):
            G = _generator(self, task)  # line 3
            z = torch.randn(self.synthesis_batch, self.width, generator=rng, device=device)  # line 4
            z.requires_grad_(self.optimise_z)
            c = (balanced_labels if self.labels == "balanced" else uniform_labels)(len(z), task.classes, rng, device)
            optimizer = Adam(G.parameters(), lr=self.lr, betas=self.betas, fused=True)
            z_optimizers = [Adam([z], lr=self.lr, betas=self.betas, fused=True)] if self.optimise_z else []
            best = no_best(z.new_zeros(len(z), *task.image_shape))
            for _ in range(self.steps):  # line 5
                shape = draw_subnet(self.widths, self.kernels) if self.resample == "iteration" else None
                with task.runtime.autocast():
                    x = make(G, z, shape).float()
                bank = _bank(self, state.bank, len(x), rng)
                out = step(self, T, S, x, crop_flip(x, rng, self.pad, self.flip), c, bank, not clock.warmup)
                best = keep_best(best, out.loss, x)
                task.runtime.step(out.loss, optimizer, private=z_optimizers)  # line 6
            images = best.images if self.keep == "best" else x.detach()
            state.pool.add(images=as_bytes(images), labels=c)  # line 7
            codes_before, state.bank = state.bank, dhash_codes(images, self.hash_pool)
        return {
            "loss/generator": out.loss.detach(),
            "loss/class": out.cls.detach(),
            "loss/statistics": out.bn.detach(),
            "loss/adversarial": out.adv.detach(),
            "loss/hash": out.hash.detach(),
            "class_entropy": class_entropy(out.logits),
            **within_class_distance(images, c, task.classes),
            **({"bank_distance": -dhash_loss(state.bank, codes_before)} if len(codes_before) else {}),
        }

    def batch(self, task: Task, state: D3KState, clock: Clock) -> Batch:
        """Line 9."""
        rows = state.pool.draw(clock.plan.batch_size, task.runtime.generator)
        images = crop_flip(rows["images"], task.runtime.generator, self.pad, self.flip)
        return Batch(as_images(images), rows["labels"])

    def loss(self, task: Task, state: D3KState, batch: Batch) -> Scalar:
        """Line 10, eq. 2."""
        with torch.no_grad():
            t = task.teacher(batch.images).logits
        return knowledge_distillation(t, task.student(batch.images).logits, self.temperature)


class Parts(NamedTuple):
    """The terms of the generator's loss, unweighted, and the teacher's logits."""

    loss: Scalar
    cls: Scalar
    bn: Scalar
    adv: Scalar
    hash: Scalar
    logits: Logits


def generate(G: nn.Module, z: Tensor, shape: SubnetShape | None) -> Images:
    """``G(z)``, or the image of its slice ``shape``."""
    images: Images = G(z, shape)
    return images


def objective(
    method: D3K, T: Probe, S: Probe, x: Images, views: Images, c: Labels, bank: Tensor, adversarial: bool
) -> Parts:
    """Line 6: ``α L_bn + β CE(T(x), c) − γ KL(T(x) ‖ S(x)) + θ L_Dhash``; ``views`` are x, cropped and mirrored."""
    t, _, _, stats, stored, *_ = T(views, stats=True)
    zero = t.new_zeros(())
    cls = cross_entropy(t, c)
    bn = zero
    if stats:
        gaussian = method.bn == "gaussian"
        bn = gaussian_divergence(stats, stored, method.bn_eps) if gaussian else moment_distance(stats, stored)
    if method.bn_cap is not None:
        bn = bn * (method.bn_cap / bn.detach().clamp(min=method.bn_cap))
    adv = agreeing_divergence(t, S(views).logits, method.mask) if adversarial else zero
    pairing = "index" if method.pairing == "random" else method.pairing  # the bank's rows were drawn outside
    new = dhash_codes(x, method.hash_pool, method.ste, method.hash_lambda)
    hashes = dhash_loss(new, bank, pairing, form=method.hash_form)
    loss = method.alpha * bn + method.beta * cls - method.gamma * adv + method.theta * hashes
    return Parts(loss, cls, bn, adv, hashes, t)


def _generator(method: D3K, task: Task) -> nn.Module:
    """A fresh generator: of drawn shape, or, where every step draws a slice, the largest."""
    largest = SubnetShape((method.widths[1],) * 3, (max(method.kernels),) * 3)
    shape = largest if method.resample == "iteration" else draw_subnet(method.widths, method.kernels)
    return task.runtime.place(SuperNet(method.width, task.image_shape, shape, method.init, task.runtime.device))


def _few_shapes(method: D3K) -> bool:
    """Is G worth compiling? Each shape is a graph; of the default ranges' 112 million hardly any comes back."""
    low, high = method.widths
    return ((high - low + 1) * len(set(method.kernels))) ** 3 <= MOST_GRAPHS


def _bank(method: D3K, bank: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The codes to compare with: all, or, for ``pairing="random"``, a random one for every new image."""
    if method.pairing != "random" or not len(bank):
        return bank
    return bank[torch.randint(len(bank), (n,), generator=generator, device=generator.device)]
