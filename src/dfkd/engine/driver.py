"""The one loop. It alone switches modes, takes student steps, watches, and saves."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Clock, Method, State, Task, unmet
from dfkd.engine.declared import Parts, check_declared, check_grown, parts_of
from dfkd.engine.evaluate import evaluate, predictions
from dfkd.engine.laps import Laps
from dfkd.engine.plan import Plan
from dfkd.engine.records import Estimate, Evaluation, Observer, RoundRecord
from dfkd.engine.runtime import gradients_on
from dfkd.engine.states import pack, pools_of, unpack, unsaved_buffers
from dfkd.engine.stopping import Judge
from dfkd.errors import UserError
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Batch

__all__ = ["Watch", "make_optimizer", "revisit", "run"]

OTHERS = "process 0 asked for it"


@dataclass
class Watch:
    """How a run is looked at and saved; nothing here changes what is trained.

    Attributes:
        observers: told about every round.
        test: labelled test images (uint8, int64), used only to report.
        evaluate_every: rounds between evaluations (the last round always counts).
        metrics_every: rounds between readings of losses and other device scalars (the last round is always read).
        samples_every: rounds between sample grids; 0 for none.
        samples: images per grid.
        checkpoint: where to save, or None.
        save_every: least seconds between saves (the last round always saves).
        gauge: measures the student without test images, when it would be evaluated; None: not.
        judge: follows what the gauge measures, ends the run by its rules, and keeps the best student; only that of
            process 0 counts.
        ready: called once everything is set up and a checkpoint, if any, has been read, before the first round.
        teacher_guess: the classes the teacher chooses for the test images, once they were asked for.
        stopped: why the run ended before its last round: a rule or an observer asked for it, or the student was lost.
        final: the newest evaluation; after a stop, that of the student as it then was.
        nonfinite_losses: names of those of the synthesis that were NaN or infinite; a warning told of each once.
    """

    observers: Sequence[Observer] = ()
    test: tuple[Tensor, Tensor] | None = None
    evaluate_every: int = 1
    samples_every: int = 0
    samples: int = 100
    checkpoint: Checkpoint | None = None
    save_every: float = 30.0
    metrics_every: int = 1
    gauge: Callable[[Task, tuple[Tensor, Tensor] | None], Estimate] | None = None
    judge: Judge | None = None
    ready: Callable[[], None] = lambda: None
    teacher_guess: Tensor | None = field(default=None, init=False)
    stopped: str | None = field(default=None, init=False)
    final: Evaluation | None = field(default=None, init=False)
    nonfinite_losses: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        least = {"evaluate_every": 1, "metrics_every": 1, "samples_every": 0, "save_every": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not value >= minimum:
                raise UserError(f"watch needs {name} of at least {minimum}, got {value}; raise it")


@gradients_on()
def run(task: Task, method: Method[Any], plan: Plan, watch: Watch | None = None, resume: bool = False) -> State:
    """Distil ``task.teacher`` into ``task.student`` by ``method`` within ``plan``. The last round is the result.

    A rule (``watch.judge``) or an observer (:meth:`~dfkd.engine.records.Observer.rounded`) may end the run before;
    ``watch.stopped`` then says why. A run that a rule ended goes on only where the rule allows it.

    Args:
        task: what; the student is trained in place.
        method: how.
        plan: how long.
        watch: observers, test images, checkpoint.
        resume: continue from ``watch.checkpoint`` if it holds anything.

    Returns:
        The method's final state.

    Raises:
        UserError: the pair lacks what the method needs, the checkpoint does not fit, or the student's loss is NaN or
            infinite (``watch.stopped`` says so; what was saved before stays).
    """
    check(task, method)
    watch = watch or Watch()
    task.teacher.freeze()
    trainable = [p for p in task.student.net.parameters() if p.requires_grad]
    state, parts = _set_up(task, method, plan)
    task.runtime.share(task.student.net)
    learnable = _learnable_parameters(task, state)
    optimizer = make_optimizer([*learnable, *state.joint.parameters()], plan)
    first = _restore(task, state, optimizer, watch) if resume else 0
    objective = task.runtime.compile(lambda batch: method.loss(task, state, batch))
    saved_at = time.monotonic()
    try:
        watch.ready()
        for round in range(first, _end(task, plan, watch, first)):
            began = time.monotonic()
            _set_rate(optimizer, plan.rate(round))
            outcome = _turns(task, method, state, plan, round, learnable, objective, optimizer, watch)
            record = _apply_rules(task, watch, _look(task, state, plan, watch, round, outcome, began))
            last = _ask(task, watch, record)
            due = watch.checkpoint and (last or _agree(task, time.monotonic() - saved_at >= watch.save_every))
            if due or "loss/student" in record.metrics:
                _check_finite(task, watch, outcome.loss, round)
            _warn_of_nonfinite(watch, record)
            if watch.checkpoint and due:
                check_grown(parts, state)
                _save(task, state, optimizer, watch, watch.checkpoint, round + 1)
                saved_at = time.monotonic()
            if last:
                break
    finally:  # also after Ctrl-C: the same modules may be given to a run that resumes
        for parameter in trainable:
            parameter.requires_grad_(True)
    return state


def check(task: Task, method: Method[Any], fitting: Sequence[str] = ()) -> None:
    """Refuse, before any work, a pair that lacks what ``method`` needs.

    Args:
        task, method: the pair and the method.
        fitting: names of methods that would fit, for the message.

    Raises:
        UserError: naming the first need that is not met.
    """
    missing = unmet(task, method)
    if missing:
        fits = f" (these fit: {', '.join(fitting)})" if fitting else ""
        raise UserError(f"{type(method).__name__} needs {missing[0].what}, got {missing[0].instead(task)}{fits}")


def _set_up(task: Task, method: Method[Any], plan: Plan) -> tuple[State, Parts]:
    """The method's state on the device, and the modules, optimisers and pools that a resume will fill."""
    state: State = method.setup(task, plan)
    task.runtime.place(state.joint)
    check_declared(state)
    return state, parts_of(state)


