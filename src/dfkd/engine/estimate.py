"""What a run will take, measured on its first rounds: time by phase, images, memory, disk."""

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dfkd.data.space import free_disk, free_memory
from dfkd.engine.around import Around
from dfkd.engine.checkpoint import Checkpoint, pools_of
from dfkd.engine.core import Clock, Method, Metrics, State, Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.evaluate import evaluate, predictions
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RoundRecord
from dfkd.engine.verify import preserving
from dfkd.engine.work import peak_memory
from dfkd.types import Batch

__all__ = ["Estimate", "Measured", "Pools", "Timing", "estimate", "estimator", "extrapolate"]

STEPS = 25
"""Student steps measured in a round: they are all alike."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one round, as measured, and the images it made."""

    warmup: bool
    synthesis: float
    student: float
    save: float
    images: int


@dataclass(frozen=True)
class Pools:
    """What the pools will hold: rows there is room for, rows now, and bytes of a row.

    ``spilled`` pools lie on disk; of those and of ``reserved`` ones no memory is still to be taken.
    """

    capacity: int = 0
    rows: int = 0
    row_bytes: float = 0.0
    spilled: bool = False
    reserved: bool = False


@dataclass(frozen=True)
class Measured:
    """Everything the first rounds showed.

    Attributes:
        timings: of every round; ``steps``: student steps in each.
        look: seconds of the teacher's predictions and of one evaluation.
        pools: at the end of these rounds.
        peak, state, student, image: bytes of memory, of a checkpoint without pools, of the weights, of one image.
        period: rounds from one heavier round to the next.
        turns: in which the ``steps`` of a round are taken, with a synthesis before each.
    """

    timings: tuple[Timing, ...]
    steps: int
    look: tuple[float, float]
    pools: Pools
    peak: int
    state: int
    student: int
    image: int
    period: int = 1
    turns: int = 1


@dataclass(frozen=True)
class Estimate:
    """What a whole run will take, per process; the student's files and the time are those of process 0.

    Attributes:
        seconds: by phase: ``start`` (what only the first rounds cost, compilation above all), ``warm-up``,
            ``synthesis``, ``student``, ``evaluation``, ``saving``.
        images: synthetic images made.
        pool: bytes of the stored images and features at the end.
        memory: largest use of the device's memory (of the process, on the CPU), and ``memory_free``: what it may take.
        disk: checkpoint with pools, student, samples; ``disk_free``: room in the folder asked about.
    """

    seconds: dict[str, float]
    images: int
    pool: int
    memory: int
    memory_free: int
    disk: int
    disk_free: int

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())


def estimate(
    task: Task, method: Method[Any], plan: Plan, watch: Watch | None = None, out: Path | None = None
) -> Estimate:
    """Measure up to two warm-up rounds and two rounds of few student steps, and extrapolate to ``plan``.

    The first of each kind counts once, the second for all others. Where heavier rounds come back (``Method.period``:
    a selection in every few rounds), the second is the next of those and a third one stands for the rounds between.
    The student and the random streams are put back: a run that follows is the one that would have been.

    Args:
        task, method, plan: what :func:`~dfkd.engine.driver.run` would take.
        watch: its test images, how often it would look and save, and whether its judge keeps a student; its observers
            and checkpoint are not used.
        out: folder whose disk has to take the run (default: the one of temporary files). Nothing is written there.

    Raises:
        UserError: whatever the run itself would refuse.
    """
    return estimator(task, method, plan, watch, out)(plan)


def estimator(
    task: Task, method: Method[Any], plan: Plan, watch: Watch | None = None, out: Path | None = None
) -> Callable[[Plan], Estimate]:
    """What :func:`estimate` measures of ``plan``, to be extrapolated to it and to plans with fewer rounds."""
    watch = watch or Watch()
    extra = {
        name: copy.deepcopy(value)
        for name, value in task.student.net.state_dict().items()
        if not isinstance(value, Tensor)
    }
    streams = task.runtime.streams()
    free = free_memory(task.runtime.device) + _bytes_in_use(task)
    try:
        with preserving(task.student), tempfile.TemporaryDirectory(prefix="dfkd-dry-run-") as folder:
            measured = _measure(task, method, plan, watch, Path(folder))
    finally:
        task.student.net.load_state_dict(extra, strict=False)  # what a module keeps beside its tensors
        task.runtime.restore_streams(streams)
    disk_free = free_disk(out)
    return lambda other: extrapolate(measured, other, watch, free, disk_free)


