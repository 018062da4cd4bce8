"""An estimate against the run it is of: ``python -m benchmarks.dry_run``, NAYER on digits, one thread."""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

import dfkd
from benchmarks.experiments import DIGITS_NAYER, DIGITS_PLAN
from benchmarks.records import scheduler, write_record
from benchmarks.rows import DIGITS
from benchmarks.rows import statistics as normalisation
from benchmarks.run import read_split, teacher_of
from dfkd.engine.checkpoint import Checkpoint, pools_of
from dfkd.engine.core import Task
from dfkd.engine.driver import Watch, run


def task_of(seed: int) -> Task:
    """The pair of the experiment *digits*."""
    teacher, _ = teacher_of(DIGITS, "wrn16-2")
    torch.manual_seed(seed)
    student = dfkd.build("wrn16-1", classes=10, channels=1).net
    mean, std = normalisation(DIGITS)
    names, runtime = dfkd.class_list("digits"), dfkd.Runtime(device="cpu", seed=seed).launch()
    return dfkd.build_task(
        teacher, student, image_size=DIGITS.shape, mean=mean, std=std, classes=names, runtime=runtime
    )


def main() -> None:
    """Estimate, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, test = task_of(options.seed), read_split(DIGITS, "test")
    exam = (test.images, test.labels)
    began = time.monotonic()
    found = dfkd.estimate(task, DIGITS_NAYER, DIGITS_PLAN, Watch(test=exam, evaluate_every=1, save_every=0.0))
    between = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(test=exam, evaluate_every=1, save_every=0.0, checkpoint=Checkpoint(Path(folder)))
        state = run(task, DIGITS_NAYER, DIGITS_PLAN, watch)
        taken = time.monotonic() - between
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    pools = pools_of(state)
    content = {
        "pair": "wrn16-2 to wrn16-1, digits",
        "estimate": {**asdict(found), "total": found.total},
        "run": {"seconds": taken, "disk": disk, "images": pools["pool"].added},
        "seconds_of_the_estimate": between - began,
        "error": found.total / taken - 1,
        "scheduler": scheduler(),
    }
    write_record("dry-run", content)
    print(content)


if __name__ == "__main__":
    main()
