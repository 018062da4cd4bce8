"""Settings found without test images: many short runs, judged on one held-out set of images made from the teacher."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dfkd.api import distill
from dfkd.data.text import TextEmbedding
from dfkd.defaults import DEFAULT_METHOD
from dfkd.engine.core import Method, Need, Task
from dfkd.engine.driver import check
from dfkd.engine.evaluate import evaluate
from dfkd.engine.fingerprint import inputs_of
from dfkd.engine.heldout import inverted_set
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RoundRecord
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.exam import check_teacher
from dfkd.identity import settings_of, weights_hash
from dfkd.imports import first_line
from dfkd.inputs import as_classifier, output_folder, runtime_of, threads_of, with_fields
from dfkd.lent import loan_of, put_back
from dfkd.methods import METHODS
from dfkd.nets.zoo import Classifier
from dfkd.prepare import check_labelled, method_or_default, prepare
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import RUN_FILE, StoredRun, read_run
from dfkd.report.trial_page import write_search_page
from dfkd.report.trials import Trial, best_first, read_trials, trial_folder, write_trials
from dfkd.report.without_test import last_estimate
from dfkd.settings import Images, Machine, Stopping, Text, Watching
from dfkd.tune.folder import open_folder, search_lock
from dfkd.tune.ranges import Range, check_ranges, settings_with, value_of
from dfkd.tune.refused import RefusedTrials
from dfkd.tune.study import OBJECTIVE, PRUNED, Ledger, Pruner, check_optuna

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

__all__ = ["HELDOUT", "Door", "Search", "Searched", "conduct", "search", "trial_watching"]

HELDOUT = 512  # images that trials are judged on: one image is 0.2 % of agreement
MOST_REFUSALS = 3  # trials in a row whose run could not begin, after which a search ends
OnTrial = Callable[[Trial], None]


@dataclass(frozen=True)
class Searched:
    """What a search came to: its trials in their order, and the method and plan of the best one."""

    folder: Path
    trials: tuple[Trial, ...]
    method: Method[Any]
    plan: Plan

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest agreement on the held-out images; None before one is complete."""
        first = best_first(self.trials)[:1]
        return first[0] if first and first[0].state == "complete" else None


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        method, plan: the settings that trials begin from.
        ranges: dotted name to range.
        data: of the images; ``data.test`` is looked at after the search only.
        runtime: of every trial.
        trials: in the folder, over all processes.
        minutes: this process begins no trial after so many; None: no such limit.
        prune: end trials that are behind the median of earlier ones.
    """

    method: Method[Any]
    plan: Plan
    ranges: Mapping[str, Range]
    data: Images
    runtime: Runtime
    text: Text | TextEmbedding | Tensor | str = "auto"
    trials: int = 20
    minutes: float | None = None
    prune: bool = True

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"search needs at least one trial, got {self.trials}; raise --trials")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"search needs minutes above 0, got {self.minutes}; raise --minutes or leave it out")
        if self.runtime.world > 1:
            raise UserError(
                f"search needs one process for each run, got runtime.devices={self.runtime.world}; start the same "
                "command once for each GPU, on one folder"
            )


class Door(Protocol):
    """How trials are made where the search was called."""

    def pair(self, method: Method[Any], plan: Plan) -> tuple[Classifier, Classifier]:
        """Teacher, and the student as every trial begins with it."""
        ...

    def run(
        self, method: Method[Any], plan: Plan, folder: Path, resume: bool, images: Tensor, observer: Observer
    ) -> None:
        """The run of a trial, in its folder: judged on ``images``, watched by ``observer``."""
        ...


def search(
    teacher: nn.Module | Classifier,
    student: nn.Module | Classifier,
    method: Method[Any] | None = None,
    ranges: Mapping[str, str | Range] | None = None,
    *,
    out: str | Path,
    trials: int = 20,
    minutes: float | None = None,
    prune: bool = True,
    data: Images | None = None,
    text: Text | TextEmbedding | Tensor | str = "auto",
    plan: Plan | None = None,
    runtime: Machine | None = None,
    watch: Watching | None = None,
    tell: OnTrial | None = None,
    **values: Any,
) -> Searched:
    """Find settings of a method and its plan with which student and teacher agree most, without test images.

    Every trial is a run of :func:`dfkd.distill` in ``out/trials/0003``, from the same student and seed, and is judged
    by its agreement with the teacher on one set of images made from the teacher alone, which no trial learns from. The
    first trial has the settings that are given, where the ranges hold them, and none repeats another's settings. Test
    images, if given, are looked at when all trials are done. The same call goes on where a search was stopped, also in
    several processes on one folder. Needs the extra ``search``.

    Args:
        teacher, student, method, data, text, plan, runtime, watch, values: as :func:`dfkd.distill` takes them; neither
            network is changed.
        ranges: dotted name to range: ``{"method.lr": "0.001:0.1:log", "plan.batch_size": "64,128"}``.
        out: folder of the search: new, empty, or that of the same search.
        trials: of the whole search.
        minutes: this process begins no trial after so many.
        prune: end trials that are behind the median of earlier ones, at every tenth of their rounds.
        tell: hears of every trial that ends.

    Raises:
        UserError: anything that does not fit together, before any trial; a folder of something else, or of a search
            with other settings.
    """
    sections: dict[str, Any] = {"data": data or Images(), "text": Text(text) if isinstance(text, str) else text}  # type: ignore[arg-type]
    sections |= {"runtime": runtime or Machine(), "watch": watch or Watching()}
    sections, folder = with_fields("search", sections, values), output_folder(out, "search")
    if folder is None:
        raise UserError("search needs a folder for its trials, got none; give out")
    start = method_or_default(method, METHODS[DEFAULT_METHOD]())
    budget = start.budget() if plan is None else plan
    checked = check_ranges(ranges or {}, start, budget)
    machine: Machine = sections["runtime"]
    what = Search(
        start, budget, checked, sections["data"], runtime_of(machine), sections["text"], trials, minutes, prune
    )
    door = _Modules(as_classifier(teacher), as_classifier(student), what, machine, sections["watch"])
    with threads_of(machine):
        return conduct(what, door, folder, tell)


@dataclass(frozen=True)
class _Modules:
    """Trials of modules that Python gave: each has a copy of the student."""

    teacher: Classifier
    student: Classifier
    what: Search
    machine: Machine
    watch: Watching

    def pair(self, method: Method[Any], plan: Plan) -> tuple[Classifier, Classifier]:
        return self.teacher, replace(self.student, net=copy.deepcopy(self.student.net))

    def run(
        self, method: Method[Any], plan: Plan, folder: Path, resume: bool, images: Tensor, observer: Observer
    ) -> None:
        distill(
            *self.pair(method, plan),
            method,
            data=replace(self.what.data, test=None),
            text=self.what.text,
            plan=plan,
            runtime=self.machine,
            watch=trial_watching(self.watch, images),
            stop=Stopping(picked=False),
            out=folder,
            resume=resume,
            observers=[observer],
        )


def trial_watching(watch: Watching, images: Tensor) -> Watching:
    """How a trial is looked at: judged on ``images``; its student is not exported and no figures are drawn."""
    return replace(watch, estimate=images, quiet=True, export=False, figures=False, onnx="none", overlap=False)


def conduct(
    what: Search, door: Door, folder: Path, tell: OnTrial | None = None, note: Mapping[str, Any] | None = None
) -> Searched:
    """Begin, join or go on with the search in ``folder``, until its trials or this process's minutes are used up.

    Args:
        what: the search.
        door: makes the trials.
        folder: of the search.
        tell: hears of every trial that ends.
        note: further content of ``search.json``.

    Raises:
        UserError: anything that does not fit together.
    """
    check_optuna()
    until = None if what.minutes is None else time.monotonic() + 60 * what.minutes
    images = _open(what, door, folder, dict(note or {}))
    defaults = {name: value_of(what.method, what.plan, name) for name in what.ranges}
    ledger = Ledger(folder, what.ranges, defaults, what.runtime.seed, what.prune)
    names_outside = [name for name, value in defaults.items() if value not in what.ranges[name]]
    if names_outside and not ledger.trials():
        listing = ", ".join(f"{name} = {defaults[name]}" for name in names_outside)
        warnings.warn(f"no trial has the settings that are given: {listing} is outside its range", stacklevel=2)
    _carry_out_all(what, door, ledger, images, until, tell or (lambda trial: None))
    trials = _record_trials(ledger)
    if what.data.test is not None and not any(trial.state == "running" for trial in trials):
        trials = _examine(ledger, what, door, trials)
    first = best_first(trials)[:1]
    best = settings_with(what.method, what.plan, first[0].values if first and first[0].state == "complete" else {})
    write_search_page(folder)
    return Searched(folder, tuple(trials), *best)


def _carry_out_all(
    what: Search, door: Door, ledger: Ledger, images: Tensor, until: float | None, tell: OnTrial
) -> None:
    """Trials one after another, until theirs or this process's time is used up."""
    with closing(RefusedTrials(ledger)) as refused:
        while claim := ledger.take(what.trials, last=until is not None and time.monotonic() >= until):
            proposal, hold = claim
            refusal = _carry_out(what, door, ledger, proposal, images)
            if refusal is None:
                hold.close()
                ended_numbers = [*refused.blame_settings(), proposal.number]
            else:
                ended_numbers = refused.add(proposal.number, refusal, hold)
            _announce(ledger, ended_numbers, tell)
            if refusal is not None and refused.in_a_row == MOST_REFUSALS:
                raise refusal
        if refused.trials and not any(trial.state in ("complete", "pruned") for trial in _record_trials(ledger)):
            raise refused.trials[-1][1]
        _announce(ledger, refused.blame_settings(), tell)


