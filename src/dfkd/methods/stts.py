"""STTS: Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis.

Zi Wang. AAAI 2021.

Noise images are optimised, one batch at a time, until the teacher answers them with soft targets. These come from a
multivariate normal over the outputs of one fully connected layer, whose correlations are the cosines between the
layer's weight rows; what follows that layer in the teacher turns a draw into a target. BatchNorm is never used by the
paper; ``alpha_bn`` adds DeepInversion's term on its statistics, and ``coarse`` makes x̂ of line 5 the sum of several
grids, both extensions of ours.

The paper's algorithm box and this file:

    1  R from the weights of layer l; Σ = σ R            ``setup``
    2  repeat N times:                                   the driver's warm-up rounds
    3      draw n vectors s ~ N(0, Σ)                    ``synthesize``, once per batch
    4      y = softmax(rest(s) / τ)
    5      x̂ ~ N(0, init_std²), in normalised space
    6      1500 steps of Adam on L_d + λ_a L_a
    7      add x̂ to the transfer set
    8  train S on augmented images of the set            the driver's student steps: ``batch``
       with the cross-entropy to T's softened outputs    ``loss``

``targets="dirichlet"`` draws the targets of ZSKD (Nayak et al. 2019) in place of lines 3 and 4, for comparison.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.optim import Adam

from dfkd.data.pool import Pool
from dfkd.engine.core import Cache, Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.limits import Count, NotNegative, Positive, Whole
from dfkd.engine.measures import Measure, class_entropy_measure
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.views import Cloud, Curves, View, affordable
from dfkd.errors import UserError
from dfkd.losses.divergence import kl_per_image, soft_cross_entropy
from dfkd.losses.priors import activation_loss
from dfkd.losses.statistics import moment_distance
from dfkd.nets.modes import batch_statistics
from dfkd.nets.soft_targets import maxima_over_sigma, modelled_output, soft_labels
from dfkd.nets.tail import Tail, find_tail, last_map
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.augment import crop_flip
from dfkd.ops.keep_best import keep_best, no_best
from dfkd.ops.labels import balanced_labels
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.ops.pyramid import coarser_sizes, sum_of_grids
from dfkd.ops.targets import check_class_rows, dirichlet_concentration, draw_dirichlet, draw_normal
from dfkd.types import Batch, Bytes, Images, Logits, Scalar

__all__ = ["STTS", "STTSState"]

MOST_CLASSES = 20  # colours of a cloud
SIGMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # the paper's sweep


@dataclass
class STTSState(State):
    """What STTS remembers. The tools are the layer that is modelled and a probe that reads T's last map."""

    pool: Pool  # the transfer set
    tools: Cache[tuple[Tail, Probe]] = field(default_factory=Cache)  # while images are made


