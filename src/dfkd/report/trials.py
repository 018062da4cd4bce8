"""The trials of a search as plain values, in the files of its folder: ``search.json`` and ``trials.json``.

``search.json`` says what is searched and does not change; ``trials.json`` is replaced whole after every trial. Each
trial is a run folder of its own, ``trials/0003``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dfkd.errors import UserError
from dfkd.report.files import DAMAGE, plain, write_whole

__all__ = [
    "BEST_FILE",
    "SEARCH_FILE",
    "TRIALS_FILE",
    "Trial",
    "TrialState",
    "best_first",
    "not_told_apart",
    "read_search",
    "read_trials",
    "trial_folder",
    "write_trials",
]

SEARCH_FILE = "search.json"
TRIALS_FILE = "trials.json"
BEST_FILE = "best.yaml"  # the settings of the best trial as a recipe, written when a search of the shell has ended
TrialState = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        number: from 0, as in ``trials/0003``.
        state: "complete" after its last round, "pruned" where it was stopped because others were better by then,
            "failed" with a ``reason``.
        values: by dotted name of what is searched.
        default: are these the settings that the search began with?
        agreement: with the teacher on the held-out images after its last round, in [0, 1]; ``low`` and ``high``: its
            95 % interval, ``images``: how many there are.
        done, rounds: rounds that were run, of how many.
        seconds: all its rounds took.
        accuracy: on the test images, measured after the search; None without them or before. It never selects.
        tested: number of test images.
    """

    number: int
    state: TrialState
    values: Mapping[str, Any]
    default: bool = False
    agreement: float | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    done: int = 0
    rounds: int = 0
    seconds: float = 0.0
    reason: str | None = None
    accuracy: float | None = None
    tested: int = 0


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's run is."""
    return folder / "trials" / f"{number:04d}"


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials by agreement, the earlier of equal ones first; then the others in their order."""
    return sorted(trials, key=lambda trial: (trial.state != "complete", -_score(trial), trial.number))


def _score(trial: Trial) -> float:
    return trial.agreement if trial.agreement is not None and trial.state == "complete" else 0.0


def not_told_apart(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials whose interval reaches that of the best one: chance among so few images may explain them."""
    done = [trial for trial in best_first(trials) if trial.state == "complete"]
    if not done or done[0].low is None:
        return []
    return [trial for trial in done[1:] if trial.high is not None and trial.high >= done[0].low]


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Replace ``trials.json``."""
    rows = [plain(asdict(trial)) for trial in trials]
    text = json.dumps({"trials": rows}, allow_nan=False, ensure_ascii=False, indent=1)
    write_whole(folder / TRIALS_FILE, text.encode() + b"\n")


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search in their order; none before the first one began.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / TRIALS_FILE
    if not path.is_file():
        return []
    try:
        trials = [Trial(**row) for row in json.loads(path.read_text("utf-8"))["trials"]]
        if any(trial.state not in get_args(TrialState) for trial in trials):
            raise ValueError("state")
        return trials
    except DAMAGE as error:
        raise UserError(
            f"search needs the list of its trials in {path}, got something else; remove that file and start again"
        ) from error


def read_search(folder: Path) -> dict[str, Any]:
    """What is searched: ``ranges`` (texts by dotted name), ``settings``, ``pair``, ``next`` (what to run then).

    Raises:
        UserError: the folder holds no search, or its description is damaged.
    """
    path = folder / SEARCH_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        if not all(isinstance(content[key], dict) for key in ("ranges", "settings", "pair")):
            raise ValueError("sections")
        return content
    except OSError as error:
        raise UserError(f"search needs the file {path}, got '{error.strerror}'; give the folder of a search") from error
    except DAMAGE as error:
        raise UserError(
            f"search needs its description in {path}, got something else; put it back, or choose another folder"
        ) from error