def _announce(ledger: Ledger, numbers: Sequence[int], tell: OnTrial) -> None:
    """Record all trials, and tell of those with these numbers."""
    for trial in _record_trials(ledger):
        if trial.number in numbers:
            tell(trial)


def _open(what: Search, door: Door, folder: Path, note: dict[str, Any]) -> Tensor:
    """Check the pair, then begin or join the search in ``folder``; the held-out images."""
    pair = door.pair(what.method, what.plan)
    before = weights_hash(pair[1].net)
    with _task(what, *pair, with_inputs=True) as task:
        check(task, what.method)
        check_teacher(task, check_labelled(what.data.test, task, "test"))
        about = {
            "ranges": {name: str(span) for name, span in what.ranges.items()},
            "settings": {**_settings(what, task), "student.weights": before},
            "pair": {"teacher": pair[0].name, "student": pair[1].name, "heldout": HELDOUT},
            **note,
        }
        return open_folder(folder, about, lambda: inverted_set(task, HELDOUT))


@contextmanager
def _task(what: Search, teacher: Classifier, student: Classifier, with_inputs: bool = False) -> Iterator[Task]:
    """The pair as a task, without test images; afterwards the teacher and the random streams are as they were."""
    data = replace(what.data, test=None) if with_inputs else replace(what.data, test=None, web=None, real=None)
    source = what.text if with_inputs and Need.TEXT in what.method.needs() else None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(put_back, loan_of(teacher.net))
        task = prepare(teacher, student, what.runtime.launch(), data, source, None, what.method).task
        stack.callback(task.teacher.release)
        stack.callback(task.student.release)
        yield task