def extrapolate(measured: Measured, plan: Plan, watch: Watch, free: int, disk_free: int) -> Estimate:
    """From the measured rounds to the whole plan. Pure arithmetic."""
    kinds = [[t for t in measured.timings if t.warmup == warmup] for warmup in (True, False)]
    (warm, rounds), factor, turns = kinds, plan.steps / measured.steps, plan.turns / measured.turns
    looks = _looks(plan, watch)
    heavy = rounds[:2] if measured.period > 1 else rounds  # the last one comes back every period rounds
    often = math.ceil(plan.rounds / measured.period)
    seconds = {
        "start": _extra(warm, "synthesis") + _extra(heavy, "synthesis") + _extra(rounds, "student"),
        "warm-up": plan.warmup * turns * (warm[-1].synthesis if warm else 0.0),
        "synthesis": turns * (often * heavy[-1].synthesis + (plan.rounds - often) * rounds[-1].synthesis),
        "student": plan.rounds * factor * rounds[-1].student,
        "evaluation": looks * measured.look[1] + (measured.look[0] if looks else 0.0),
    }
    saves = _saves(plan, watch, sum(seconds.values()))
    seconds["saving"] = saves * rounds[-1].save
    of_rounds = plan.warmup * (warm[-1].images if warm else 0) + plan.rounds * rounds[-1].images
    images = round(turns * of_rounds)
    pools, measured_images = measured.pools, sum(t.images for t in measured.timings)
    rows = min(pools.capacity, math.ceil(pools.rows * images / measured_images)) if measured_images else pools.rows
    pool = round(rows * pools.row_bytes)
    growth = 0 if pools.reserved else pool - round(pools.rows * pools.row_bytes)
    sheets = math.ceil(plan.total / watch.samples_every) if watch.samples_every else 0
    spill = round(pools.capacity * pools.row_bytes) if pools.spilled else 0
    picked = 4 * measured.student if watch.judge is not None and watch.judge.keep else 0  # in each save, and at the end
    disk = 3 * measured.state + picked + pool + 2 * measured.student + sheets * watch.samples * measured.image + spill
    return Estimate(seconds, images, pool, measured.peak + growth, free, disk, disk_free)


def _extra(timings: list[Timing], part: str) -> float:
    """What the first of these rounds took beyond the last."""
    return max(0.0, getattr(timings[0], part) - getattr(timings[-1], part)) if timings else 0.0


def _looks(plan: Plan, watch: Watch) -> int:
    """Rounds that are evaluated."""
    if watch.test is None:
        return 0
    due = range(plan.warmup, plan.total)
    return sum((round + 1) % watch.evaluate_every == 0 or round + 1 == plan.total for round in due)


def _saves(plan: Plan, watch: Watch, seconds: float) -> int:
    """Checkpoints within ``seconds``: after every round, or as often as the least time between them allows."""
    if watch.save_every <= 0:
        return plan.total
    return min(plan.total, int(seconds / watch.save_every) + 1)


@final
@dataclass(frozen=True)
class _Rehearsal(Around[Any]):
    """``method`` in a shorter run, with the memory that the whole plan asks for."""

    method: Method[Any]
    whole: Plan

    @property
    def inner(self) -> Method[Any]:
        return self.method

    def setup(self, task: Task, plan: Plan) -> State:
        state: State = self.method.setup(task, self.whole)
        return state

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        return self.method.synthesize(task, state, self._whole(clock))

    def batch(self, task: Task, state: State, clock: Clock) -> Batch:
        return self.method.batch(task, state, self._whole(clock))

    def _whole(self, clock: Clock) -> Clock:
        """This moment in the whole plan, of which the last warm-up rounds and most of a period are left out."""
        left_out = 0 if clock.warmup else self.whole.warmup - clock.plan.warmup
        if not clock.warmup and clock.round > clock.plan.warmup:
            left_out += _period(self.method, self.whole) - 1
        return Clock(
            replace(self.whole, steps=clock.plan.steps, turns=clock.plan.turns), clock.round + left_out, clock.step
        )


