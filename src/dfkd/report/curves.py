"""Charts that become files: curves of a run, several runs beside each other, bars of classes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfkd.engine.measures import RUN_MEASURES, Measure
from dfkd.engine.records import Evaluation, RoundRecord
from dfkd.report.canvas import INK, TONES, Format, draw_file, plain_axes
from dfkd.report.charts import loss_names
from dfkd.report.summary import finished_rounds, measure_names, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "accuracy_panel", "bars", "chart", "comparison", "loss_panels", "measure_panels"]

Points = Sequence[tuple[float, float]]

MOST_NAMES = 40  # bars with names; more bars are sorted and have none
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # of the first lines, as many as there are tones, then of the next ones


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it, may be empty.
        lines: name -> points; values that are not finite leave a gap.
        across: what runs from left to right.
        levels: name -> height of a dashed line.
        percent: values are fractions, shown as percentages.
        whole: there is nothing between two numbers of ``across``.
    """

    title: str
    lines: Mapping[str, Points]
    across: str = "round"
    levels: Mapping[str, float] | None = None
    percent: bool = False
    whole: bool = True

    @property
    def empty(self) -> bool:
        """Nothing finite to draw?"""
        return not any(math.isfinite(y) for points in self.lines.values() for _, y in points)


def chart(panels: Sequence[Panel], form: Format = "svg", size: tuple[float, float] = (3.0, 2.2)) -> bytes:
    """All panels as one file, up to three in a row, each of ``size`` inches; legends where there are several lines."""
    wide = min(3, len(panels))
    tall = math.ceil(len(panels) / wide)

    def draw(figure: "Figure") -> None:
        for i, panel in enumerate(panels):
            _draw(figure.add_subplot(tall, wide, i + 1), panel)

    return draw_file((size[0] * wide, size[1] * tall), draw, form)


def accuracy_panel(records: Sequence[RoundRecord], teacher: Evaluation | None) -> Panel:
    """Accuracy and agreement of the student over rounds; dashed, the teacher's accuracy."""
    evaluated = [(finished_rounds(record), record.evaluation) for record in records if record.evaluation is not None]
    lines = {
        "accuracy of the student": [(float(step), look.accuracy) for step, look in evaluated],
        "agreement with the teacher": [(float(step), look.agreement) for step, look in evaluated],
    }
    level = None if teacher is None else number(teacher.accuracy)
    return Panel("", lines, levels=None if level is None else {"accuracy of the teacher": level}, percent=True)


def loss_panels(records: Sequence[RoundRecord]) -> list[Panel]:
    """One panel for each loss."""
    return _panels(records, {name: name.removeprefix("loss/") for name in loss_names(records)})


def measure_panels(records: Sequence[RoundRecord], measures: Mapping[str, Measure] = RUN_MEASURES) -> list[Panel]:
    """One panel for each other measure, under the title by which it is known."""
    names = measure_names(records, measures)
    return _panels(records, {name: measures[name].heading if name in measures else name for name in names})


def comparison(runs: Mapping[str, Sequence[RoundRecord]], form: Format = "svg") -> bytes:
    """Accuracy of several runs over rounds and over seconds, in two panels."""
    rounds: dict[str, Points] = {}
    seconds: dict[str, Points] = {}
    for name, records in runs.items():
        elapsed = list(itertools.accumulate(record.seconds for record in records))
        accuracies = [(i, look.evaluation.accuracy) for i, look in enumerate(records) if look.evaluation is not None]
        rounds[name] = [(float(finished_rounds(records[i])), value) for i, value in accuracies]
        seconds[name] = [(elapsed[i], value) for i, value in accuracies]
    panels = (
        Panel("Accuracy over rounds", rounds, percent=True),
        Panel("Accuracy over time", seconds, "seconds", percent=True, whole=False),
    )

    def draw(figure: "Figure") -> None:
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(1, 2, i + 1)
            _draw(axes, panel, legend=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

    return draw_file((7.4, 3.1 + 0.2 * math.ceil(len(runs) / 3)), draw, form)


def bars(counts: Mapping[str, float], unit: str, form: Format = "svg") -> bytes:
    """One bar for each name, of heights in ``unit``; dashed, their mean. Many bars are sorted and have no names."""
    names, values = list(counts), list(counts.values())
    many = len(names) > MOST_NAMES
    if many:
        values = sorted(values, reverse=True)

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        plain_axes(axes)
        axes.bar(range(len(values)), values, color=TONES[0], width=1.0 if many else 0.7)
        axes.axhline(sum(values) / len(values), color=TONES[1], linewidth=1.0, linestyle=(0, (4, 3)), label="mean")
        axes.set_ylabel(unit)
        axes.set_xticks([] if many else range(len(names)), [] if many else names)
        axes.tick_params(axis="x", labelrotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_xlabel(f"{len(names)} classes, sorted" if many else "")
        axes.margins(x=0.01)
        axes.legend(frameon=False)

    return draw_file((4.4 if len(names) <= 15 else 9.0, 3.0), draw, form)


def _panels(records: Sequence[RoundRecord], titles: Mapping[str, str]) -> list[Panel]:
    panels = []
    for name, title in titles.items():
        points = [(float(finished_rounds(r)), r.metrics[name]) for r in records if name in r.metrics]
        panels.append(Panel(title.replace("_", " "), {name: points}))
    return [panel for panel in panels if not panel.empty]


def _draw(axes: "Axes", panel: Panel, legend: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plain_axes(axes)
    looks = itertools.cycle(itertools.product(DASHES, TONES))
    for (name, points), (dashes, tone) in zip(panel.lines.items(), looks, strict=False):
        across = [x for x, _ in points]
        values = [y if math.isfinite(y) else math.nan for _, y in points]
        marker = "o" if len(points) <= 25 else ""
        style: Any = {"color": tone, "linestyle": dashes, "linewidth": 1.4, "marker": marker, "markersize": 2.6}
        axes.plot(across, values, label=name, **style)
    for name, level in (panel.levels or {}).items():
        axes.axhline(level, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.whole))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.02, y=0.1)
    axes.set_xlabel(panel.across)
    if panel.title:
        axes.set_title(panel.title)
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    if legend and len(panel.lines) + len(panel.levels or {}) > 1:
        axes.legend(frameon=False)