def _learnable_parameters(task: Task, state: State) -> list[nn.Parameter]:
    """What the run may change: parameters the user did not freeze and the method did not fix."""
    parameters = task.student.net.named_parameters()
    learnable = [p for name, p in parameters if p.requires_grad and name not in state.fixed_parameters]
    if not learnable and not list(state.joint.parameters()):
        raise UserError(
            "student needs parameters that may change, got none with requires_grad; call student.requires_grad_(True)"
        )
    return learnable


@dataclass
class _RoundOutcome:
    """What the turns of a round left behind: metrics, the sum of the student's losses over so many steps, the last
    batch, times."""

    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    loss: Tensor | None = None
    steps: int = 0
    batch: Batch | None = None
    synthesis: float = 0.0
    student: float = 0.0


def _turns(
    task: Task,
    method: Method[Any],
    state: State,
    plan: Plan,
    round: int,
    learnable: Sequence[nn.Parameter],
    objective: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    watch: Watch,
) -> _RoundOutcome:
    """One round: a synthesis, then the student's steps, ``plan.turns`` times."""
    outcome, laps = _RoundOutcome(), Laps(task.runtime.device)
    for turn in range(plan.turns):
        laps.mark("synthesis")
        task.student.freeze()
        state.joint.eval()
        first = turn * plan.steps_in_turn
        outcome.metrics.update(method.synthesize(task, state, Clock(plan, round, first)))
        laps.mark("student")
        _enter_student_phase(task, state, learnable)
        count = method.student_steps(task, state, Clock(plan, round, first)) if plan.steps_in(round) else 0
        steps = range(first, first + min(count, plan.steps_in_turn))
        _student_steps(task, method, state, Clock(plan, round), steps, objective, optimizer, watch, outcome)
        if task.runtime.world > 1:
            task.runtime.level(nn.ModuleList([task.student.net, state.joint]))
    task.student.eval()
    laps.mark("")
    outcome.synthesis, outcome.student = laps.seconds("synthesis"), laps.seconds("student")
    return outcome


