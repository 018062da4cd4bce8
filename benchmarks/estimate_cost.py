"""What the estimate without test images costs: seconds of it after a round beside the seconds of the round.

python -m benchmarks.estimate_cost
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

import dfkd
from benchmarks.cases import CASES
from benchmarks.records import write_record
from dfkd.data.readers import STATISTICS
from dfkd.engine.core import Method, Task
from dfkd.engine.driver import Watch
from dfkd.engine.driver import run as drive
from dfkd.engine.heldout import make_gauge
from dfkd.engine.plan import Plan
from dfkd.engine.records import Keep
from dfkd.engine.runtime import Runtime
from dfkd.prepare import build_task
from dfkd.settings import Images


def digits() -> tuple[Task, Method[Any], Plan]:
    """NAYER on 8 by 8 pixels with a tenth of the published student steps, on batches of 64 instead of 512."""
    torch.manual_seed(0)
    mean, std = STATISTICS["digits"]
    data = Images(image_size=(1, 8, 8), mean=mean, std=std, classes=10)
    nets = [dfkd.build(name, classes=10, channels=1) for name in ("wrn16-2", "wrn10-1")]
    task = build_task(nets[0], nets[1], data=data, text="index", runtime=Runtime(device="cpu").launch())
    method = dfkd.NAYER(steps=20, synthesis_batch=100, batches=2, width=32, channels=16, pad=1, flip=False)
    return task, method, Plan(rounds=3, steps=40, batch_size=64)


def cifar() -> tuple[Task, Method[Any], Plan]:
    """NAYER at CIFAR's shape with a tenth of the published student steps and generator steps, on batches of 128."""
    case = CASES["nayer-small"]
    return case.task(), case.method, replace(case.plan, rounds=2, steps=40)


def cost(task: Task, method: Method[Any], plan: Plan) -> dict[str, Any]:
    """Medians over rounds, and what the held-out images took before the first one."""
    keep = Keep()
    began = time.monotonic()
    gauge = make_gauge(task, method, plan)
    made = time.monotonic() - began
    drive(task, method, plan, Watch(observers=(keep,), gauge=gauge))
    seconds = [record.estimate.seconds for record in keep.records if record.estimate is not None]
    rounds = [record.seconds for record in keep.records]
    shares = [a / b for a, b in zip(seconds, rounds, strict=True)]
    return {
        "held_out_images": sum(len(images) for images, _ in gauge.sets.values()),
        "making_them_seconds": made,
        "estimate_seconds": statistics.median(seconds),
        "round_seconds": statistics.median(rounds),
        "share": statistics.median(shares),
        "plan": {"steps": plan.steps, "batch_size": plan.batch_size, "rounds": plan.rounds},
    }


def main() -> None:
    torch.set_num_threads(1)
    held = {"digits": cost(*digits()), "cifar": cost(*cifar())}
    print(write_record("estimate/cost", held))
    for name, row in held.items():
        print(
            f"{name}: {row['estimate_seconds']:.2f} s after a round of {row['round_seconds']:.1f} s, {row['share']:.1%}"
        )


if __name__ == "__main__":
    main()
