"""STTS's Figures 2 and 4 in numbers: ``python -m benchmarks.soft_targets``, LeNet-5 on MNIST, a few seconds.

How large the largest class probability of a target is at each variance, with its spread, and how many of ZSKD's
Dirichlet draws show another class than the one they were drawn for; the pictures are in the report of any STTS run.
"""

import argparse

import torch

import dfkd
from benchmarks.records import write_record
from benchmarks.rows import MNIST32, statistics
from benchmarks.run import teacher_of
from dfkd.engine.views import Curves
from dfkd.methods import STTS
from dfkd.prepare import build_task


def main() -> None:
    """Both figures at the paper's settings, one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    teacher, facts = teacher_of(MNIST32, "lenet5")
    mean, std = statistics(MNIST32)
    student = dfkd.build("lenet5-half", classes=10, channels=1).net
    runtime = dfkd.Runtime(device="cpu", seed=options.seed).launch()
    task = build_task(teacher, student, image_size=MNIST32.shape, mean=mean, std=std, runtime=runtime)
    views = {name: draw() for name, draw in STTS(sigma=1.5).views(task, None, None).items()}
    curves = views["target-maximum"]
    if not isinstance(curves, Curves):
        raise RuntimeError("the figure of largest probabilities is no longer a chart of curves")
    write_record(
        "soft-targets",
        {
            "data": MNIST32.name,
            "teacher": facts,
            "seed": options.seed,
            "target_maximum": {name: dict(line) for name, line in curves.lines.items()},
            "numbers": {name: dict(view.numbers) for name, view in views.items()},
        },
    )
    for name, view in views.items():
        print(name, {key: round(value, 4) for key, value in view.numbers.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
