"""How good is the student, without test images: agreement with the teacher on synthetic images it never learns from.

The images come from other seeds: some by the run's own method, some by optimising pixels (``engine/invert.py``), so
that a student is not judged on the habits of its own generator alone. Nothing here changes what is trained.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dfkd.engine.core import Clock, Method, Task
from dfkd.engine.invert import inverted_images
from dfkd.engine.needs import Need
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.records import Agreement, Estimate
from dfkd.engine.states import pools_of
from dfkd.engine.verify import preserving
from dfkd.errors import UserError
from dfkd.losses.statistics import moment_distance
from dfkd.ops.augment import crop_flip
from dfkd.ops.intervals import wilson
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Bytes, Labels

__all__ = ["Gauge", "affordable", "agreement_on", "gauge_on", "inverted_set", "is_measured", "make_gauge", "signals_of"]

OWN = 512  # images of the run's own method, at most
INVERTED = 128  # images by inversion at least, two of each class up to four times as many
STEPS = 40  # of the inversion
DERIVED = 256  # shifted, mixed and noise images each
BINS = 10  # of the calibration error
BATCH = 256
SHARE = 0.05
SEED = 0x5EED  # added to the run's: the streams of the held-out images are none of the run's

LabelledImages = tuple[Bytes, Labels]


@dataclass(frozen=True)
class Gauge:
    """Held-out images by kind, on the device, with what the teacher says of them; without any, only the signals.

    Kinds: ``own`` (the run's method), ``inverted``, and derived from both ``shifted`` (by up to an eighth of the side),
    ``mixed`` (means of two images) and ``noise`` (of the data's mean and deviation).
    """

    sets: Mapping[str, tuple[Bytes, Labels]]

    def __call__(self, task: Task, newest: LabelledImages | None) -> Estimate:
        """Measure the student on the sets, and the newest images ``shown`` (with labels) on the teacher."""
        began = time.monotonic()
        mode = task.student.training
        task.student.eval()
        sets = {
            name: agreement_on(task.student, *images_and_classes, task.classes)
            for name, images_and_classes in self.sets.items()
        }
        task.student.train(mode)
        signals = {} if newest is None else signals_of(task.teacher, *newest, task.classes)
        return Estimate(sets, signals, time.monotonic() - began)


@torch.no_grad()
def agreement_on(student: Probe, images: Bytes, chosen: Labels, classes: int) -> Agreement:
    """How often ``student`` (in eval mode) chooses the class in ``chosen`` (n,), and how well it knows when it does."""
    device = student.mean.device
    logits = torch.cat([student(as_images(part.to(device))).logits.float() for part in images.split(BATCH)])
    confidence, guess = torch.softmax(logits, dim=1).max(dim=1)
    chosen = chosen.to(device)
    same = (guess == chosen).double()
    n = len(same)
    counts = torch.bincount(chosen, minlength=classes).double()
    hits = torch.bincount(chosen, weights=same, minlength=classes)
    low, high = wilson(float(same.sum()), n)
    by_class = torch.where(counts > 0, hits / counts.clamp(min=1), torch.nan)
    return Agreement(float(same.mean()), low, high, n, _calibration(confidence, same), tuple(by_class.tolist()))


def _calibration(confidence: Tensor, same: Tensor) -> float:
    """Expected calibration error: mean distance of confidence and agreement over ten bins, weighted by their images.

    NaN where a confidence is: a lost student is no reason to end a run here.
    """
    if not bool(confidence.isfinite().all()):
        return float("nan")
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.bincount(place, weights=confidence.double() - same, minlength=BINS)
    return float(gaps.abs().sum() / max(len(same), 1))


@torch.no_grad()
def signals_of(teacher: Probe, images: Bytes, labels: Labels, classes: int) -> dict[str, float]:
    """What the teacher and the pixels say of some images.

    * ``confidence``: mean largest probability of the teacher.
    * ``retention``: share that the teacher puts into the class they were made for; absent where all labels are 0.
    * ``classes``: share of the K classes (or of as many as there are images) that the teacher sees among them.
    * ``largest``: share of the class that the teacher sees most often.
    * ``within``: distance between images of a class over that between any two; absent without two images of a class.
    * ``roughness``: mean difference of neighbouring pixels over the deviation of the pixels of an image; 1.13 for
      normal noise.
    * ``statistics``: distance of BatchNorm statistics to those stored, a mean over layers; absent without BatchNorm.
    """
    x = as_images(images.to(teacher.mean.device))
    labels = labels.to(x.device)
    out = teacher(x, stats=bool(teacher.norms))
    confidence, guess = torch.softmax(out.logits.float(), dim=1).max(dim=1)
    signals = {"confidence": float(confidence.mean()), "classes": len(guess.unique()) / min(classes, len(guess))}
    signals["largest"] = float(guess.bincount().max()) / len(guess)
    if bool(labels.any()):
        signals["retention"] = float((guess == labels).double().mean())
    within = _within(x.flatten(1), labels if bool(labels.any()) else guess)
    if within is not None:
        signals["within"] = within
    across, down = (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs()
    rough = (across.mean((1, 2, 3)) + down.mean((1, 2, 3))) / 2
    signals["roughness"] = float((rough / x.flatten(1).std(dim=1).clamp(min=1e-6)).mean())
    if out.stats:
        signals["statistics"] = float(moment_distance(out.stats, out.stored)) / len(out.stats)
    return signals


def _within(rows: Tensor, labels: Labels) -> float | None:
    """Mean distance of different rows of one label over that of any two different rows."""
    distances = torch.cdist(rows, rows)
    other = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    same = (labels[:, None] == labels[None, :]) & other
    if not bool(same.any()):
        return None
    return float(distances[same].mean() / distances[other].mean().clamp(min=1e-12))


def make_gauge(task: Task, method: Method[Any], plan: Plan, inverted: Bytes | None = None) -> Gauge:
    """Held-out images for a run that has not begun. The student, and every random stream, are left as they were.

    The run's method makes its part in a state of its own, with the student as it is now (a resume with a student of
    other weights than the run began with gets other images); methods that store no images (those that choose or are
    given them) have none.

    Args:
        task, method, plan: of the run.
        inverted: images by inversion that were made before, uint8 on the device; None: make them.

    Raises:
        UserError: a teacher that passes no gradients: nothing can be made of it.
    """
    if inverted is None:
        _check_invertible(task)
    device = task.runtime.device
    stream = torch.Generator(device).manual_seed(task.runtime.seed + SEED)
    sets: dict[str, Bytes] = {}
    own = _images_of_method(task, method, plan)
    if own is not None:
        sets["own"] = own
    if inverted is None:
        count = _inversions(task.classes)
        inverted = inverted_images(task.teacher, task.image_shape, task.classes, count, STEPS, stream)
    sets["inverted"] = inverted
    sets |= _derive_sets(task, torch.cat(list(sets.values())), stream)
    with torch.no_grad():
        return Gauge({name: (images, _argmax_labels(task.teacher, images)) for name, images in sets.items()})


def gauge_on(task: Task, images: Bytes) -> Gauge:
    """A gauge on images by inversion that were made before, and on nothing else: the same for several runs.

    Raises:
        UserError: images of another kind or shape than those of the task.
    """
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != task.image_shape or not len(images):
        actual = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(
            f"estimate needs uint8 images of shape (n, *{task.image_shape}), got {actual}; give such images"
        )
    images = images.to(task.runtime.device)
    with torch.no_grad():
        return Gauge({"inverted": (images, _argmax_labels(task.teacher, images))})


def inverted_set(task: Task, count: int) -> Bytes:
    """``count`` images by inversion of the task's teacher, from the stream of the held-out images of its seed.

    Raises:
        UserError: a teacher that passes no gradients.
    """
    _check_invertible(task)
    stream = torch.Generator(task.runtime.device).manual_seed(task.runtime.seed + SEED)
    return inverted_images(task.teacher, task.image_shape, task.classes, count, STEPS, stream)


def _check_invertible(task: Task) -> None:
    if not task.teacher.passes_gradients:
        raise UserError(
            f"estimate needs {Need.GRADIENT.what}, got {Need.GRADIENT.instead(task).partition(';')[0]}; give test "
            "images instead, or leave out the estimate, rules of --stop and searches"
        )


def affordable(plan: Plan, classes: int) -> bool:
    """Is the run so long that making the held-out images is at most a twentieth of what its student looks at?"""
    return SHARE * plan.rounds * plan.steps * plan.batch_size >= _inversions(classes) * STEPS


def is_measured(requested: bool | Tensor | None, ruled: bool, untested: bool, plan: Plan, classes: int) -> bool:
    """Is the agreement measured: where that is asked for, else for a rule, or in a long run without test images."""
    if isinstance(requested, Tensor):  # images that were made before
        return True
    return requested if requested is not None else ruled or (untested and affordable(plan, classes))


def _inversions(classes: int) -> int:
    """How many images are made by inversion."""
    return min(max(INVERTED, 2 * classes), 4 * INVERTED)


def _images_of_method(task: Task, method: Method[Any], plan: Plan) -> Bytes | None:
    """The newest images of one round (or, of methods that make all theirs before, of one warm-up round)."""
    student, runtime = task.student, copy.copy(task.runtime)
    runtime.generator = torch.Generator(task.runtime.device).manual_seed(task.runtime.seed + 2 * SEED)
    short = replace(plan, rounds=1, warmup=min(plan.warmup, 1))
    other = replace(task, runtime=runtime)
    with preserving(student.net):
        torch.manual_seed(task.runtime.seed + 3 * SEED)
        task.teacher.freeze()
        state = method.setup(other, short)
        runtime.place(state.joint)
        student.freeze()
        state.joint.eval()
        images = None
        for round in (short.warmup, *range(short.warmup)):
            pool = pools_of(state).get("pool")
            if pool is None or "images" not in pool.columns:
                break
            method.synthesize(other, state, Clock(short, round))
            if len(pool):
                images = pool.newest(OWN)["images"].to(task.runtime.device)
                break
    return images


def _derive_sets(task: Task, images: Bytes, stream: torch.Generator) -> dict[str, Bytes]:
    """Shifted and mixed images, and noise as bright and as varied as the data."""
    n, device = min(DERIVED, len(images)), task.runtime.device
    some = images[torch.randperm(len(images), generator=stream, device=device)[:n]]
    pad = max(1, min(task.image_shape[1:]) // 8)
    x = as_images(some)
    noise = torch.randn(n, *task.image_shape, generator=stream, device=device)
    return {
        "shifted": crop_flip(some, stream, pad, flip=False),
        "mixed": as_bytes((x + x.roll(1, dims=0)) / 2),
        "noise": as_bytes(task.teacher.denormalise(noise).clamp(0, 1)),
    }


def _argmax_labels(teacher: Probe, images: Bytes) -> Labels:
    return torch.cat([teacher(as_images(part)).logits.argmax(dim=1) for part in images.split(BATCH)])
