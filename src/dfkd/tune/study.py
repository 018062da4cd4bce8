"""Optuna in a folder: which settings to try next, and whether a trial is worth its last rounds.

Several processes share one journal. A trial that is marked as running but that nobody holds was killed: whoever asks
next takes it up.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dfkd.engine.records import Observer, RoundRecord
from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.report.summary import percent
from dfkd.tune.folder import JOURNAL_FILE, claim, search_lock
from dfkd.tune.ranges import Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["OBJECTIVE", "PARTS", "PRUNED", "Ledger", "Pruner", "check_optuna"]

OBJECTIVE = "inverted"
"""The held-out set whose agreement is maximised."""
PARTS = 10
"""Trials are compared after every tenth of their rounds, so that rounds themselves may be searched."""
PRUNED = "pruned: "
UNPRUNED_TRIALS, UNPRUNED_PARTS = 4, 3  # no trial is pruned before so many have finished, nor in its first tenths
REFUSALS = "refusals"
"""Counts how often a trial's run could not begin."""
REPEATS = "repeats"
"""Marks a proposal that equals a trial, with that trial's number."""
MODEL_PROPOSALS, MOST_PROPOSALS = 10, 200  # repeats of the model before settings are drawn at random; and in all
RANDOM_SHARE = 3  # a third of the trials, at least 4 and at most 10, are drawn at random before a model is fitted


def check_optuna() -> ModuleType:
    """Optuna, or the command that installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"search needs the package optuna, got none installed; run `{install_extra('search')}`"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Ledger:
    """The trials of one search, shared with other processes through its folder."""

    def __init__(
        self, folder: Path, ranges: Mapping[str, Range], defaults: Mapping[str, Any], seed: int, prune: bool
    ) -> None:
        """Open the journal, or begin it with a trial of the ``defaults`` where the ranges hold them."""
        self.folder, self.ranges, self.seed = folder, ranges, seed
        optuna = check_optuna()
        storage = optuna.storages
        with search_lock(folder), _quiet():
            _mend(folder / JOURNAL_FILE, storage)
            backend = storage.journal.JournalFileBackend(str(folder / JOURNAL_FILE))
            pruner = (
                optuna.pruners.MedianPruner(UNPRUNED_TRIALS, UNPRUNED_PARTS) if prune else optuna.pruners.NopPruner()
            )
            self.study: Study = optuna.create_study(
                storage=storage.JournalStorage(backend),
                study_name="dfkd",
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            if not self.study.get_trials(deepcopy=False) and all(defaults[name] in ranges[name] for name in ranges):
                self.study.enqueue_trial(dict(defaults), user_attrs={"default": True})

    def take(self, most: int, last: bool = False) -> "tuple[Trial, ExitStack] | None":
        """A trial to carry out, held by this process until the stack is closed.

        Args:
            most: trials of the whole search.
            last: begin none; only take up one that was killed.

        A proposal with the settings of another trial is dropped: it is marked, and counts for nothing.

        Returns:
            A trial that was killed before a new one; None where there is nothing to do, or nothing new to try.
        """
        import optuna

        states = optuna.trial.TrialState
        with search_lock(self.folder), _quiet():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == states.RUNNING and REPEATS in trial.user_attrs:  # killed before it was told
                    self.study.tell(trial.number, state=states.FAIL)
                elif trial.state == states.RUNNING and (hold := claim(self.folder, trial.number)):
                    return optuna.trial.Trial(self.study, trial._trial_id), hold
            begun = sum(trial.state != states.WAITING and REPEATS not in trial.user_attrs for trial in trials)
            if last or begun >= most:
                return None
            proposal = self._new_proposal(min(max(most // RANDOM_SHARE, 4), 10))
            hold = None if proposal is None else claim(self.folder, proposal.number)
        if proposal is None:
            return None
        if hold is None:
            raise RuntimeError("a trial that was just made cannot be held by another process")
        return proposal, hold

    def _new_proposal(self, random_trials: int) -> "Trial | None":
        """A trial whose settings no other has; None where the ranges seem to hold no more."""
        import optuna

        sizes = [span.size for span in self.ranges.values()]
        for attempt in range(MOST_PROPOSALS):
            earlier = self.study.get_trials(deepcopy=False)
            distinct = {tuple(sorted(trial.params.items(), key=str)) for trial in earlier if trial.params}
            if None not in sizes and len(distinct) >= math.prod(size for size in sizes if size is not None):
                return None
            seed = self.seed + sum(trial.state != optuna.trial.TrialState.WAITING for trial in earlier)
            if attempt < MODEL_PROPOSALS:
                self.study.sampler = optuna.samplers.TPESampler(
                    n_startup_trials=random_trials, constant_liar=True, seed=seed
                )
            else:
                self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
            proposal = self.study.ask(dict(_distributions(self.ranges)))
            twin = next((trial for trial in earlier if trial.params == proposal.params and trial.params), None)
            if twin is None or twin.number == proposal.number:
                return proposal
            proposal.set_user_attr(REPEATS, twin.number)
            self.study.tell(proposal.number, state=optuna.trial.TrialState.FAIL)  # so that it counts for nothing
        return None

    def tell(self, number: int, value: float | None, state: str, reason: str | None = None) -> None:
        """Close a trial: ``state`` is "complete" (with its value), "pruned" or "failed" (with a reason)."""
        import optuna

        names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        with search_lock(self.folder), _quiet():
            if reason is not None:
                trial = next(one for one in self.study.get_trials(deepcopy=False) if one.number == number)
                self.study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            values = value if state == "complete" else None
            self.study.tell(number, values, optuna.trial.TrialState[names[state]], skip_if_finished=True)

    def count_refusal(self, number: int) -> int:
        """Note that a trial's run could not begin; how often that has been, in all processes and calls."""
        with search_lock(self.folder), _quiet():
            trial = next(one for one in self.study.get_trials(deepcopy=False) if one.number == number)
            refusals = int(trial.user_attrs.get(REFUSALS, 0)) + 1
            self.study._storage.set_trial_user_attr(trial._trial_id, REFUSALS, refusals)
        return refusals

    def trials(self) -> "list[FrozenTrial]":
        """Every trial that began, without proposals that repeated one."""
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        return [t for t in self.study.get_trials() if t.state != waiting and REPEATS not in t.user_attrs]