def _period(method: Method[Any], plan: Plan) -> int:
    """The method's, or 1 where the plan ends before it comes round."""
    period = method.period()
    return period if period < plan.rounds else 1


class _Stopwatch(Observer):
    """Notes when rounds were reported: between a report and the next round lies the save."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.reported: list[float] = []

    def rounded(self, record: RoundRecord) -> None:
        """Note the time."""
        self.records.append(record)
        self.reported.append(time.monotonic())

    def timings(self, ended: float) -> tuple[Timing, ...]:
        """What every round took; the run ended at ``ended``."""
        timings, before = [], 0.0
        starts = [later - record.seconds for later, record in zip(self.reported[1:], self.records[1:], strict=True)]
        for record, reported, start in zip(self.records, self.reported, [*starts, ended], strict=True):
            images = record.metrics.get("images", 0.0)
            synthesis, student = (record.metrics[f"seconds/{phase}"] for phase in ("synthesis", "student"))
            save = max(0.0, start - reported)
            timings.append(Timing(record.warmup, synthesis, student, save, round(images - before)))
            before = images
        return tuple(timings)


def _measure(task: Task, method: Method[Any], plan: Plan, watch: Watch, folder: Path) -> Measured:
    """Run the short plan, and read clocks, memory and files."""
    period = _period(method, plan)
    rounds = min(plan.rounds, 2 if period == 1 else 3)
    steps, turns = _few(plan)
    short = replace(plan, rounds=rounds, warmup=min(plan.warmup, 2), steps=steps, turns=turns)
    stopwatch = _Stopwatch()
    checkpoint = Checkpoint(folder, barrier=task.runtime.barrier)  # each process has its own: machines may share none
    if task.runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(task.runtime.device)
    state = run(task, _Rehearsal(method, plan), short, Watch([stopwatch], checkpoint=checkpoint, save_every=0.0))
    timings = stopwatch.timings(time.monotonic())
    return Measured(
        timings,
        short.steps,
        _look(task, watch),
        _pools(state),
        peak_memory(task.runtime.device, reserved=True),
        max((path.stat().st_size for path in folder.glob("state-*.pt")), default=0),
        sum(t.nbytes for t in task.student.net.state_dict().values() if isinstance(t, Tensor)),
        math.prod(task.image_shape),
        period,
        short.turns,
    )


def _few(plan: Plan) -> tuple[int, int]:
    """Few student steps, and the turns they are taken in."""
    turns = max(1, min(plan.turns, STEPS // plan.steps_in_turn))
    return min(turns * plan.steps_in_turn, STEPS), turns


def _look(task: Task, watch: Watch) -> tuple[float, float]:
    """Seconds of the teacher's predictions, made once, and of one evaluation of the student."""
    if watch.test is None:
        return 0.0, 0.0
    images, labels = watch.test
    began = time.monotonic()
    guess = predictions(task.teacher, images, task.runtime)
    task.runtime.wait()
    between = time.monotonic()
    evaluate(task.student, images, labels, task.classes, task.runtime, guess)
    return between - began, time.monotonic() - between


def _pools(state: State) -> Pools:
    """All pools that fill, as one: the room of the largest, and what one of its rows costs with those beside it."""
    pools = [pool for pool in pools_of(state).values() if len(pool)]
    if not pools:
        return Pools()
    most = max(pools, key=lambda pool: pool.capacity)
    size = sum(pool.nbytes for pool in pools)
    spilled = any(pool.spilled for pool in pools)
    return Pools(most.capacity, len(most), size / most.capacity, spilled, spilled or most.device.type == "cuda")


def _bytes_in_use(task: Task) -> int:
    """Bytes this process holds already, which it need not take again."""
    if task.runtime.device.type == "cuda":
        return torch.cuda.memory_reserved(task.runtime.device)
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0
