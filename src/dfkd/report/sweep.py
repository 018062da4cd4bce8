"""Accuracy over one setting: a point for each run, those of one value joined by their mean."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfkd.engine.records import RunInfo
from dfkd.errors import UserError
from dfkd.report.canvas import TONES, Format, draw_file, plain_axes
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import StoredRun
from dfkd.report.summary import number
from dfkd.report.values import has_comparable_layers, input_settings, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Sweep", "settings_in", "sweep_chart", "sweep_of"]

_WIDE = 50  # positive values that span more than this factor stand on a logarithmic axis


@dataclass(frozen=True)
class Sweep:
    """Last-round accuracies over the values of one setting.

    Attributes:
        name: of the setting, as the command line writes it.
        accuracies: value as text -> accuracies in [0, 1], one for each run; numbers in order, then words.
        numbers: the values as numbers; empty where one of them is a word.
        others: further settings in which the runs differ, seeds left aside.
    """

    name: str
    accuracies: Mapping[str, Sequence[float]]
    numbers: Sequence[float]
    others: Sequence[str]

    def means(self) -> list[float]:
        """Mean accuracy of each value."""
        return [statistics.fmean(values) for values in self.accuracies.values()]

    def spreads(self) -> list[float]:
        """Standard deviation (of a sample) of each value; NaN where one run alone has it."""
        return [statistics.stdev(values) if len(values) > 1 else math.nan for values in self.accuracies.values()]


def settings_in(info: RunInfo) -> dict[str, object]:
    """Hyper-parameters of the method and of the plan by dotted name."""
    flat: dict[str, object] = {}
    for part, values in (("method", info.settings), ("plan", info.plan)):
        flat |= dotted_settings(values, f"{part}.")
    return flat


def sweep_of(runs: Mapping[str, StoredRun], name: str) -> Sweep:
    """Gather what finished runs came to over the setting ``name``.

    Args:
        runs: folder -> run.
        name: dotted, such as ``method.sigma`` or ``plan.steps``.

    Raises:
        UserError: a run without that setting, unfinished or without accuracy, or fewer than two values.
    """
    accuracies: dict[str, tuple[object, list[float]]] = {}
    for folder, run in runs.items():
        row = settings_in(run.info)
        if name not in row:
            raise UserError(
                f"plot --over needs a setting of every run, such as method.sigma or plan.steps, got {name!r} and "
                f"{folder} ({run.info.method}) without it; choose another setting or leave that run out"
            )
        accuracy = None if run.result is None or run.result.final is None else number(run.result.final.accuracy)
        if accuracy is None:
            lacks = "that has not finished" if run.result is None else "without accuracy on test images"
            raise UserError(f"plot --over needs finished runs with an accuracy, got {folder} {lacks}; leave it out")
        accuracies.setdefault(value_text(row[name]), (row[name], []))[1].append(accuracy)
    if len(accuracies) < 2:
        sentence = f"only {', '.join(accuracies)}" if accuracies else "no runs"
        raise UserError(f"plot --over needs at least two values of {name}, got {sentence}; add runs with others")
    values = {text: number(value) for text, (value, _) in accuracies.items()}
    order = sorted(accuracies, key=lambda text: math.inf if values[text] is None else float(values[text] or 0))
    numbers = [value for text in order if (value := values[text]) is not None]
    return Sweep(
        name,
        {text: accuracies[text][1] for text in order},
        numbers if len(numbers) == len(order) else (),
        _others(runs, name),
    )


def sweep_chart(sweep: Sweep, form: Format = "svg", label: str = "") -> bytes:
    """Runs as faint points, their means joined by a line with bars of one standard deviation.

    ``label`` says what is varied; without it the axis has the setting's name.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        plain_axes(axes)
        places = list(sweep.numbers) or [float(k) for k in range(len(sweep.accuracies))]
        _mark(axes, sweep, places)
        if sweep.numbers and min(places) > 0 and max(places) / min(places) > _WIDE:
            axes.set_xscale("log")
        if len(places) <= 12:
            axes.set_xticks(places, list(sweep.accuracies), minor=False)
            axes.set_xticks([], minor=True)
        axes.set_xlabel(label or sweep.name)
        axes.set_ylabel("accuracy of the student")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.margins(x=0.06, y=0.15)

    return draw_file((4.4, 3.2), draw, form)


def _mark(axes: "Axes", sweep: Sweep, places: Sequence[float]) -> None:
    for place, values in zip(places, sweep.accuracies.values(), strict=True):
        if len(values) > 1:
            axes.scatter([place] * len(values), values, s=12, color=TONES[1], alpha=0.8, linewidths=0, zorder=3)
    style: Any = {
        "color": TONES[0],
        "linewidth": 1.4,
        "marker": "o",
        "markersize": 3.5,
        "capsize": 2.5,
        "elinewidth": 0.9,
    }
    line = "-" if sweep.numbers else "none"  # nothing lies between two words
    axes.errorbar(places, sweep.means(), yerr=sweep.spreads(), linestyle=line, **style)


def _others(runs: Mapping[str, StoredRun], name: str) -> list[str]:
    """Settings, inputs and code beside ``name`` that are not the same in all runs."""
    rows, keys = [], ["kind", "parameters", "sha256"]
    if has_comparable_layers(run.info for run in runs.values()):
        keys.append("layers")
    for run in runs.values():
        pair = {"teacher": run.info.teacher, "student": run.info.student}
        nets = {f"{role}.{key}": about.get(key) for role, about in pair.items() for key in keys}
        code = {"provenance.commit": run.info.provenance.get("commit")}
        rows.append({"method": run.info.method, **settings_in(run.info), **nets, **input_settings(run.info), **code})
    names = dict.fromkeys(key for row in rows for key in row)
    return [key for key in names if key != name and len({value_text(row.get(key)) for row in rows}) > 1]