@final
@dataclass(frozen=True)
class STTS(Method[STTSState]):
    """Hyper-parameters of STTS; the paper's symbol follows each. Defaults: AlexNet on CIFAR-10."""

    # The paper's
    sigma: NotNegative = 2.0  # σ, the common variance of the units (LeNet-5: 1.5)
    lambda_a: float = 0.05  # λ_a, weight of the activation loss (ResNet-34: 0.1)
    temperature: Positive = 20.0  # τ, of the targets and of the student
    synthesis_batch: Count = 100  # n, images per batch and process
    batches: Count = 1  # batches per warm-up round
    steps: Count = 1500  # Adam steps per batch
    lr: Positive = 1e-3  # Adam's rate for the pixels
    layer: str = "auto"  # l: "auto" (FC-2 where there is one), "logits", or the path of a linear layer
    degrees: NotNegative = 15.0  # augmentation: largest rotation
    scale: NotNegative = 0.1  # augmentation: size between 1 - scale and 1 + scale
    shift: NotNegative = 0.1  # augmentation: largest translation, as a share of the side
    pad: Whole = 4  # augmentation: random crop
    noise: NotNegative = 0.05  # augmentation: standard deviation of additive noise
    # What the paper leaves open
    init_std: NotNegative = 1.0  # standard deviation of the noise (not in the paper); smaller: cleaner images
    bound: Literal["end", "step", "rescale"] = "step"  # clip when stored or every step; rescale by min and max (ZSKD)
    keep: Literal["last", "best"] = "last"  # which step's image enters the set
    memory: Count | None = None  # the newest images kept; None: all
    flip: bool = False  # augmentation: random mirror (not in the paper)
    # Other readings of the text
    space: Literal["logits", "pre_act", "post_act"] = "pre_act"  # what s is: the output of l, or of its activation
    act_reduction: Literal["mean", "sum"] = "mean"  # L_a over a map's units (paper: sum)
    kl_tau2: bool = True  # L_d times τ² (paper: without)
    teacher_bn: Literal["stored", "batch"] = "stored"  # T's BatchNorm in synthesis and in targets (ZSKD's code: batch)
    student_target: Literal["augmented", "stored"] = "augmented"  # T's answer to what S sees, or to the stored image
    # ZSKD, its rival
    targets: Literal["normal", "dirichlet"] = "normal"  # where y comes from; "dirichlet": ZSKD
    betas: tuple[float, ...] = (1.0, 0.1)  # β, scales of the Dirichlet targets, in equal shares
    dirichlet: Literal["fixed", "coded"] = "fixed"  # "coded": the authors' order, in which β cancels
    init: Literal["normal", "uniform"] = "normal"  # normal noise in normalised space, or U(0, 1) in pixels (ZSKD)
    # Our extensions and their controls
    alpha_bn: NotNegative = 0.0  # weight of DeepInversion's BatchNorm term beside L_d and L_a (ours; 0 is the paper)
    lambda_d: float = 1.0  # weight of L_d; 0: no targets, a control of ours
    coarse: Whole = 0  # coarser grids (sides halved each time) that are added to the pixels and optimised too (ours)
    augment_synthesis: bool = False  # optimise images as S will see them, augmented anew in every step (ours)

    default_plan: ClassVar[Plan] = Plan(
        rounds=2000,
        warmup=400,
        steps=78,
        batch_size=512,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0,
        schedule="constant",
    )

    def check_values(self) -> None:
        """The β are above 0, the zoom is below 1."""
        if self.scale >= 1:
            raise UserError(f"STTS needs a scale below 1, got {self.scale}; lower it")
        if not self.betas or min(self.betas) <= 0:
            raise UserError(f"STTS needs betas above 0, at least one, got {self.betas}; for example (1.0, 0.1)")

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType(
        {
            "class_entropy": class_entropy_measure("raise sigma, or alpha_bn where the teacher has BatchNorm"),
            "target_maximum": Measure("largest probability of a target", meaning="mean over targets"),
            "augmented/class_entropy": Measure(
                "class entropy after augmentation",
                "nats",
                level="log classes",
                level_name="balanced classes, {level:.2f}",
            ),
            "augmented/same_class": Measure(
                "images that keep their class under augmentation", level=1.0, level_name="all"
            ),
        }
    )

    def least_warmup(self) -> int:
        """All images are made there."""
        return 1

    def views(self, task: Task, state: STTSState | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """How sure targets are at each variance, where they lie beside ZSKD's, and these by the class they are for."""
        return {
            "target-maximum": lambda: _maximum_view(self, task),
            "soft-labels": lambda: _labels_view(self, task),
            "soft-labels-by-class": lambda: _classes_view(self, task),
        }

    def needs(self) -> frozenset[Need]:
        """A linear classifier, unless another layer is named; BatchNorm where the extension or the reading uses it."""
        classifier = self.layer in ("auto", "logits") or self.space == "logits" or self.targets == "dirichlet"
        norms = self.alpha_bn != 0 or self.teacher_bn == "batch"
        return frozenset({Need.GRADIENT} | ({Need.HEAD} if classifier else set()) | ({Need.BN} if norms else set()))

    def setup(self, task: Task, plan: Plan) -> STTSState:
        """Line 1, and room for the transfer set."""
        if plan.warmup == 0:
            raise UserError(
                "STTS needs warm-up rounds, in which it makes all its images, got a plan with warmup=0; set plan.warmup"
            )
        find_tail(task.teacher.net, task.image_shape, self.layer, self.space)  # refuses what cannot be modelled
        _map_place(self, task)
        _check_grids(self, task)
        if self.targets == "dirichlet":
            check_class_rows(_class_weights(task))
        capacity = plan.warmup * plan.turns * self.batches * self.synthesis_batch
        columns = {"images": (task.image_shape, torch.uint8), "labels": ((), torch.int64)}
        if self.student_target == "stored":
            columns["targets"] = ((task.classes,), torch.float32)
        return STTSState(Pool(min(capacity, self.memory or capacity), columns, task.runtime.device))

    def synthesize(self, task: Task, state: STTSState, clock: Clock) -> Metrics:
        """Lines 3 to 7, in warm-up rounds only."""
        if not clock.warmup:  # the set is complete
            _put_away(state)
            return {}
        with _tools(self, task, state) as (rest, T), batch_statistics(T.net, self.teacher_bn == "batch"):
            step = task.runtime.compile(objective)
            for _ in range(self.batches):
                y = _draw(self, task, rest)  # lines 3 and 4
                grids = _start(self, task)  # line 5: x is their sum; the paper has one
                optimizer = Adam(grids, lr=self.lr, fused=True)
                best = no_best(grids[0])
                for _ in range(self.steps):  # line 6
                    x = sum_of_grids(grids)
                    out = step(self, T, _view(self, task, T, x), y)
                    best = keep_best(best, out.loss, x) if self.keep == "best" else best
                    task.runtime.step(out.loss, private=[optimizer])
                    _clip_grids(self, T, grids)
                images = as_bytes(T.denormalise(best.images if self.keep == "best" else sum_of_grids(grids)))
                answers = _answer(T, images)
                targets = {"targets": answers} if self.student_target == "stored" else {}
                state.pool.add(images=images, labels=answers.argmax(dim=1), **targets)  # line 7
            augmentation = _augmentation_metrics(self, T, images, answers)
        softened = torch.softmax(y / self.temperature, dim=1)
        return {
            "loss/synthesis": out.loss.detach(),
            "loss/target": out.target.detach(),
            "loss/activation": out.activation.detach(),
            "loss/statistics": out.bn.detach(),
            "target_maximum": softened.amax(dim=1).mean(),
            "class_entropy": class_entropy(out.logits),
            **augmentation,
        }

    def batch(self, task: Task, state: STTSState, clock: Clock) -> Batch:
        """Images of the set, drawn uniformly with replacement and augmented; and T's answers, where they are stored."""
        rows = state.pool.draw(clock.plan.batch_size, task.runtime.generator)
        x = _augment(self, as_images(rows["images"]), task.runtime.generator)
        target = rows.get("targets")
        if target is None and self.teacher_bn == "batch":
            with batch_statistics(task.teacher.net):
                target = task.teacher(x).logits
        return Batch(x, rows["labels"], extra=None if target is None else {"target": target})

    def loss(self, task: Task, state: STTSState, batch: Batch) -> Scalar:
        """Line 8: the cross-entropy between softened predictions, without τ²."""
        if batch.extra is not None and "target" in batch.extra:
            t = batch.extra["target"]
        else:
            with torch.no_grad():
                t = task.teacher(batch.images).logits
        return soft_cross_entropy(t, task.student(batch.images).logits, self.temperature)


class Parts(NamedTuple):
    """The terms of line 6, unweighted (the target's with τ² where that is set), and T's answer."""

    loss: Scalar
    target: Scalar
    activation: Scalar
    bn: Scalar
    logits: Logits


def objective(method: STTS, T: Probe, x: Images, y: Logits) -> Parts:
    """``λ_d KL(y ‖ σ_τ(T(x))) + λ_a L_a``, with ``x`` in normalised space and ``y`` the target's logits.

    With ``alpha_bn``, plus that times DeepInversion's distance from the stored BatchNorm statistics.
    """
    t, _, maps, stats, stored, *_ = T.read_normalised(x, stats=method.alpha_bn != 0, maps=True)
    target = kl_per_image(y, t, method.temperature).mean() * (method.temperature**2 if method.kl_tau2 else 1.0)
    activation = activation_loss(maps[-1], method.act_reduction) if maps else t.new_zeros(())
    loss = method.lambda_d * target + method.lambda_a * activation
    bn = moment_distance(stats, stored) if stats else t.new_zeros(())
    if stats:
        loss = loss + method.alpha_bn * bn
    return Parts(loss, target, activation, bn, t)


def _augment(method: STTS, x: Images, rng: torch.Generator) -> Images:
    """Turned, scaled, shifted, cropped and made noisy, every image by its own draw."""
    x = affine(x, draw_affine(len(x), rng, method.degrees, method.scale, method.shift))
    x = crop_flip(x, rng, method.pad, method.flip)
    x = x + method.noise * torch.randn(x.shape, generator=rng, device=x.device)
    return x.clamp(0, 1)


def _view(method: STTS, task: Task, T: Probe, x: Tensor) -> Tensor:
    """What the objective looks at, in normalised space: the images, or, augmented anew, what S will see of them."""
    if not method.augment_synthesis:
        return x
    return T.normalise(_augment(method, T.denormalise(x), task.runtime.generator))


@torch.no_grad()
def _answer(T: Probe, images: Bytes) -> Logits:
    """T's logits of the images as they are stored."""
    return T(as_images(images)).logits


@torch.no_grad()
def _augmentation_metrics(method: STTS, T: Probe, images: Bytes, answers: Logits) -> Metrics:
    """What augmentation leaves of a batch: entropy of T's classes, and the share of images that keep theirs.

    ``answers`` are T's logits of the images before augmentation.

    From a random stream of its own, so that looking changes nothing. Both are low, before the student's first step,
    where the teacher's answers hang on pixel patterns that augmentation destroys.
    """
    x = as_images(images)
    after = T(_augment(method, x, torch.Generator(x.device).manual_seed(0))).logits
    retention = (after.argmax(dim=1) == answers.argmax(dim=1)).float().mean()
    return {"augmented/class_entropy": class_entropy(after), "augmented/same_class": retention}


def _last_map_probe(method: STTS, task: Task) -> Probe:
    """A probe of T that reads the map fed to pooling or flattening, whichever stages the task's own probe names."""
    T, place = task.teacher, _map_place(method, task)
    probe = Probe(
        T.net,
        mean=T.mean.flatten().tolist(),
        std=(1 / T.scale).flatten().tolist(),
        stages=() if place is None else (place,),
        precision=T.precision,
        channels_last=T.channels_last,
        outputs=T.outputs,
        joint=task.runtime.joint,
    )
    return probe.to(task.runtime.device).freeze()


def _map_place(method: STTS, task: Task) -> str | None:
    """Where the map is that L_a reads; None where there is none and none is needed."""
    place = last_map(task.teacher.net, task.image_shape)
    if place is None and method.lambda_a != 0:
        raise UserError(
            "STTS needs a teacher with feature maps for its activation loss, got "
            f"{type(task.teacher.net).__name__} without; set lambda_a=0"
        )
    return place


def _check_grids(method: STTS, task: Task) -> None:
    """The coarsest grid has a number for each channel at least."""
    side, coarse = max(task.image_shape[1:]), method.coarse
    most = (side - 1).bit_length()
    if coarse > most:
        raise UserError(f"STTS needs coarse of at most {most} for images of {side} pixels, got {coarse}; lower it")


@contextmanager
def _tools(method: STTS, task: Task, state: STTSState) -> Iterator[tuple[Tail, Probe]]:
    """The modelled layer and the probe, built when first asked for; put away when an error (or Ctrl-C) ends the run."""
    if state.tools.value is None:
        rest = find_tail(task.teacher.net, task.image_shape, method.layer, method.space)
        state.tools.value = rest, _last_map_probe(method, task)
    with ExitStack() as stack:
        stack.callback(_put_away, state)
        yield state.tools.value
        stack.pop_all()  # all went well: the next round needs them again


def _put_away(state: STTSState) -> None:
    """Leave nothing hooked to the teacher."""
    if state.tools.value is not None:
        state.tools.value[1].release()
        state.tools.value = None


def _draw(method: STTS, task: Task, rest: Tail) -> Logits:
    """Lines 3 and 4 for one batch: the logits of its targets (before τ)."""
    n, rng = method.synthesis_batch, task.runtime.generator
    if method.targets == "normal":
        return rest(draw_normal(rest.weight, n, method.sigma, rng))
    weights = _class_weights(task)
    labels = balanced_labels(n, task.classes, rng, task.runtime.device)
    labels = labels[torch.randperm(n, generator=rng, device=labels.device)]  # any β for any class
    rows = [dirichlet_concentration(weights, beta, method.dirichlet) for beta in method.betas]
    share = torch.arange(n, device=labels.device) * len(rows) // n
    # The targets are probabilities at τ already: undo the division that is to come.
    return draw_dirichlet(torch.cat(rows), labels + share * task.classes, rng) * method.temperature


def _class_weights(task: Task) -> Tensor:
    """The rows of the teacher's classifier (K, d), as constants."""
    if task.teacher.class_weights is None:
        raise RuntimeError("Dirichlet targets need a linear classifier; the driver checks that before setup")
    return task.teacher.class_weights.detach()


def _start(method: STTS, task: Task) -> list[Tensor]:
    """Line 5: noise in normalised space, and in the coarser grids that images are the sum of."""
    n, rng, device = method.synthesis_batch, task.runtime.generator, task.runtime.device
    channels, *side = task.image_shape
    sizes = [(side[0], side[1]), *coarser_sizes((side[0], side[1]), method.coarse)]
    if method.init == "uniform":
        fine = task.teacher.normalise(torch.rand(n, *task.image_shape, generator=rng, device=device))
        grids = [fine, *(torch.zeros(n, channels, *size, device=device) for size in sizes[1:])]
    else:
        grids = [method.init_std * torch.randn(n, channels, *size, generator=rng, device=device) for size in sizes]
    if task.teacher.channels_last:
        grids = [grid.contiguous(memory_format=torch.channels_last) for grid in grids]
    return [grid.requires_grad_(True) for grid in grids]


@torch.no_grad()
def _clip_grids(method: STTS, T: Probe, grids: list[Tensor]) -> None:
    """Keep the pixels in range, in place, so that the optimiser still owns them: the finest grid takes what is cut."""
    if method.bound == "end":
        return
    x = sum_of_grids(grids)
    pixels = T.denormalise(x)
    if method.bound == "step":
        bounded = T.normalise(pixels.clamp(0, 1))
    else:
        low, high = pixels.amin(), pixels.amax()
        bounded = T.normalise((pixels - low) / (high - low))
    grids[0].copy_(bounded if len(grids) == 1 else grids[0] + bounded - x)


def _maximum_view(method: STTS, task: Task) -> Curves:
    """How sure targets are at each variance."""
    net, shape, rng = task.teacher.net, task.image_shape, task.runtime.generator
    draws, stream = affordable(shape, 2_000_000, 50, 500), rng.get_state()
    maxima: dict[float, dict[float, Tensor]] = {}
    for tau in (1.0, method.temperature):
        rng.set_state(stream)
        maxima[tau] = maxima_over_sigma(net, shape, SIGMAS, rng, method.layer, tau, draws, method.space)
    lines = {tau: {sigma: float(y.mean()) for sigma, y in by_sigma.items()} for tau, by_sigma in maxima.items()}
    spread = {sigma: float(y.std()) for sigma, y in maxima[1.0].items()}
    bounds = {
        f"temperature 1, one standard deviation {word}": [(s, lines[1.0][s] + sign * spread[s]) for s in SIGMAS]
        for word, sign in (("above", 1), ("below", -1))
    }
    targets = f"σ = {method.sigma:g}" if method.targets == "normal" else "Dirichlet targets instead"
    return Curves(
        f"Mean largest class probability of normal targets over their variance σ, drawn as "
        f"{modelled_output(net, shape, method.layer, method.space)}; this run used {targets} and temperature "
        f"{method.temperature:g}.",
        "Curves that show how the largest class probability depends on the variance",
        {**{f"temperature {tau:g}": list(line.items()) for tau, line in lines.items()}, **bounds},
        "variance σ",
        {"as likely as any": 1 / task.classes},
        numbers={f"σ = {sigma:g}": value for sigma, value in lines[method.temperature].items()},
    )


def _labels_view(method: STTS, task: Task) -> Cloud:
    """Targets beside ZSKD's."""
    net, shape, rng = task.teacher.net, task.image_shape, task.runtime.generator
    tau, betas = method.temperature, method.betas
    labels = soft_labels(net, shape, method.sigma, rng, tau, 300, betas, method.layer, method.space, method.dirichlet)
    groups = labels.groups
    return Cloud(
        f"Soft labels by t-SNE, drawn from STTS's multivariate normal (σ = {method.sigma:g}, over "
        f"{modelled_output(net, shape, method.layer, method.space)}, temperature {tau:g}) and from ZSKD's Dirichlet "
        f"distributions (β = {', '.join(f'{beta:g}' for beta in betas)}).",
        "Points in two dimensions, one colour for each kind of soft label",
        groups,
        numbers={f"largest probability, {name}": float(rows.amax(dim=1).mean()) for name, rows in groups.items()},
    )


def _classes_view(method: STTS, task: Task) -> Cloud:
    """ZSKD's soft labels by the class each was drawn for, and how many show another one (the paper's Figure 4)."""
    net, shape, rng = task.teacher.net, task.image_shape, task.runtime.generator
    if task.classes > MOST_CLASSES:
        raise UserError(f"soft labels by class need at most {MOST_CLASSES} classes, got {task.classes}; look at fewer")
    labels = soft_labels(
        net,
        shape,
        method.sigma,
        rng,
        method.temperature,
        500,
        method.betas,
        method.layer,
        method.space,
        method.dirichlet,
    )
    names = task.names or tuple(map(str, range(task.classes)))
    return Cloud(
        f"ZSKD's soft labels by t-SNE, one colour for each class they were drawn for; in {labels.mismatch:.1%} of the "
        "draws another class is the largest. STTS imposes no class on its targets.",
        "Points in two dimensions, one colour for each class",
        {name: labels.dirichlet[labels.intended == k] for k, name in enumerate(names)},
        numbers={"Dirichlet draws that show another class": labels.mismatch},
    )