def _settings(what: Search, task: Task) -> dict[str, Any]:
    """Everything that must be the same for all trials but what is searched."""
    runtime = what.runtime
    fixed: dict[str, Any] = {"method": type(what.method).__name__, "prune": what.prune}
    fixed |= dotted_settings({"method": settings_of(what.method), "plan": settings_of(what.plan)})
    fixed |= {"teacher.weights": weights_hash(task.teacher.net), "image_shape": list(task.image_shape)}
    fixed |= {"classes": task.classes, "names": list(task.names)}
    fixed |= {"mean": task.teacher.mean.flatten().tolist(), "std": (1 / task.teacher.scale).flatten().tolist()}
    fixed |= {
        "seed": runtime.seed,
        "precision": runtime.precision,
        "compile": runtime.compile_mode if runtime.compiled else "",
    }
    return fixed | inputs_of(task, what.method)


def _carry_out(what: Search, door: Door, ledger: Ledger, trial: "Asked", images: Tensor) -> UserError | None:
    """One trial: its run, from where it is; and what it came to.

    Returns:
        Why the run could not begin; None where it did, or where its settings do not go together.
    """
    folder = trial_folder(ledger.folder, trial.number)
    record = _ended_run(folder)
    if record is None:
        try:
            method, plan = settings_with(what.method, what.plan, trial.params)
        except UserError as error:  # settings that do not go together, such as steps that are no multiple of turns
            ledger.tell(trial.number, None, "failed", str(error))
            return None
        try:
            door.run(method, plan, folder, (folder / RUN_FILE).exists(), images, Pruner(trial))
        except UserError as error:
            if not (folder / RUN_FILE).exists():
                return error
            if _ended_run(folder) is None:
                raise
        except torch.OutOfMemoryError as error:
            ledger.tell(trial.number, None, "failed", f"out of memory: {first_line(error)}")
            return None
        record = read_run(folder, mend=True)
    _close(ledger, trial.number, record)
    return None


