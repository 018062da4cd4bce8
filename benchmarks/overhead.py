"""Our loop against the bare passes it cannot avoid: ``python -m benchmarks.overhead [CASE ...] [--label NAME]``.

Any recipe: ``python -m benchmarks.overhead --recipe nayer/cifar10-wrn40-2-wrn16-2 [--set plan.batch_size=64 ...]``, at
its own networks, batch sizes and image shape, with random weights and images, so that no data are needed; on the CPU.

The overhead ratio of a case is (time of the method's own verbs, the student's loss and the optimiser's steps) divided
by (time of ``benchmarks.bare``). Where a method makes no images (KD3, the yardsticks) only the student's is measured.
Both sides take turns in one process, and the median of the turns' ratios counts. Fixed costs of a synthetic batch (a
new optimiser, fresh noise, storing) are spread over 4 generator steps here, over 30 to 200 in a real run. Seconds are
of the processor, which a busy machine disturbs less than those of the clock; both are in the record,
``results/speed/overhead-LABEL/CASE.json``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from benchmarks.bare import Bare, trained_weights
from benchmarks.cases import CASES, STEPS
from benchmarks.recipe_case import recipe_case
from benchmarks.records import write_record
from dfkd.allocator import keep_freed_memory
from dfkd.engine.core import Clock, Method, State, Task
from dfkd.engine.driver import make_optimizer
from dfkd.engine.plan import Plan
from dfkd.methods.kd3 import KD3State

PHASES = ("generator", "student")


class Case(Protocol):
    """What is measured: a method with its plan on a pair."""

    @property
    def method(self) -> Method[Any]:
        """With ``STEPS`` steps for one batch of images, where it makes any."""

    @property
    def plan(self) -> Plan:
        """With as many student steps as are measured; round 1 must make images."""

    @property
    def teacher(self) -> str:
        """Its name."""

    @property
    def student(self) -> str:
        """Its name."""

    @property
    def batch(self) -> int:
        """Images in a student step."""

    def task(self) -> Task:
        """A fresh one."""


class Ours:
    """The method's own work, step by step as the driver does it."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan = case, case.plan
        self.task: Task = case.task()
        self.state: State = case.method.setup(self.task, self.plan)
        self.task.runtime.place(self.state.joint)
        self.weights = trained_weights(self.task, self.state)
        self.optimizer = make_optimizer([*self.weights, *self.state.joint.parameters()], self.plan)
        if isinstance(self.state, KD3State):  # random networks are sure of nothing: take every web image
            self.state.chosen, self.state.predicted = self.state.rows, torch.zeros_like(self.state.rows)
        else:
            self.generator_steps()  # the pool holds something

    def generator_steps(self) -> None:
        """One batch of synthetic images, or one of every turn: ``STEPS`` steps."""
        self.task.student.freeze()
        for turn in range(self.plan.turns):
            self.case.method.synthesize(self.task, self.state, Clock(self.plan, 1, turn * self.plan.steps_in_turn))

    def student_steps(self) -> None:
        """A round's student steps."""
        self.task.student.freeze().train()
        self.state.joint.train()
        for weight in self.weights:
            weight.requires_grad_(True)
        for k in range(self.plan.steps):
            with torch.no_grad():
                batch = self.case.method.batch(self.task, self.state, Clock(self.plan, 1, k))
            loss = self.case.method.loss(self.task, self.state, batch)
            self.task.runtime.step(loss, self.optimizer, *self.state.optimizers, clip=self.plan.clip)


def compare(case: Case, repeats: int, phases: Sequence[str] = PHASES) -> dict[str, Any]:
    """Seconds of every turn and the median ratios."""
    ours = Ours(case)
    bare = Bare(case.method, case.plan, ours.task, ours.state)
    sides: dict[str, Callable[[], None]] = {
        "generator/ours": ours.generator_steps,
        "generator/bare": lambda: _repeat(bare.generator_step),
        "generator/bare with statistics": lambda: _repeat(lambda: bare.generator_step(statistics=True)),
        "student/ours": ours.student_steps,
        "student/bare": lambda: _each(bare.student_step, ours.plan.steps),
    }
    missing = {"generator/ours", "generator/bare"} if not bare.makes else set()
    missing |= set() if bare.reads else {"generator/bare with statistics"}
    sides = {name: side for name, side in sides.items() if name.split("/")[0] in phases and name not in missing}
    for side in sides.values():
        bare.prepare()
        side()
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            torch.manual_seed(turn)  # D3K draws the shape of its generator: the same on both sides
            if name.startswith("generator/bare"):
                bare.prepare()
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
        if bare in seconds
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
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument(
        "--recipe", nargs="+", default=[], help="names (`dfkd recipes`) or files, in place of the cases"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.NAME=VALUE", help="put over every recipe")
    parser.add_argument("--label", default="now", help="names the folder of the records")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    chosen: dict[str, Case] = {name: recipe_case(name, options.set, STEPS) for name in options.recipe}
    chosen = chosen or {name: CASES[name] for name in options.cases or CASES}
    for name, case in chosen.items():
        found = compare(case, options.repeats, options.phases)
        about = {"case": name, "teacher": case.teacher, "student": case.student, "batch": case.batch, "steps": STEPS}
        about |= {"set": options.set} if options.recipe else {}
        file = name.replace("/", "-")
        write_record(f"speed/overhead-{options.label}/{file}", {**about, "repeats": options.repeats, **found})
        print(name, {key: round(value, 3) for key, value in found["ratio"]["cpu"].items()}, flush=True)


if __name__ == "__main__":
    main()
