"""Train a teacher on labelled images: the only place where dfkd itself learns from real data."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dfkd.engine.anatomy import survey
from dfkd.engine.checkpoint import write_aside
from dfkd.engine.evaluate import evaluate
from dfkd.engine.probe import Probe
from dfkd.engine.records import Evaluation
from dfkd.engine.runtime import Runtime, gradients_on
from dfkd.engine.silent import Silent, silent_units
from dfkd.engine.verify import verify
from dfkd.errors import UserError
from dfkd.identity import VERSION, weights_hash
from dfkd.inputs import check_weights
from dfkd.lent import seeded_devices
from dfkd.losses.divergence import cross_entropy
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images
from dfkd.prepare import as_tensor, check_labels
from dfkd.report.files import plain
from dfkd.student_files import weights_to_save
from dfkd.teacher_plan import TeachPlan
from dfkd.types import Bytes, Labels, Scalar

__all__ = ["Epoch", "TeachPlan", "TeachResult", "save_teacher", "teach"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: its number (from 1), how many there are, and the means over it."""

    number: int
    epochs: int
    loss: float
    accuracy: float  # on the augmented training images
    lr: float


@dataclass(frozen=True)
class TeachResult:
    """A trained teacher (hooks removed, eval mode); the last epoch counts, no epoch is chosen by its test score."""

    net: nn.Module
    epochs: tuple[Epoch, ...]
    evaluation: Evaluation | None
    seconds: float
    silent: tuple[Silent, ...] = ()  # channels that hardly ever fire on training images; without BatchNorm only
    notes: tuple[str, ...] = ()  # what is done otherwise than asked to run the network

    @property
    def accuracy(self) -> float | None:
        """On the test images, in [0, 1]."""
        return None if self.evaluation is None else self.evaluation.accuracy


def teach(
    net: nn.Module,
    images: Bytes | npt.NDArray[Any],
    labels: Labels | npt.NDArray[Any],
    plan: TeachPlan | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    test: tuple[Bytes | npt.NDArray[Any], Labels | npt.NDArray[Any]] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    watch: Callable[[Epoch], None] | None = None,
) -> TeachResult:
    """Train ``net`` in place by cross-entropy on cropped and mirrored images, all of them held on the device.

    Args:
        net: maps normalised images (n, c, h, w) to logits (n, k).
        images, labels: uint8 (n, c, h, w) and integer (n,) training images. A last, smaller batch is left out.
        plan: the recipe.
        mean, std: per channel, of pixels in [0, 1]; part of the teacher from now on.
        test: labelled test images, measured once after the last epoch.
        runtime: device and precision; default: one process on the best device, with ``seed``.
        seed: of order and augmentation, where ``runtime`` is not given.
        watch: called after every epoch.

    Raises:
        UserError: images and labels that do not fit each other or the network, or a loss that is not finite.
    """
    plan, runtime = plan or TeachPlan(), runtime or Runtime(seed=seed)
    check_weights(net)
    if not any(p.requires_grad for p in net.parameters()):
        raise UserError("teach needs a network with weights to train, got none that ask for gradients; unfreeze it")
    images, labels = _labelled_tensors(images, labels, "training", least=2)
    test = None if test is None else _labelled_tensors(*test, "test")
    with gradients_on(), torch.random.fork_rng(devices=seeded_devices(runtime)):
        runtime.launch()
        began = time.monotonic()
        shape = (images.shape[1], images.shape[2], images.shape[3])
        anatomy = survey(net, shape, None, "network")
        for split, part in (("training", labels), *([] if test is None else [("test", test[1])])):
            _check_range(part, anatomy.classes, split)
        checked = verify(
            net,
            runtime,
            image_shape=shape,
            outputs=anatomy.outputs,
            mean=mean,
            std=std,
            role="network",
            trains=True,
            norms=(),
        )
        probe, runtime = checked.probe, runtime if checked.compiles else runtime.without_compiler()
        epochs = _train(probe, images.to(runtime.device), labels.to(runtime.device), plan, runtime, watch)
        probe.eval()
        seconds = time.monotonic() - began
        sample = images[:: math.ceil(len(images) / 1000)]  # of all classes, also where they are sorted
        silent = silent_units(probe, as_images(sample.to(runtime.device)))
        k = int(labels.max()) + 1 if test is None else int(max(labels.max(), test[1].max())) + 1
        final = None if test is None else evaluate(probe, *test, k, runtime)
        probe.release().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return TeachResult(net.eval(), tuple(epochs), final, seconds, tuple(silent), (*anatomy.notes, *checked.notes))


