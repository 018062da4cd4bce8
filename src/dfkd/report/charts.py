"""Line charts as SVG text, to be put into a page: they take its font, and its colours through CSS variables.

The variables are ``--ink``, ``--rule`` and ``--first`` to ``--sixth``; outside a page that sets
them the charts show in muted tones that are readable on white and on black. Names of the curves are left to
the page, so that they can be read, selected and translated there.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from dfkd.engine.records import Evaluation, RoundRecord
from dfkd.report.summary import finished_rounds, losses_of, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Tone = Literal["first", "second", "third", "fourth", "fifth", "sixth"]

TONES: tuple[Tone, ...] = ("first", "second", "fourth", "fifth", "sixth", "third")  # of several runs, in this order

# Colours that matplotlib writes, and what they become in the page.
_PAINTS = {
    "#010203": "var(--ink, #7a828a)",
    "#010204": "var(--rule, #9aa1a8)",
    "#010205": "var(--first, #3b7fb5)",
    "#010206": "var(--second, #c9772b)",
    "#010207": "var(--third, #7f8890)",
    "#010208": "var(--fourth, #5f9a64)",
    "#010209": "var(--fifth, #a5648f)",
    "#01020a": "var(--sixth, #a08a3c)",
}
_INK, _RULE = "#010203", "#010204"
_TONES: dict[Tone, str] = {
    "first": "#010205",
    "second": "#010206",
    "third": "#010207",
    "fourth": "#010208",
    "fifth": "#010209",
    "sixth": "#01020a",
}
_FONT = "ui-sans-serif, system-ui, sans-serif"
_FONT_SIZE = 8.0  # points
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "figure.constrained_layout.use": False,  # whatever matplotlibrc of the user says: the axes are placed by hand
    "figure.autolayout": False,
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.family": ["DejaVu Sans"],
    "font.size": _FONT_SIZE,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


@dataclass(frozen=True)
class Line:
    """One curve: ``points`` are (round or seconds, value); values that are not finite leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: Tone = "first"
    dashed: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[float] = (),
    size: tuple[float, float] = (2.9, 1.55),
    as_percent: bool = False,
) -> str:
    """A chart over rounds (or seconds) as one ``<svg>`` element, ready to stand in HTML; "" where no point is finite.

    Args:
        title: what the chart shows; read out by screen readers, not drawn.
        lines: the curves.
        levels: heights of dashed lines across the chart.
        size: width and height in inches; the page scales it.
        as_percent: values are fractions, shown as percentages.
    """
    if not any(math.isfinite(value) for line in lines for _, value in line.points):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing is registered anywhere, so nothing has to be closed.
    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size)
        axes = figure.add_subplot()
        _decorate(axes, as_percent)
        for level in levels:
            axes.axhline(level, color=_TONES["third"], linewidth=1.0, linestyle=(0, (4, 3)))
        for line in lines:
            _draw(axes, line)
        _place_axes(figure, axes)
        return _embed(figure, title)


@dataclass(frozen=True)
class Points:
    """Points of one kind: (x, y); ``hollow`` ones are rings, ``large`` ones stand out."""

    points: Sequence[tuple[float, float]]
    tone: Tone = "first"
    hollow: bool = False
    large: bool = False


def scatter_chart(
    title: str,
    groups: Sequence[Points],
    *,
    log: bool = False,
    places: Sequence[str] = (),
    size: tuple[float, float] = (2.9, 1.7),
) -> str:
    """Fractions over a setting as one ``<svg>`` element, ready to stand in HTML; "" without points.

    Args:
        title: read out by screen readers, not drawn.
        groups: the points, the later above the earlier.
        log: a logarithmic x axis.
        places: names of the places 0, 1, ... on the x axis, where it shows choices.
        size: width and height in inches; the page scales it.
    """
    if not any(group.points for group in groups):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size)
        axes = figure.add_subplot()
        _decorate(axes, as_percent=True)
        axes.margins(x=0.06, y=0.15)
        if places:
            axes.set_xticks(range(len(places)), [place[:14] for place in places])
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1.0,) if _decades(groups) > 1.5 else (1.0, 2.0, 5.0), numticks=6)
            )
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            whole = all(float(x).is_integer() for group in groups for x, _ in group.points)
            axes.locator_params(axis="x", nbins=5, integer=whole)
        for group in groups:
            style: Any = {"marker": "o", "linestyle": "none", "markersize": 5.5 if group.large else 3.6}
            style |= {"markerfacecolor": "none" if group.hollow else _TONES[group.tone]}
            axes.plot([x for x, _ in group.points], [y for _, y in group.points], color=_TONES[group.tone], **style)
        _place_axes(figure, axes)
        return _embed(figure, title)


