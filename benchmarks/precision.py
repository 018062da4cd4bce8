"""What bf16 and compilation change: ``python -m benchmarks.precision steps`` and ``... runs --variants bf16 compiled``.

*steps* compares, on one trained teacher and with equal weights and images, the student's loss, NAYER's generator loss,
and the gradients of both with those of eager fp32. *runs* distils on digits with the settings of the experiment
*digits* and three seeds, to be compared with its NAYER rows: the same accuracy, within what seeds change.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import dfkd
from benchmarks.experiments import DIGITS, DIGITS_NAYER, DIGITS_PLAN, Row
from benchmarks.experiments import statistics as normalisation
from benchmarks.records import RESULTS, write_record
from benchmarks.run import run_row, teacher_of
from dfkd.engine.core import Task
from dfkd.losses.divergence import knowledge_distillation
from dfkd.methods.nayer import objective
from dfkd.types import Scalar

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fp32": {},
        "bf16": {"precision": "bf16"},
        "compiled": {"compile": True},
        "compiled-bf16": {"compile": True, "precision": "bf16"},
        "graphed": {"compile": True, "compile_mode": "reduce-overhead"},
        "graphed-bf16": {"compile": True, "compile_mode": "reduce-overhead", "precision": "bf16"},
    }
)
# Largest relative difference of a loss, and of a whole gradient in the Euclidean norm, from eager fp32. Gradients are
# given more: at a ReLU's kink a rounding error switches a unit, and the softened KL compares near-equal numbers.
TOLERANCES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "fp32": (0.0, 0.0),
        "compiled": (1e-4, 0.03),
        "graphed": (1e-4, 0.03),
        "bf16": (0.03, 0.3),
        "compiled-bf16": (0.03, 0.3),
        "graphed-bf16": (0.03, 0.3),
    }
)


@dataclass(frozen=True)
class Difference:
    """Relative differences from eager fp32 on one batch: of a loss, and of its gradient."""

    loss: float
    gradient: float


def student_loss(task: Task, images: Tensor, labels: Tensor) -> Callable[[Tensor], Scalar]:
    """The student's objective as a function of the images, as the driver compiles it."""
    with torch.no_grad():
        t = task.teacher(images).logits

    def loss(x: Tensor) -> Scalar:
        return knowledge_distillation(t, task.student(x).logits, DIGITS_NAYER.temperature)

    return task.runtime.compile(loss)


def generator_loss(task: Task, images: Tensor, labels: Tensor) -> Callable[[Tensor], Scalar]:
    """NAYER's eq. 5 as a function of the images, as the method compiles it."""
    step = task.runtime.compile(objective)

    def loss(x: Tensor) -> Scalar:
        return step(DIGITS_NAYER, task.teacher, task.student, x, labels, [], True).loss

    return loss


def measure(task: Task, images: Tensor, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
    """Loss and gradient of both objectives: by the student's weights in train mode, by the images in eval mode."""
    task.student.requires_grad_(True).train()
    kd = student_loss(task, images, labels)(images)
    weights = torch.autograd.grad(kd, list(task.student.parameters()))
    task.student.freeze()
    x = images.clone().requires_grad_(True)
    made = generator_loss(task, images, labels)(x)
    (pixels,) = torch.autograd.grad(made, x)
    return {
        "student": (float(kd.detach()), torch.cat([g.flatten() for g in weights])),
        "generator": (float(made.detach()), pixels.flatten()),
    }


def compare(
    make: Callable[[Mapping[str, Any]], Task], variant: str, batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, list[Difference]]:
    """Differences of ``variant`` from eager fp32 on every batch, by objective; ``make`` builds equal tasks."""
    plain, other = make({}), make(VARIANTS[variant])
    found: dict[str, list[Difference]] = {"student": [], "generator": []}
    for images, labels in batches:
        ours, theirs = measure(other, images, labels), measure(plain, images, labels)
        for what, (loss, gradient) in theirs.items():
            apart = float((ours[what][1] - gradient).norm() / gradient.norm())
            found[what].append(Difference(abs(ours[what][0] - loss) / abs(loss), apart))
    return found


def digits_task(machine: Mapping[str, Any]) -> Task:
    """The pair of the experiment, the student with fresh weights."""
    teacher, _ = teacher_of(DIGITS, "wrn16-2")
    torch.manual_seed(0)
    student = dfkd.build("wrn16-1", classes=10, channels=1).net
    mean, std = normalisation(DIGITS)
    runtime = dfkd.Runtime(device="cpu", seed=0, **machine).launch()
    return dfkd.build_task(teacher, student, image_size=DIGITS.shape, mean=mean, std=std, classes=10, runtime=runtime)


def steps(variants: Sequence[str]) -> None:
    """Compare on ten batches of real digits, and write the record."""
    held = dfkd.read_images("digits", "test", side=8, channels=1)
    pairs = zip(held.images[:320].split(32), held.labels[:320].split(32), strict=True)
    batches = [(images.float() / 255, labels) for images, labels in pairs]
    rows = {}
    for variant in variants:
        found = compare(digits_task, variant, batches)
        rows[variant] = {
            what: {
                "loss_median": statistics.median(d.loss for d in many),
                "loss_largest": max(d.loss for d in many),
                "gradient_median": statistics.median(d.gradient for d in many),
                "gradient_largest": max(d.gradient for d in many),
            }
            for what, many in found.items()
        }
        print(variant, rows[variant], flush=True)
    content = {"pair": "wrn16-2 to wrn16-1, digits", "batches": len(batches), "relative_differences": rows}
    write_record("precision/steps", {**content, "tolerances": {k: list(v) for k, v in TOLERANCES.items()}})


def runs(variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Distil with every variant and seed, and write a record each; one that exists is passed over."""
    row = Row("NAYER", "wrn16-2", "wrn16-1", DIGITS_NAYER, DIGITS_PLAN)
    for seed in seeds:
        for variant in variants:
            name = f"precision/nayer-{variant}-seed{seed}"
            if (RESULTS / f"{name}.json").exists():
                continue
            content = run_row("precision", DIGITS, row, seed, VARIANTS[variant])
            write_record(name, {**content, "variant": variant})
            print(f"{variant}, seed {seed}: {content['accuracy']:.2%} in {content['seconds']:.0f} s", flush=True)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "runs"))
    parser.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=["compiled", "bf16"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "steps":
        steps(options.variants)
    else:
        runs(options.variants, options.seeds)


if __name__ == "__main__":
    main()
