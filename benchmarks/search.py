"""Does a search without test images find settings that are better on them?

NAYER between tiny networks on digits and MNIST at 8 by 8 pixels. The method begins with the paper's learning rate and
weights, made small in size; ``dfkd.search`` varies four of them. Only then are the test images read: for the defaults
and for the best trial, each with seeds that the search did not use.

    python -m benchmarks.search digits mnist --data .data --trials 20
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import dfkd
from benchmarks.estimate import Set, Taught, sets, small, teacher_of
from benchmarks.records import write_record
from dfkd.nets.zoo import Classifier
from dfkd.report.files import plain
from dfkd.report.trial_page import rank_correlation
from dfkd.report.trials import Trial

METHOD = dfkd.NAYER(
    steps=8, synthesis_batch=64, batches=1, warmup_batches=1, memory=2048, channels=8, width=64, pad=1, flip=False
)
PLAN = dfkd.Plan(rounds=16, warmup=0, steps=20, batch_size=64, lr=0.1, weight_decay=1e-4)
RANGES = {
    "method.lr": "0.0004:0.1:log",
    "method.alpha_bn": "0.1:30:log",
    "method.alpha_adv": "0:3",
    "plan.lr": "0.01:0.5:log",
}
SEEDS = (1, 2, 3)  # of the runs afterwards; the search has seed 0


def student(held: Set) -> Classifier:
    """The same fresh student at every call."""
    torch.manual_seed(0)
    return small(8, held.train[0].shape[1], held.classes)


def afterwards(held: Set, teacher: Taught, method: Any, plan: dfkd.Plan, seed: int) -> dict[str, Any]:
    """One run with test images that report."""
    torch.manual_seed(seed)
    began = time.monotonic()
    done = dfkd.distill(
        teacher[0], small(8, held.train[0].shape[1], held.classes), method, plan=plan, seed=seed, test=held.test,
        evaluate_every=plan.total, progress=False, **about(held, teacher)
    )  # fmt: skip
    return {"seed": seed, "accuracy": done.accuracy, "seconds": time.monotonic() - began}


def about(held: Set, teacher: Taught) -> dict[str, Any]:
    """What the images are."""
    shape = tuple(held.train[0].shape[1:])
    return {"image_size": shape, "mean": teacher[1], "std": teacher[2], "classes": held.classes, "device": "cpu"}


def heard(trial: Trial) -> None:
    print(trial.number, trial.state, trial.agreement, dict(trial.values), flush=True)


def search_once(name: str, data: Path, trials: int) -> dict[str, Any]:
    """A search on one data set, and what came of it."""
    held = sets(data)[name]()
    teacher = teacher_of(held)
    common: dict[str, Any] = {"trials": trials, "plan": PLAN, "samples_every": 0, **about(held, teacher)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pair, out = (teacher[0], student(held), METHOD, RANGES), Path(folder) / "s"
        found = dfkd.search(*pair, out=out, tell=heard, **common)
        searching = time.monotonic() - began
        # The search is over: the same folder again, with test images, evaluates the students of its trials.
        shown = dfkd.search(*pair, out=out, test=held.test, **common)
    if found.best is None:
        raise RuntimeError("no trial is complete")
    began = time.monotonic()
    runs = {
        "defaults": [afterwards(held, teacher, METHOD, PLAN, seed) for seed in SEEDS],
        "best": [afterwards(held, teacher, found.method, found.plan, seed) for seed in SEEDS],
    }
    whole = [trial for trial in shown.trials if trial.state == "complete"]
    return {
        "data": name,
        "teacher": {"network": "Small(16)", "accuracy": teacher[3]},
        "student": "Small(8)",
        "method": {"name": "NAYER", **plain(asdict(METHOD))},
        "plan": plain(asdict(PLAN)),
        "ranges": RANGES,
        "trials": [plain(asdict(trial)) for trial in shown.trials],
        "best": found.best.number,
        "afterwards": runs,
        "means": {what: statistics.fmean(run["accuracy"] for run in told) for what, told in runs.items()},
        "rank_correlation": rank_correlation(whole),
        "seconds": {
            "search": searching,
            "rounds of its trials": sum(trial.seconds for trial in shown.trials),
            "one whole run afterwards": (time.monotonic() - began) / (2 * len(SEEDS)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=("digits", "mnist"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--trials", type=int, default=20)
    told = parser.parse_args()
    torch.set_num_threads(1)
    for name in told.names:
        record = search_once(name, told.data, told.trials)
        print(write_record(f"search/{name}", record), record["means"], record["rank_correlation"], record["seconds"])


if __name__ == "__main__":
    main()
