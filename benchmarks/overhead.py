"""Our loop against the bare passes it cannot avoid: ``python -m benchmarks.overhead [CASE ...] [--label NAME]``.

The overhead ratio of a case is (time of the method's own verbs, the student's loss and the optimiser's steps) divided
by (time of ``benchmarks.bare``). Both sides take turns in one process, and the median of the turns' ratios counts.
Fixed costs of a synthetic batch (a new optimiser, fresh noise, storing) are spread over 4 generator steps here, over
30 to 200 in a real run. Seconds are of the processor, which a busy machine disturbs less than those of the clock;
both are in the record, ``results/speed/overhead-LABEL/CASE.json``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.bare import Bare
from benchmarks.cases import CASES, STEPS, Case
from benchmarks.records import write_record
from dfkd.allocator import keep_freed_memory
from dfkd.engine.core import Clock, State, Task
from dfkd.engine.driver import make_optimizer

PHASES = ("generator", "student")


class Ours:
    """The method's own work, step by step as the driver does it."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan = case, case.plan
        self.task: Task = case.task()
        self.state: State = case.method.setup(self.task, self.plan)
        self.weights = [*self.task.student.net.parameters(), *self.state.joint.parameters()]
        self.optimizer = make_optimizer(self.weights, self.plan)
        self.generator_steps()  # the pool holds something

    def generator_steps(self) -> None:
        """One batch of synthetic images: ``STEPS`` steps."""
        self.task.student.freeze()
        self.case.method.synthesize(self.task, self.state, Clock(self.plan, 1))

    def student_steps(self) -> None:
        """A round's student steps."""
        self.task.student.requires_grad_(True).train()
        for k in range(self.plan.steps):
            with torch.no_grad():
                batch = self.case.method.batch(self.task, self.state, Clock(self.plan, 1, k))
            loss = self.case.method.loss(self.task, self.state, batch)
            self.task.runtime.step(loss, self.optimizer, clip=self.plan.clip)


def compare(case: Case, repeats: int, phases: Sequence[str] = PHASES) -> dict[str, Any]:
    """Seconds of every turn and the median ratios."""
    ours = Ours(case)
    bare = Bare(case, ours.task, ours.state)
    sides: dict[str, Callable[[], None]] = {
        "generator/ours": ours.generator_steps,
        "generator/bare": lambda: _repeat(bare.generator_step),
        "generator/bare with statistics": lambda: _repeat(lambda: bare.generator_step(statistics=True)),
        "student/ours": ours.student_steps,
        "student/bare": lambda: _each(bare.student_step, ours.plan.steps),
    }
    sides = {name: side for name, side in sides.items() if name.split("/")[0] in phases}
    for side in sides.values():
        side()
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.perf_counter(), time.process_time()
            side()
            wall[name].append(time.perf_counter() - began[0])
            cpu[name].append(time.process_time() - began[1])
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "ratio": {"cpu": ratios(cpu), "wall": ratios(wall)},
    }


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median over turns of ours / bare: per phase."""
    pairs = {
        "generator": ("generator/ours", "generator/bare"),
        "generator, with statistics": ("generator/ours", "generator/bare with statistics"),
        "student": ("student/ours", "student/bare"),
    }
    return {
        name: statistics.median(a / b for a, b in zip(seconds[ours], seconds[bare], strict=True))
        for name, (ours, bare) in pairs.items()
        if ours in seconds
    }


def _repeat(step: Callable[[], None]) -> None:
    for _ in range(STEPS):
        step()


def _each(step: Callable[[int], None], steps: int) -> None:
    for k in range(steps):
        step(k)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--label", default="now", help="names the folder of the records")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    for name in options.cases:
        case = CASES[name]
        found = compare(case, options.repeats, options.phases)
        about = {"case": name, "teacher": case.teacher, "student": case.student, "batch": case.batch, "steps": STEPS}
        write_record(f"speed/overhead-{options.label}/{name}", {**about, "repeats": options.repeats, **found})
        print(name, {key: round(value, 3) for key, value in found["ratio"]["cpu"].items()}, flush=True)


if __name__ == "__main__":
    main()