def _decades(groups: Sequence[Points]) -> float:
    """Powers of ten that the points span."""
    places = [x for group in groups for x, _ in group.points]
    return math.log10(max(places) / min(places))


WIDE: tuple[float, float] = (7.2, 2.6)
NARROW: tuple[float, float] = (3.6, 2.4)  # on a phone a wide chart would be a strip with letters nobody can read


def quality_chart(records: Sequence[RoundRecord], teacher: Evaluation | None, size: tuple[float, float] = WIDE) -> str:
    """Accuracy (first tone) and agreement (second tone) of the student; dashed, the teacher's accuracy."""
    evaluated = [(finished_rounds(record), record.evaluation) for record in records if record.evaluation is not None]
    lines = [
        Line("accuracy", [(step, evaluation.accuracy) for step, evaluation in evaluated], "first"),
        Line("agreement", [(step, evaluation.agreement) for step, evaluation in evaluated], "second"),
    ]
    level = None if teacher is None else number(teacher.accuracy)
    title = "Accuracy of the student and agreement with the teacher over rounds"
    levels = () if level is None else (level,)
    return line_chart(title, lines, levels=levels, size=size, as_percent=True)


def metric_chart(records: Sequence[RoundRecord], metric: str, level: float | None = None) -> str:
    """One metric over rounds, with a dashed line at ``level``; "" where it has no finite value."""
    points = [(finished_rounds(r), r.metrics[metric]) for r in records if metric in r.metrics]
    return line_chart(f"{metric} over rounds", [Line(metric, points)], levels=() if level is None else (level,))


def loss_names(records: Sequence[RoundRecord]) -> list[str]:
    """All losses of a run, in the order in which they first occur."""
    return list(dict.fromkeys(name for record in records for name in losses_of(record)))


def _decorate(axes: "Axes", as_percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=_RULE, linewidth=0.5)
    axes.tick_params(length=0, pad=4)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.02, y=0.1)
    if as_percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _draw(axes: "Axes", line: Line) -> None:
    steps = [step for step, _ in line.points]
    values = [value if math.isfinite(value) else math.nan for _, value in line.points]
    # Few points are shown as such, and so are those that have no neighbour to be joined to.
    marker = "o" if len(values) <= 25 or _has_isolated(values) else ""
    colour = _TONES[line.tone]
    style: Any = (0, (5, 2)) if line.dashed else "solid"
    axes.plot(steps, values, color=colour, linewidth=1.5, linestyle=style, marker=marker, markersize=2.6)


def _has_isolated(values: Sequence[float]) -> bool:
    """Whether some value stands alone between gaps, where a line would not show it."""
    finite = [False, *(math.isfinite(value) for value in values), False]
    return any(finite[i] and not finite[i - 1] and not finite[i + 1] for i in range(1, len(finite) - 1))


def _place_axes(figure: "Figure", axes: "Axes") -> None:
    """Give the axes all of the figure but the room its labels need.

    Their widths are estimated from their letters: the page's font is not the one matplotlib could measure, and its
    constrained layout, which measures, takes as long as the drawing.
    """
    width, height = figure.get_size_inches()
    across, up = _tick_labels(axes.xaxis), _tick_labels(axes.yaxis)
    left = _text_width(max(up, key=len)) + 0.1
    left, right = max(left, _text_width(across[0]) / 2), _text_width(across[-1]) / 2 + 0.04
    bottom, top = 0.22, 0.2 if axes.yaxis.get_major_formatter().get_offset() else 0.07  # a factor stands above the axis
    axes.set_position((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def _tick_labels(axis: "Axis") -> list[str]:
    """What stands at the ticks that are in view, from the lowest on; "" where there is none."""
    low, high = sorted(axis.get_view_interval())
    places = [place for place in axis.get_majorticklocs() if low <= place <= high]
    return axis.get_major_formatter().format_ticks(places) or [""]


def _text_width(text: str) -> float:
    """About the width of a label, in inches."""
    return 0.64 * _FONT_SIZE / 72 * len(text)


def _embed(figure: "Figure", title: str) -> str:
    """The figure as an ``<svg>`` element without prolog, size and names that nothing refers to."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {box.group(0) if box else ""} role="img" aria-label="{escape(title, quote=True)}">'
    text = re.sub(r"<svg.*?>", lambda _: head, text, count=1, flags=re.DOTALL).replace("xlink:href", "href")
    for paint, variable in _PAINTS.items():
        text = text.replace(paint, variable)
    return text.replace("'DejaVu Sans'", _FONT)
