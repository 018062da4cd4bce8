"""The page about one run with several seeds: mean and deviation, then the runs beside each other."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from dfkd.errors import UserError
from dfkd.report.comparison import RunBeside, page_of, runs_beside
from dfkd.report.files import RUN_FILE, write_whole
from dfkd.report.summary import Verdict, number, percent

__all__ = ["REPEAT_FILE", "REPEAT_PAGE", "spread_verdict", "write_repeat_page"]

REPEAT_FILE = "repeat.json"
REPEAT_PAGE = "repeat.html"


def write_repeat_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page about the runs in ``folder``, one for each seed; default ``repeat.html`` in it.

    Raises:
        UserError: no run there, or one that cannot be read.
    """
    folders = sorted((path for path in folder.glob("seed*") if (path / RUN_FILE).is_file()), key=_seed)
    if not folders:
        raise UserError(f"report needs the runs of `dfkd repeat`, got {folder} without any; start it again")
    out = out or folder / REPEAT_PAGE
    runs = runs_beside(folders, [path.name for path in folders])
    heading = f"{len(runs)} seeds of one run" if len(runs) > 1 else "One seed of a run"
    write_whole(out, page_of(runs, folders, heading, spread_verdict(runs)).encode())
    return out


def spread_verdict(runs: Sequence[RunBeside]) -> Verdict:
    """Mean and standard deviation (of a sample) of the last accuracies, or of the agreements where there are none."""
    for what in ("accuracy", "agreement"):
        figures = [number(getattr(run.last_evaluation, what)) for run in runs if run.last_evaluation is not None]
        values = [float(figure) for figure in figures if figure is not None]
        if len(values) == 1:
            return Verdict("open", f"{what.capitalize()} {percent(values[0])}: one seed says nothing about chance.")
        if values:
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            text = (
                f"{what.capitalize()} {percent(mean)} ± {percent(spread)} (standard deviation) over {len(values)} seeds"
            )
            return Verdict("good", f"{text}, from {percent(min(values))} to {percent(max(values))}.")
    return Verdict("open", "Nothing says how good the students are: no test images were given.")


def _seed(path: Path) -> tuple[int, str]:
    digits = path.name.removeprefix("seed").removeprefix("-")
    return (int(digits) if digits.isdecimal() else 0, path.name)
