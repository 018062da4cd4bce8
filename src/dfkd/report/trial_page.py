"""The page about a search: trials by agreement, what each setting does, curves, images; test images last and apart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.report.charts import Points, scatter_chart
from dfkd.report.comparison import MOST_RUNS, Chart, charts_of, runs_beside, with_tones
from dfkd.report.files import RUN_FILE, write_whole
from dfkd.report.html import render_template
from dfkd.report.summary import Verdict, duration, number, percent
from dfkd.report.trials import BEST_FILE, Trial, best_first, not_told_apart, read_search, read_trials, trial_folder
from dfkd.report.values import value_text

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["SEARCH_PAGE", "rank_correlation", "search_verdict", "spelt_values", "write_search_page"]

SEARCH_PAGE = "search.html"
SHEETS = 6  # trials whose images are shown
RANKED = 5  # complete trials that a rank correlation needs


def write_search_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page about the search in ``folder``, also of one that goes on; default ``search.html`` in it.

    Raises:
        UserError: the folder holds no search, or a file of it is damaged.
    """
    about, trials = read_search(folder), read_trials(folder)
    out = out or folder / SEARCH_PAGE
    write_whole(out, _page(folder, about, trials).encode())
    return out


def spelt_values(values: Mapping[str, Any]) -> str:
    """``method.lr 0.0123, plan.rounds 10``."""
    return ", ".join(f"{name} {_spell(value)}" for name, value in values.items())


def search_verdict(trials: Sequence[Trial]) -> Verdict:
    """The best trial beside the settings that the search began with, and who cannot be told from it."""
    first = next(iter(best_first(trials)), None)
    if first is None or first.state != "complete":
        return Verdict("open", "No trial is complete yet.")
    text = (
        f"Trial {first.number} chooses the teacher's class on {percent(first.agreement)} of {first.images} held-out "
        f"images (95 % interval {percent(first.low)} to {percent(first.high)})"
    )
    default = next((trial for trial in trials if trial.default and trial.agreement is not None), None)
    alike = not_told_apart(trials)
    better = default is not None and default.number != first.number and default not in alike
    if default is not None:
        same = "these are the settings that the search began with"
        text += (
            f"; {same}"
            if default.number == first.number
            else f", the settings it began with on {percent(default.agreement)}"
        )
    if alike:
        what = "another trial" if len(alike) == 1 else f"{len(alike)} other trials"
        text += f". So few images do not tell it from {what}"
    return Verdict("good" if better else "fair", f"{text}.")


def rank_correlation(trials: Sequence[Trial]) -> float | None:
    """Spearman's rank correlation of agreement and test accuracy; None for fewer than five trials or equal values."""
    pairs = [(t.agreement, t.accuracy) for t in trials if t.state == "complete" and t.accuracy is not None]
    if len(pairs) < RANKED or any(len({pair[i] for pair in pairs}) < 2 for i in (0, 1)):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _page(folder: Path, about: Mapping[str, Any], trials: Sequence[Trial]) -> str:
    ordered = best_first(trials)
    names = list(about["ranges"])
    with_runs = [trial for trial in ordered if (trial_folder(folder, trial.number) / RUN_FILE).is_file()]
    plotted = with_runs[:MOST_RUNS]
    drawn = with_tones(runs_beside([trial_folder(folder, t.number) for t in plotted], [_name(t) for t in plotted]))
    tested = [trial for trial in ordered if trial.accuracy is not None]
    pair, counts = about["pair"], _counts(trials)
    return render_template(
        "trials.html.j2",
        {
            "pair": f"{pair.get('teacher') or 'teacher'} → {pair.get('student') or 'student'}",
            "method": about["settings"].get("method", ""),
            "counts": counts,
            "verdict": search_verdict(trials),
            "next": about.get("next") if (folder / BEST_FILE).is_file() else None,
            "heads": [*names, "agreement", "95 % interval", "rounds", "time"],
            "table": [(_name(trial), _cells(trial, names)) for trial in ordered],
            "strong": 0 if ordered and ordered[0].state == "complete" else None,
            "failed": [(trial.number, trial.reason) for trial in ordered if trial.state == "failed" and trial.reason],
            "settings": [
                Chart(f"{name} ({value})", _draw(name, str(value), ordered)) for name, value in about["ranges"].items()
            ],
            "runs": with_runs,
            "drawn": drawn,
            "sheets": drawn[:SHEETS],
            "charts": charts_of(drawn),
            "tested": [(_name(t), (percent(t.agreement), percent(t.accuracy))) for t in tested],
            "test_images": tested[0].tested if tested else 0,
            "correlation": rank_correlation(trials),
            "fixed": [(name, value_text(value)) for name, value in about["settings"].items() if name not in names],
            "folder": str(folder),
        },
    )


def _counts(trials: Sequence[Trial]) -> str:
    """``20 trials: 15 complete, 5 pruned``."""
    states = [
        f"{n} {state}"
        for state in ("complete", "pruned", "failed", "running")
        if (n := sum(t.state == state for t in trials))
    ]
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}: {', '.join(states) or 'none began'}"


def _name(trial: Trial) -> str:
    end = "" if trial.state == "complete" else f", {trial.state}"
    return f"trial {trial.number}{' (as it began)' if trial.default else ''}{end}"


def _cells(trial: Trial, names: Sequence[str]) -> tuple[str, ...]:
    interval = "–" if trial.low is None else f"{percent(trial.low)} to {percent(trial.high)}"
    values = (_spell(trial.values[name]) if name in trial.values else "–" for name in names)
    done = f"{trial.done} of {trial.rounds}" if trial.rounds else "–"
    return (*values, percent(trial.agreement), interval, done, duration(trial.seconds))


def _draw(name: str, span: str, trials: Sequence[Trial]) -> "Markup":
    """Agreement over one setting: complete trials filled, the best one large, pruned ones as rings."""
    from markupsafe import Markup

    judged = [t for t in trials if t.agreement is not None and name in t.values and t.state in ("complete", "pruned")]
    choices = [] if ":" in span else span.split(",")
    points = {t.number: (_place(t.values[name], choices), float(t.agreement or 0)) for t in judged}
    best = [t for t in judged[:1] if t.state == "complete"]
    groups = [
        Points([points[t.number] for t in judged if t.state == "pruned"], "third", hollow=True),
        Points([points[t.number] for t in judged if t.state == "complete" and t not in best], "first"),
        Points([points[t.number] for t in best], "second", large=True),
    ]
    # The chart is our own SVG; matplotlib escapes the text in it.
    return Markup(scatter_chart(f"agreement over {name}", groups, log=span.endswith(":log"), places=choices))


def _place(value: Any, choices: Sequence[str]) -> float:
    if not choices:
        return float(value)
    return float(choices.index(_choice(value))) if _choice(value) in choices else math.nan


def _choice(value: Any) -> str:
    """A choice as ranges write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _spell(value: Any) -> str:
    """A value that was drawn: four digits are enough to tell it from others."""
    if isinstance(value, bool) or value is None:
        return _choice(value)
    numeric = number(value)
    return f"{numeric:.4g}" if isinstance(numeric, float) and not float(numeric).is_integer() else str(value)
