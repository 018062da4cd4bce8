"""Where the time of a run goes, round by round, and how much of what the machine could do is used."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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

__all__ = ["Account", "Phases", "Timed", "Timer", "account"]


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
    state = run(task, Timed(method, timer), plan, watch)
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
    """An observer that, with :class:`Timed`, takes the time of every phase."""

    rounds: list[Phases] = field(default_factory=list)
    _began: float = 0.0
    _made: float = 0.0
    _batches: float = 0.0
    _looked: tuple[Phases, float] | None = None

    def end_synthesis(self, began: float) -> None:
        """A synthesis that began then has ended; what lies between the round before and it was saving."""
        self._close(began)
        self._began, self._made, self._batches = began, time.perf_counter(), 0.0

    def drew(self, seconds: float) -> None:
        """One batch took so long."""
        self._batches += seconds

    def end_run(self) -> None:
        """The run is over."""
        self._close(time.perf_counter())

    def rounded(self, record: RoundRecord) -> None:
        """The record knows when the student's steps ended; the rest was looking."""
        now, student = time.perf_counter(), record.metrics["seconds/student"]
        synthesis = self._made - self._began
        looking = max(0.0, now - self._made - student)
        self._looked = Phases(synthesis, self._batches, student - self._batches, looking, 0.0), now

    def _close(self, now: float) -> None:
        if self._looked is not None:
            phases, since = self._looked
            saving = now - since
            self.rounds.append(Phases(phases.synthesis, phases.batch, phases.step, phases.evaluation, saving))
            self._looked = None


@final
@dataclass(frozen=True)
class Timed(Around[State]):
    """Another method whose synthesis and batches are timed; on an accelerator each waits for the device."""

    of: Method[Any]
    timer: Timer

    @property
    def inner(self) -> Method[Any]:
        """The method that is timed."""
        return self.of

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        """Of the other method, timed."""
        wait(task.runtime.device)
        began = time.perf_counter()
        metrics = self.inner.synthesize(task, state, clock)
        wait(task.runtime.device)
        self.timer.end_synthesis(began)
        return metrics

    def batch(self, task: Task, state: State, clock: Clock) -> Batch:
        """Of the other method, timed."""
        wait(task.runtime.device)
        began = time.perf_counter()
        batch = self.inner.batch(task, state, clock)
        wait(task.runtime.device)
        self.timer.drew(time.perf_counter() - began)
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
    learnt = [p for name, p in parameters if p.requires_grad and name not in state.held]
    task.student.freeze()
    synthesis = _count_work(lambda: method.synthesize(task, state, clock))
    for parameter in learnt:
        parameter.requires_grad_(True)
    task.student.train()
    optimizer = make_optimizer([*learnt, *state.joint.parameters()], plan)

    def step() -> None:
        with torch.no_grad():
            batch = method.batch(task, state, clock)
        task.runtime.step(method.loss(task, state, batch), optimizer, *state.optimizers, clip=plan.clip)

    of_round = None if synthesis is None else Work(synthesis.flops * plan.turns, synthesis.bytes * plan.turns)
    return of_round, _count_work(step)