def save_teacher(
    folder: Path,
    result: TeachResult,
    *,
    spec: Mapping[str, object],
    image_shape: tuple[int, int, int],
    names: Sequence[str],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    plan: TeachPlan,
    seed: int,
) -> Path:
    """Write ``weights.safetensors`` and, beside it, what a later run must know in ``weights.json``; returns the former.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    weights = weights_to_save(result.net)
    about = {
        "network": dict(spec),
        "image_shape": list(image_shape),
        "classes": classes,
        "names": list(names),
        "mean": list(mean),
        "std": list(std),
        "accuracy": result.accuracy,
        "epochs": plan.epochs,
        "plan": asdict(plan),
        "seed": seed,
        "seconds": round(result.seconds, 2),
        "sha256": weights_hash(result.net),
        "versions": {"dfkd": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = folder / "weights.safetensors"
    text = json.dumps(plain(about), indent=1) + "\n"
    write_aside(path, lambda aside: save_file(weights, aside))
    write_aside(path.with_suffix(".json"), lambda aside: aside.write_text(text))
    return path


def _train(
    probe: Probe,
    images: Bytes,
    labels: Labels,
    plan: TeachPlan,
    runtime: Runtime,
    watch: Callable[[Epoch], None] | None,
) -> list[Epoch]:
    """All epochs; the order is drawn anew for each."""
    size = min(plan.batch_size, len(images))
    steps = len(images) // size
    pad = min(images.shape[2:]) // 8 if plan.pad is None else plan.pad
    optimizer, reports, objective = _optimizer(probe, plan), [], runtime.compile(_objective)
    for epoch in range(plan.epochs):
        probe.train()
        order = torch.randperm(len(images), generator=runtime.generator, device=images.device)
        totals = torch.zeros(2, device=images.device)  # summed loss, right answers
        for k in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(epoch + k / steps)
            rows = order[k * size : (k + 1) * size]
            y = labels[rows]
            loss, right_here = objective(
                probe, as_images(crop_flip(images[rows], runtime.generator, pad, plan.flip)), y
            )
            runtime.step(loss, optimizer)
            totals += torch.stack([loss.detach(), right_here])
        total, right = totals.tolist()
        reports.append(Epoch(epoch + 1, plan.epochs, total / steps, right / (steps * size), plan.rate(epoch)))
        if not math.isfinite(total):
            raise UserError(f"teach needs a finite loss, got {total} in epoch {epoch + 1}; lower the learning rate")
        if watch is not None:
            watch(reports[-1])
    return reports


def _objective(probe: Probe, x: Tensor, y: Labels) -> tuple[Scalar, Tensor]:
    """Cross-entropy, and how many answers are right."""
    logits = probe(x).logits
    return cross_entropy(logits, y), (logits.detach().argmax(dim=1) == y).sum()


def _optimizer(probe: Probe, plan: TeachPlan) -> Optimizer:
    parameters = [p for p in probe.parameters() if p.requires_grad]
    if plan.optimizer == "adam":
        return Adam(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
    return SGD(parameters, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)


def _labelled_tensors(images: Any, labels: Any, split: str, least: int = 1) -> tuple[Bytes, Labels]:
    """Images and their labels as tensors, checked against each other."""
    images, labels = as_tensor(images, "teach", "images"), as_tensor(labels, "teach", "labels")
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < least:
        raise UserError(
            f"teach needs at least {least} uint8 {split} images (n, c, h, w), got {images.dtype} of shape "
            f"{tuple(images.shape)}; convert them"
        )
    check_labels(labels, len(images), split)
    return images, labels.long()


def _check_range(labels: Labels, classes: int, split: str) -> None:
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        raise UserError(
            f"{split} labels need to be 0 to {classes - 1} with a network of {classes} classes, got {low} to {high}; "
            "correct them, or build it for more"
        )