def _student_steps(
    task: Task,
    method: Method[Any],
    state: State,
    clock: Clock,
    steps: range,
    objective: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    watch: Watch,
    outcome: _RoundOutcome,
) -> None:
    """The student's steps of one turn; their losses are added up in ``outcome``."""
    outcome.steps += len(steps)
    tick = max(1, clock.plan.steps // 20)
    for k in steps:
        with torch.no_grad():
            outcome.batch = method.batch(task, state, clock._replace(step=k))
        loss = objective(outcome.batch)
        task.runtime.step(loss, optimizer, *state.optimizers, clip=clock.plan.clip)
        outcome.loss = loss.detach() if outcome.loss is None else outcome.loss + loss.detach()
        if (k + 1) % tick == 0:
            for observer in watch.observers:
                observer.stepped(clock.round, "student", k + 1, clock.plan.steps)


def _enter_student_phase(task: Task, state: State, learnable: Sequence[Tensor]) -> None:
    """The student's turn: train mode, and gradients for the parameters it may change."""
    for parameter in learnable:
        parameter.requires_grad_(True)
    task.student.train()
    state.joint.train()


def _end(task: Task, plan: Plan, watch: Watch, first: int) -> int:
    """The round before which a run that begins with round ``first`` ends: at once, where a rule had ended it there."""
    reason = watch.judge.reason() if watch.judge is not None and 0 < first < plan.total else None
    if not _agree(task, reason is not None):
        return plan.total
    watch.stopped = reason or OTHERS
    return first


def _apply_rules(task: Task, watch: Watch, record: RoundRecord) -> RoundRecord:
    """``record`` with the reason for which a rule ends the run after it, if one does."""
    if watch.judge is None:
        return record
    watch.judge.look(record, task.student.net)
    last = record.round + 1 == record.rounds
    return replace(record, stopped=None if last or record.estimate is None else watch.judge.reason())


def _ask(task: Task, watch: Watch, record: RoundRecord) -> bool:
    """Tell the observers of a round. Was it the last one, by the plan, by a rule or by the word of one of them?

    A run that is stopped is evaluated as it then stands. Every process gives the same answer.
    """
    reasons = [record.stopped, *(observer.rounded(record) for observer in watch.observers)]
    if record.round + 1 == record.rounds:
        return True
    reason = next((reason for reason in reasons if reason), None)
    if not _agree(task, reason is not None):
        return False
    watch.stopped = reason or OTHERS
    if watch.test is not None and record.evaluation is None:
        watch.final = _evaluate(task, watch)
    return True


def _check_finite(task: Task, watch: Watch, loss: Tensor | None, round: int) -> None:
    """Stop a run whose student is lost, in every process at once, before its weights replace sound ones on disk."""
    value = 0.0 if loss is None else float(task.runtime.total(loss.clone()))
    if not math.isfinite(value):
        watch.stopped = f"the student's loss was {value} in round {round + 1}"
        raise UserError(
            f"student needs a finite loss, got {value} in round {round + 1}; start again with a lower plan.lr, "
            "a smaller plan.clip, or in fp32"
        )


def _warn_of_nonfinite(watch: Watch, record: RoundRecord) -> None:
    """Tell once of every loss of the synthesis that was not finite, whoever watches.

    The run goes on: a method that makes its generator anew recovers, and the student's own loss ends a run.
    """
    losses = {name.removeprefix("loss/"): value for name, value in record.metrics.items() if name.startswith("loss/")}
    for name, value in losses.items():
        if name != "student" and not math.isfinite(value) and name not in watch.nonfinite_losses:
            watch.nonfinite_losses.add(name)
            warnings.warn(
                f"the loss {name!r} was {value} in round {record.round + 1}, and the images may be worthless from then "
                "on; lower the method's learning rates, or run in fp32",
                stacklevel=3,
            )


def _agree(task: Task, due: bool) -> bool:
    """Process 0's decision, in every process; their clocks differ."""
    if task.runtime.world == 1:
        return due
    vote = torch.tensor(float(due and task.runtime.rank == 0), device=task.runtime.device)
    return bool(task.runtime.total(vote))


def make_optimizer(parameters: Sequence[Tensor], plan: Plan) -> Optimizer:
    """The student's optimiser, at the plan's first rate."""
    if plan.optimizer == "adam":
        return Adam(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
    return SGD(
        parameters,
        lr=plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        nesterov=plan.nesterov,
        fused=True,
    )


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _look(
    task: Task, state: State, plan: Plan, watch: Watch, round: int, outcome: _RoundOutcome, began: float
) -> RoundRecord:
    """Read the device scalars of this round, which began then, once, and evaluate when it is time."""
    last = round + 1 == plan.total
    read = last or (round + 1) % watch.metrics_every == 0
    due = watch.samples_every > 0 and ((round + 1) % watch.samples_every == 0 or last)
    metrics = {name: float(value) for name, value in outcome.metrics.items()} if read else {}
    metrics["lr"] = plan.rate(round)
    if outcome.loss is not None and read:
        metrics["loss/student"] = float(outcome.loss) / outcome.steps
    if task.runtime.compiled:
        metrics["graphs"] = float(task.runtime.graphs)
    metrics["seconds/synthesis"], metrics["seconds/student"] = outcome.synthesis, outcome.student
    samples = _samples(state, outcome.batch, watch.samples) if read or due else None
    pool = pools_of(state).get("pool")
    if pool is not None:
        metrics["pool"], metrics["images"] = float(len(pool)), float(pool.added)
    if samples is not None and read:
        metrics["pairwise_distance"] = _pairwise_distance(samples[0])
    judged = plan.steps_in(round) > 0 and ((round + 1) % watch.evaluate_every == 0 or last)
    evaluation, estimate = None, None
    if watch.test is not None and judged:
        evaluation = watch.final = _evaluate(task, watch)
    if watch.gauge is not None and judged:
        estimate = watch.gauge(task, samples)
    warmup, sheet = round < plan.warmup, samples if due else None
    seconds = time.monotonic() - began
    return RoundRecord(round, plan.total, warmup, seconds, metrics, evaluation, sheet, estimate)


def _evaluate(task: Task, watch: Watch) -> Evaluation:
    if watch.test is None:
        raise RuntimeError("an evaluation needs test images")
    images, labels = watch.test
    if watch.teacher_guess is None:
        watch.teacher_guess = predictions(task.teacher, images, task.runtime)
    return evaluate(task.student, images, labels, task.classes, task.runtime, watch.teacher_guess)


def _samples(state: State, batch: Batch | None, n: int) -> tuple[Tensor, Tensor] | None:
    """The newest stored images with their labels, or, where none are stored, the last batch the student saw."""
    pool = pools_of(state).get("pool")
    if pool is not None and "images" in pool.columns and len(pool):
        rows = pool.newest(n)
        labels = rows.get("labels", torch.zeros(len(rows["images"]), dtype=torch.int64))
        return rows["images"].cpu(), labels.cpu()
    if batch is None:
        return None
    labels = batch.labels if batch.labels is not None else torch.zeros(len(batch.images), dtype=torch.int64)
    return as_bytes(batch.images[:n]).cpu(), labels[:n].cpu()


def _pairwise_distance(images: Tensor) -> float:
    """Mean root-mean-square distance, in [0, 1] pixel units, between different images of up to 100."""
    x = as_images(images[:100]).flatten(1)
    n = len(x)
    return float(torch.cdist(x, x).sum() / max(n * (n - 1), 1) / x.shape[1] ** 0.5)


def _save(task: Task, state: State, optimizer: Optimizer, watch: Watch, to: Checkpoint, rounds: int) -> None:
    payload = {
        "rounds": rounds,
        "student": task.student.net.state_dict(),
        "buffers": unsaved_buffers(task.student.net),
        "state": pack(state),
        "optimizer": optimizer.state_dict(),
        "streams": task.runtime.streams(),
        "judge": None if watch.judge is None else watch.judge.state(),
    }
    to.save(rounds, payload, pools_of(state))


def _restore(task: Task, state: State, optimizer: Optimizer, watch: Watch) -> int:
    """Continue from the last save: its round."""
    if watch.checkpoint is None or not watch.checkpoint.exists():
        return 0
    with _mismatch_sentence(watch.checkpoint):
        payload = _reload(task, state, watch.checkpoint)
        optimizer.load_state_dict(payload["optimizer"])
        task.runtime.restore_streams(payload["streams"])
        if watch.judge is not None:
            watch.judge.restore(payload.get("judge"))  # newer than the first checkpoints
        return int(payload["rounds"])


def revisit(task: Task, method: Method[Any], plan: Plan, checkpoint: Checkpoint) -> State:
    """What a run remembered at its last save, to look at; ``task.student`` gets the weights of that save.

    Raises:
        UserError: the checkpoint cannot be read or is that of another pair or method.
    """
    check(task, method)
    task.teacher.freeze()
    state, _ = _set_up(task, method, plan)
    with _mismatch_sentence(checkpoint):
        _reload(task, state, checkpoint)
    task.student.eval()
    return state


def _reload(task: Task, state: State, checkpoint: Checkpoint) -> dict[str, Any]:
    """The payload of the last save; student, state and pools are filled from it."""
    payload = checkpoint.load(pools_of(state))
    task.student.net.load_state_dict(payload["student"])
    with torch.no_grad():
        for name, buffer in unsaved_buffers(task.student.net).items():
            if name in payload.get("buffers", {}):  # newer than the first checkpoints
                buffer.copy_(payload["buffers"][name])
    unpack(payload["state"], state, task.runtime.device)
    return payload


@contextmanager
def _mismatch_sentence(checkpoint: Checkpoint) -> Iterator[None]:
    """Whatever a checkpoint of something else makes fail, as one sentence."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        why = str(error).strip().splitlines()
        raise UserError(
            f"resume needs a checkpoint of this pair and method, got {checkpoint.folder} "
            f"({why[0] if why else type(error).__name__}); start again in a new folder"
        ) from error