def _ended_run(folder: Path) -> StoredRun | None:
    """The run of a trial that has come to its end, one way or the other."""
    if not (folder / RUN_FILE).is_file():
        return None
    record = read_run(folder, mend=True)
    return record if record.status in ("finished", "stopped", "failed") else None


def _close(ledger: Ledger, number: int, record: StoredRun) -> None:
    """Tell the study how a run ended."""
    stopped = None if record.result is None else record.result.stopped
    estimate = last_estimate(record.rounds)
    if record.status == "failed" or estimate is None:
        ledger.tell(number, None, "failed", record.reason or "it ended before it could be judged")
    elif stopped is not None and stopped.startswith(PRUNED):
        ledger.tell(number, None, "pruned", stopped.removeprefix(PRUNED))
    else:
        ledger.tell(number, estimate.sets[OBJECTIVE].agreement, "complete")


def _record_trials(ledger: Ledger) -> list[Trial]:
    """Every trial as it stands, also written into the folder."""
    with search_lock(ledger.folder):
        by_number = {trial.number: trial for trial in read_trials(ledger.folder)}
        trials = [_trial(frozen, ledger.folder, by_number.get(frozen.number)) for frozen in ledger.trials()]
        write_trials(ledger.folder, trials)
    return trials


def _trial(frozen: "FrozenTrial", folder: Path, before: Trial | None) -> Trial:
    """A trial from the study and its run folder; what it was on test images is kept."""
    state: Any = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(frozen.state.name, "running")
    values = dict(frozen.params)
    place = trial_folder(folder, frozen.number)
    rounds: Sequence[RoundRecord] = read_run(place, mend=True).rounds if (place / RUN_FILE).is_file() else ()
    estimate = last_estimate(rounds)
    score = None if estimate is None else estimate.sets.get(OBJECTIVE)
    trial = Trial(
        frozen.number,
        state,
        values,
        default=bool(frozen.user_attrs.get("default")),
        done=len(rounds),
        rounds=rounds[-1].rounds if rounds else 0,
        seconds=sum(record.seconds for record in rounds),
        reason=frozen.user_attrs.get("reason"),
    )
    if score is not None:
        trial = replace(trial, agreement=score.agreement, low=score.low, high=score.high, images=score.images)
    return trial if before is None else replace(trial, accuracy=before.accuracy, tested=before.tested)


def _examine(ledger: Ledger, what: Search, door: Door, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the accuracy of complete ones on the test images: nothing is chosen after this."""
    with search_lock(ledger.folder):
        by_number = {trial.number: trial for trial in read_trials(ledger.folder)}
        trials = [by_number.get(trial.number, trial) for trial in trials]
        exam: tuple[Tensor, Tensor] | None = None
        for trial in [trial for trial in trials if trial.state == "complete" and trial.accuracy is None]:
            method, plan = settings_with(what.method, what.plan, trial.values)
            with _task(replace(what, method=method), *door.pair(method, plan)) as task:
                exam = exam or check_labelled(what.data.test, task, "test")
                by_number[trial.number] = _test(task, exam, trial, trial_folder(ledger.folder, trial.number))
        examined = [by_number.get(trial.number, trial) for trial in trials]
        write_trials(ledger.folder, examined)
    return examined


def _test(task: Task, exam: tuple[Tensor, Tensor] | None, trial: Trial, folder: Path) -> Trial:
    """A trial with what its student comes to on the test images."""
    from safetensors.torch import load_file

    if exam is None:
        raise RuntimeError("an examination needs test images")
    task.student.net.load_state_dict(load_file(folder / "student.safetensors"))
    task.student.eval()
    evaluation = evaluate(task.student, *exam, task.classes, task.runtime)
    return replace(trial, accuracy=evaluation.accuracy, tested=evaluation.images)