class Pruner(Observer):
    """Reports a trial's agreement after every tenth of its rounds, and ends it where the median trial was better."""

    def __init__(self, trial: "Trial") -> None:
        self.trial = trial
        reported = trial.study._storage.get_trial(trial._trial_id).intermediate_values
        self.reported = max(reported, default=0)

    def rounded(self, record: RoundRecord) -> str | None:
        """Why the trial should end, or None."""
        part = PARTS * (record.round + 1) // record.rounds
        if record.estimate is None or part <= self.reported or part == PARTS:
            return None
        value = record.estimate.sets[OBJECTIVE].agreement
        with _quiet():
            for step in range(self.reported + 1, part + 1):
                self.trial.report(value, step)
            self.reported = part
            worse = self.trial.should_prune()
        return f"{PRUNED}agreement {percent(value)} is below the median of earlier trials by then" if worse else None


def _distributions(ranges: Mapping[str, Range]) -> "Iterator[tuple[str, BaseDistribution]]":
    """Ranges as Optuna has them."""
    import optuna

    kinds = optuna.distributions
    for name, span in ranges.items():
        if span.choices:
            yield name, kinds.CategoricalDistribution(span.choices)
        elif span.whole:
            yield name, kinds.IntDistribution(int(span.low), int(span.high), span.log, int(span.step or 1))
        else:
            yield name, kinds.FloatDistribution(span.low, span.high, span.log, span.step)


def _mend(path: Path, storage: Any) -> None:
    """Drop a last line that a power cut tore; the next one would be written behind it."""
    if not path.is_file():
        return
    lock = storage.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's notices that a part of it is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
