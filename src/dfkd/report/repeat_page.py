"""The page about one run with several seeds: mean and deviation, then the runs beside each other."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from dfkd.errors import UserError
from dfkd.report.comparison import RunBeside, page_of, runs_beside
from dfkd.report.files import RUN_FILE, write_whole
from dfkd.report.summary import Verdict, number, percent
from dfkd.report.without_test import last_estimate, main_agreement

__all__ = ["REPEAT_FILE", "REPEAT_PAGE", "seed_folders", "spread_verdict", "unfinished_seeds", "write_repeat_page"]

REPEAT_FILE = "repeat.json"
REPEAT_PAGE = "repeat.html"
MEASURES = ("accuracy", "agreement", "agreement on held-out synthetic images")  # the first one that is known counts


def seed_folders(folder: Path) -> dict[int, Path]:
    """The runs of a repeat by their seeds, in order; those that have not begun are left out."""
    names = {path: re.fullmatch(r"seed(-?\d+)", path.name) for path in folder.glob("seed*")}
    folders = {int(name[1]): path for path, name in names.items() if name and (path / RUN_FILE).is_file()}
    return dict(sorted(folders.items()))


def write_repeat_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page about the runs in ``folder``, one for each seed; default ``repeat.html`` in it.

    Raises:
        UserError: no run there, or one that cannot be read.
    """
    folders = list(seed_folders(folder).values())
    if not folders:
        raise UserError(f"report needs the runs of `dfkd repeat`, got {folder} without any; start it again")
    out = out or folder / REPEAT_PAGE
    runs = runs_beside(folders, [path.name for path in folders])
    heading = f"{len(runs)} seeds of one run" if len(runs) > 1 else "One seed of a run"
    write_whole(out, page_of(runs, folders, heading, spread_verdict(runs)).encode())
    return out


def spread_verdict(runs: Sequence[RunBeside]) -> Verdict:
    """Mean and standard deviation (of a sample) of the last accuracies, or of the agreements where there are none.

    Runs that have not come to their end do not count: what they reached is of an earlier round.
    """
    finished = [run for run in runs if run.run.result is not None]
    if not finished:
        return Verdict("open", "No seed is finished yet.")
    remaining = unfinished_seeds(len(finished), len(runs))
    end = f"; {remaining}." if remaining else "."
    for measure in MEASURES:
        values = [value for run in finished if (value := _figure(run, measure)) is not None]
        name = measure.capitalize()
        if len(values) == 1:
            return Verdict("open", f"{name} {percent(values[0])}: one seed says nothing about chance{end}")
        if values:
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            text = f"{name} {percent(mean)} ± {percent(spread)} (standard deviation) over {len(values)} seeds"
            return Verdict("good", f"{text}, from {percent(min(values))} to {percent(max(values))}{end}")
    reason = "no test images were given" if runs[0].run.info.test_images == 0 else "they were not evaluated"
    return Verdict("open", f"Nothing says how good the students are: {reason}{end}")


def unfinished_seeds(finished: int, total: int) -> str:
    """How many runs have not come to their end: ``1 of 3 seeds is not finished``; "" where all have."""
    remaining = total - finished
    verb = "is" if remaining == 1 else "are"
    return f"{remaining} of {total} seed{'s' if total > 1 else ''} {verb} not finished" if remaining else ""


def _figure(run: RunBeside, measure: str) -> float | None:
    """What a run came to in one of :data:`MEASURES`."""
    if measure == MEASURES[-1]:
        estimate = last_estimate(run.run.rounds)
        agreement = None if estimate is None else main_agreement(estimate)
        return None if agreement is None else number(agreement.agreement)
    return None if run.last_evaluation is None else number(getattr(run.last_evaluation, measure))
