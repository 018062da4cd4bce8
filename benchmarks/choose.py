"""From a teacher to a student by what ``dfkd.choose`` recommends, on digits.

A teacher is trained, ``choose`` makes its trials without looking at a test image, and the pair it recommends is then
distilled for longer with the same small sizes, once with test images that report; noise beside it.

    python -m benchmarks.choose --minutes 4 --rounds 40
"""

import argparse
import time
from dataclasses import asdict, replace
from typing import Any

import torch

import dfkd
from benchmarks.records import write_record
from dfkd.data.readers import STATISTICS, read_images
from dfkd.defaults import NOISE_METHOD
from dfkd.methods import METHODS
from dfkd.report.files import plain
from dfkd.tune.short import shrunk_method, trial_plan

TEACHER = "wrn16-1"


def teacher_of(epochs: int) -> tuple[dfkd.Classifier, float | None]:
    """The teacher and its test accuracy."""
    train, test = read_images("digits", "train"), read_images("digits", "test")
    mean, std = STATISTICS["digits"]
    torch.manual_seed(0)
    network = dfkd.build(TEACHER, 10, 1)
    done = dfkd.teach(
        network.net,
        train.images,
        train.labels,
        dfkd.TeachPlan(epochs=epochs, flip=False),
        mean=mean,
        std=std,
        test=(test.images, test.labels),
    )
    return network, done.accuracy


def methods() -> dict[str, Any]:
    """Every method with its defaults, images not mirrored."""
    made: dict[str, Any] = {name: kind() for name, kind in METHODS.items()}
    return {name: replace(method, flip=False) if hasattr(method, "flip") else method for name, method in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=10)
    told = parser.parse_args()
    torch.set_num_threads(1)
    mean, std = STATISTICS["digits"]
    about: dict[str, Any] = {"image_size": (1, 8, 8), "mean": mean, "std": std, "classes": 10, "device": "cpu"}
    teacher, accuracy = teacher_of(told.epochs)
    began = time.monotonic()
    found = dfkd.choose(
        teacher, minutes=told.minutes, methods=methods(), tell=lambda run: print(run, flush=True), **about
    )
    choosing = time.monotonic() - began
    method, student = found.advice.method, found.advice.student
    if method is None or student is None:
        raise RuntimeError("no recommendation: give more --minutes")
    print(found.advice, flush=True)
    students: dict[str, Any] = {}
    for name in (method, NOISE_METHOD):
        made: Any = shrunk_method(methods()[name], 8)
        plan = trial_plan(METHODS[method].default_plan, told.rounds)
        torch.manual_seed(0)
        began = time.monotonic()
        done = dfkd.distill(
            teacher, dfkd.build(student, 10, 1), made, plan=plan, test="digits", evaluate_every=plan.total,
            progress=False, **about
        )  # fmt: skip
        students[name] = {"accuracy": done.accuracy, "rounds": plan.total, "seconds": time.monotonic() - began}
        print(name, students[name], flush=True)
    record = {
        "teacher": {"network": TEACHER, "epochs": told.epochs, "accuracy": accuracy},
        "minutes": told.minutes,
        "choice": plain(asdict(found)),
        "seconds": choosing,
        "distilled": {"student": student, "rounds": told.rounds, "seed": 0, "by": students},
    }
    print(write_record("search/choose-digits", record))


if __name__ == "__main__":
    main()
