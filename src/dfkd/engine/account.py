"""Where the time of a run goes, round by round, and how much of what the machine could do is used."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch

from dfkd.engine.around import Around
from dfkd.engine.checkpoint import Checkpoint, pools_of
from dfkd.engine.core import Clock, Method, Metrics, State, Task
from dfkd.engine.driver import Watch, make_optimizer, run
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RoundRecord
from dfkd.engine.work import Ceilings, Work, ceilings, count_work, peak_memory, wait
from dfkd.types import Batch, Bytes, Labels

__all__ = ["Account", "Phases", "TimedMethod", "Timer", "account"]


@dataclass(frozen=True)
class Phases:
    """Seconds of one round: making images; drawing batches; the student's steps without that; looking; saving."""

    synthesis: float
    batch: float
    step: float
    evaluation: float
    saving: float

    @property
    def total(self) -> float:
        """The whole round."""
        return self.synthesis + self.batch + self.step + self.evaluation + self.saving


@dataclass(frozen=True)
class Account:
    """What :func:`account` found.

    Attributes:
        rounds: each round's phases. The first also warms up; :attr:`typical` leaves it out where there are others.
        steps: student steps in a round.
        synthesis: work of one round's synthesis; None where it cannot be counted (compiled code, some networks).
        step: work of one student step, drawing its batch included; likewise.
        ceilings: of this machine, measured in this process.
        peak_bytes: most memory until the last round ended.
        pool_bytes: of the pool, full or not, with room for what this plan makes; 0 for a method without one.
    """

    rounds: tuple[Phases, ...]
    steps: int
    synthesis: Work | None
    step: Work | None
    ceilings: Ceilings
    peak_bytes: int
    pool_bytes: int

    @property
    def typical(self) -> Phases:
        """The median of every phase."""
        rounds = self.rounds[1:] or self.rounds
        names = Phases.__dataclass_fields__
        return Phases(*(statistics.median(getattr(phases, name) for phases in rounds) for name in names))


def account(
    task: Task,
    method: Method[Any],
    plan: Plan,
    test: tuple[Bytes, Labels] | None = None,
    save: Checkpoint | None = None,
) -> Account:
    """Run ``plan`` and take its time, then count one more synthesis and one more student step.

    Args:
        task, method, plan: as :func:`~dfkd.engine.driver.run` takes them; the student is trained.
        test: labelled images to evaluate on after every round.
        save: where to save after every round.
    """
    timer = Timer()
    watch = Watch([timer], test, checkpoint=save, save_every=0.0)
    state = run(task, TimedMethod(method, timer), plan, watch)
    timer.end_run()
    peak = peak_memory(task.runtime.device)  # of the rounds: counting and the ceilings take memory of their own
    counts = None if task.runtime.compiled else _count(task, method, state, plan)
    pool = pools_of(state).get("pool")
    return Account(
        tuple(timer.rounds),
        plan.steps,
        None if counts is None else counts[0],
        None if counts is None else counts[1],
        ceilings(task.runtime.device, task.runtime.precision),
        peak,
        0 if pool is None else pool.nbytes,
    )


@dataclass
class Timer(Observer):
    """An observer that, with :class:`TimedMethod`, takes the time of every phase, all turns of a round together."""

    rounds: list[Phases] = field(default_factory=list)
    _round_start: float | None = None  # when the first synthesis of the round that is on began
    _batch_seconds: float = 0.0  # of the round that is on
    _unsaved: tuple[Phases, float] | None = None  # a round whose saving goes on, and since when

    def begin_synthesis(self, now: float) -> None:
        """A synthesis begins; before the first one of a round lies the saving of the round before."""
        if self._round_start is None:
            self._add_saving(now)
            self._round_start = now

    def add_batch(self, seconds: float) -> None:
        """One more batch, which took so long."""
        self._batch_seconds += seconds

    def end_run(self) -> None:
        """The run is over."""
        self._add_saving(time.perf_counter())

    def rounded(self, record: RoundRecord) -> None:
        """The record knows what syntheses and student's steps took, all turns together; the rest was looking."""
        now, start = time.perf_counter(), self._round_start
        synthesis, student = record.metrics["seconds/synthesis"], record.metrics["seconds/student"]
        looking = 0.0 if start is None else max(0.0, now - start - synthesis - student)
        self._unsaved = Phases(synthesis, self._batch_seconds, student - self._batch_seconds, looking, 0.0), now
        self._round_start, self._batch_seconds = None, 0.0

    def _add_saving(self, now: float) -> None:
        """The round before is complete: since it was reported, it was saved."""
        if self._unsaved is not None:
            phases, since = self._unsaved
            self.rounds.append(replace(phases, saving=now - since))
            self._unsaved = None


@final
@dataclass(frozen=True)
class TimedMethod(Around[State]):
    """Another method whose synthesis and batches are timed; on an accelerator each waits for the device."""

    of: Method[Any]
    timer: Timer

    @property
    def inner(self) -> Method[Any]:
        """The method that is timed."""
        return self.of

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        """Of the other method; the driver takes its time, which ends when the device is done."""
        wait(task.runtime.device)
        self.timer.begin_synthesis(time.perf_counter())
        metrics = self.inner.synthesize(task, state, clock)
        wait(task.runtime.device)
        return metrics

    def batch(self, task: Task, state: State, clock: Clock) -> Batch:
        """Of the other method, timed."""
        wait(task.runtime.device)
        began = time.perf_counter()
        batch = self.inner.batch(task, state, clock)
        wait(task.runtime.device)
        self.timer.add_batch(time.perf_counter() - began)
        return batch


def _count_work(work: Callable[[], object]) -> Work | None:
    """The work of what has run before without the counter; None where the counter makes it fail."""
    try:
        return count_work(work)
    except Exception:  # torch's counter follows modules, and the network is the user's
        return None


def _count(task: Task, method: Method[Any], state: State, plan: Plan) -> tuple[Work | None, Work | None]:
    """Work of a synthesis and of a student step, as far as it can be counted."""
    clock = Clock(plan, plan.total - 1)
    parameters = task.student.net.named_parameters()
    learnable = [p for name, p in parameters if p.requires_grad and name not in state.fixed_parameters]
    task.student.freeze()
    synthesis = _count_work(lambda: method.synthesize(task, state, clock))
    for parameter in learnable:
        parameter.requires_grad_(True)
    task.student.train()
    optimizer = make_optimizer([*learnable, *state.joint.parameters()], plan)

    def step() -> None:
        with torch.no_grad():
            batch = method.batch(task, state, clock)
        task.runtime.step(method.loss(task, state, batch), optimizer, *state.optimizers, clip=plan.clip)

    of_round = None if synthesis is None else Work(synthesis.flops * plan.turns, synthesis.bytes * plan.turns)
    return of_round, _count_work(step)
