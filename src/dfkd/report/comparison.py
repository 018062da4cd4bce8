"""One HTML page that puts runs beside each other: numbers, curves in one chart, images, settings that differ."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd.engine.measures import is_loss
from dfkd.engine.records import Evaluation, RoundRecord, RunInfo
from dfkd.errors import UserError
from dfkd.ops.intervals import wilson
from dfkd.report.charts import NARROW, TONES, WIDE, Line, Tone, line_chart, loss_names
from dfkd.report.console import cells
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import StoredRun, read_run, write_whole
from dfkd.report.html import render_template
from dfkd.report.image_kinds import ImageKind, image_kind, subject_of
from dfkd.report.sheets import SHEET_BYTES, Sheet, name_rows, sheets_in
from dfkd.report.summary import (
    Verdict,
    finished_rounds,
    known_measures,
    last_evaluation,
    measure_names,
    number,
    percent,
    rows_of,
    sentence,
)
from dfkd.report.values import has_comparable_layers, input_settings, value_text
from dfkd.report.without_test import agreement_curves

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = [
    "COMPARISON_FILE",
    "Chart",
    "RunBeside",
    "charts_of",
    "runs_beside",
    "differing_settings",
    "page_of",
    "short_names",
    "verdict_over",
    "with_tones",
    "write_comparison",
]

COMPARISON_FILE = "compare.html"
MOST_RUNS = 2 * len(TONES)  # that curves can be told apart of; beyond it, those of the best runs are drawn
MOST_CLOSE = 4  # runs that are named as not told apart
# Of the moment, and different for all runs.
_SIDE = frozenset({"provenance.date", "provenance.command"})


@dataclass(frozen=True)
class RunBeside:
    """A run as the page shows it: its last images, and how its curves look."""

    name: str
    run: StoredRun
    sheet: Sheet | None
    tone: Tone = TONES[0]
    dashed: bool = False

    @property
    def kind(self) -> ImageKind:
        """The kind of images that the student learnt from."""
        return image_kind(self.run.info)

    @property
    def last_evaluation(self) -> Evaluation | None:
        """The last evaluation."""
        return self.run.result.final if self.run.result is not None else last_evaluation(self.run.rounds)


@dataclass(frozen=True)
class Chart:
    """A chart for wide and for narrow windows; small ones are the same in both."""

    caption: str
    wide: "Markup"
    narrow: "Markup | None" = None


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write one page about several runs; the first is listed first.

    Args:
        folders: run folders, each with ``run.json``; also of runs that go on.
        out: the file to write.

    Raises:
        UserError: fewer than two runs, one that cannot be read, or a page that cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if len(folders) < 2:
        raise UserError(
            f"report needs another run to compare with, got only {folders[0]} twice; give two different folders"
        )
    write_whole(out, page_of(runs_beside(folders, short_names(folders)), folders).encode())
    return out


def runs_beside(folders: Sequence[Path], names: Sequence[str]) -> list[RunBeside]:
    """The runs as a page shows them: each with its last images, unless these are too large together."""
    records = [read_run(folder) for folder in folders]
    sheets = [_last_sheet(run.info, folder) for run, folder in zip(records, folders, strict=True)]
    if sum(len(sheet.png) for sheet in sheets if sheet is not None) > SHEET_BYTES:
        sheets = [None] * len(sheets)
    return [RunBeside(name, run, sheet) for name, run, sheet in zip(names, records, sheets, strict=True)]


def with_tones(runs: Sequence[RunBeside]) -> list[RunBeside]:
    """Runs whose curves are drawn, at most :data:`MOST_RUNS`, each with its own look: from the seventh on dashed."""
    return [replace(run, tone=TONES[i % len(TONES)], dashed=i % MOST_RUNS >= len(TONES)) for i, run in enumerate(runs)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; the whole path where that does not tell it from the others."""
    last = [folder.resolve().name for folder in folders]
    return [name if last.count(name) == 1 else str(folder) for name, folder in zip(last, folders, strict=True)]


def verdict_over(evaluations: Mapping[str, Evaluation | None]) -> Verdict:
    """Which run is best, and whether the test images can tell: runs whose 95 % intervals overlap are not told apart."""
    scores = {
        name: look for name, look in evaluations.items() if look is not None and number(look.accuracy) is not None
    }
    if len(scores) < 2:
        return Verdict(
            "open", "Nothing says which is better: fewer than two of the runs were evaluated on test images."
        )
    counts = {look.images for look in scores.values()}
    if len(counts) > 1:
        return Verdict("open", "The runs were evaluated on different test images: their accuracies do not compare.")
    images, best = counts.pop(), max(scores, key=lambda name: scores[name].accuracy)
    top = scores[best].accuracy
    low, high = wilson(top * images, images)
    close = [name for name in scores if name != best and wilson(scores[name].accuracy * images, images).high >= low]
    interval = f"95 % interval {percent(low)} to {percent(high)}"
    text = f"{best} is best with {percent(top)} of {images:,} test images ({interval})"
    if close:
        more = f" and {len(close) - MOST_CLOSE} more" if len(close) > MOST_CLOSE else ""
        return Verdict("fair", f"{text}; so few images do not tell it from {' or '.join(close[:MOST_CLOSE])}{more}.")
    return Verdict("good", f"{text}; the others are below by more than chance.")


def differing_settings(infos: Mapping[str, RunInfo]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for what is not the same in all: also networks, inputs, code and machine."""
    flat = [_settings(info) for info in infos.values()]
    skipped = () if has_comparable_layers(infos.values()) else ("teacher.layers", "student.layers")
    names = dict.fromkeys(key for settings in flat for key in settings if key not in skipped)
    return [
        (name, values)
        for name in names
        for values in [[settings.get(name, "–") for settings in flat]]
        if len(set(values)) > 1
    ]


def _settings(info: RunInfo) -> dict[str, str]:
    parts = {"method": {"name": info.method, **info.settings}, "plan": info.plan}
    parts |= {"teacher": info.teacher, "student": info.student, "provenance": info.provenance}
    flat = dotted_settings({name: values for name, values in parts.items() if values}) | input_settings(info)
    return {name: value_text(value) for name, value in flat.items() if name not in _SIDE}


def _last_sheet(info: RunInfo, folder: Path) -> Sheet | None:
    sheets = sheets_in(folder)
    return name_rows(info, *sheets[-1]) if sheets else None


def page_of(
    runs: Sequence[RunBeside], folders: Sequence[Path], heading: str | None = None, verdict: Verdict | None = None
) -> str:
    """The page about runs; ``heading`` and ``verdict`` stand for those of runs that are compared."""
    evaluations = {run.name: run.last_evaluation for run in runs}
    infos = {run.name: run.run.info for run in runs}
    teachers = {str(info.teacher.get("sha256")) for info in infos.values()}
    plotted = sorted(runs, key=_rank)[:MOST_RUNS]
    plotted = with_tones([run for run in runs if run in plotted])  # in their order, so that no two look alike
    return render_template(
        "comparison.html.j2",
        {
            "runs": runs,
            "drawn": plotted,
            "subject": subject_of(list(infos.values())),
            "heading": heading or f"{len(runs)} runs beside each other",
            "verdict": verdict or verdict_over(evaluations),
            "table": [(run.name, _cells(run)) for run in runs],
            "heads": ["method", "rounds", "accuracy", "agreement", "parameters", "FLOPs", "file", "time"],
            "charts": charts_of(plotted),
            "differing": differing_settings(infos),
            "one_teacher": len(teachers) == 1,
            "folders": dict(zip(evaluations, (str(folder) for folder in folders), strict=True)),
        },
    )


def _rank(run: RunBeside) -> float:
    accuracy = None if run.last_evaluation is None else number(run.last_evaluation.accuracy)
    return math.inf if accuracy is None else -accuracy


def _cells(run: RunBeside) -> tuple[str, ...]:
    record = run.run
    student = rows_of(record.info, record.rounds, record.result)[1]
    progress = f"{finished_rounds(record.rounds[-1])} of {record.rounds[-1].rounds}" if record.rounds else "no"
    state = progress if record.status == "finished" else f"{progress}, {record.status}"
    return (record.info.method, state, *cells(student))


def charts_of(runs: Sequence[RunBeside]) -> list[Chart]:
    """Held-out agreement, accuracy and agreement, over rounds and seconds; then what at least two runs measured."""
    untested = all(record.evaluation is None for run in runs for record in run.run.rounds)
    panels = [
        _over("Agreement on held-out images, made from the teacher alone", runs, _held_out, True, large=untested),
        _over("Accuracy over rounds", runs, partial(_scores, field="accuracy"), as_percent=True, large=True),
        _over("Agreement with the teacher", runs, partial(_scores, field="agreement"), as_percent=True),
        _over("Accuracy over seconds", runs, partial(_scores, field="accuracy", seconds=True), as_percent=True),
    ]
    panels += [_over(_caption(name, runs), runs, partial(_metric, name=name)) for name in _common(runs)]
    return [chart for chart in panels if chart is not None]


def _caption(name: str, runs: Sequence[RunBeside]) -> str:
    """A loss by its name, any other metric as the first run that knows it calls it."""
    if is_loss(name):
        return sentence(f"{name.removeprefix('loss/')} loss")
    candidates = [measures[name] for run in runs if name in (measures := known_measures(run.run.info))]
    return sentence(candidates[0].heading) if candidates else name.replace("_", " ")


def _over(
    caption: str,
    runs: Sequence[RunBeside],
    points: Callable[[RunBeside], Sequence[tuple[float, float]]],
    as_percent: bool = False,
    large: bool = False,
) -> Chart | None:
    from markupsafe import Markup

    lines = [Line(run.name, points(run), run.tone, run.dashed) for run in runs]
    sizes = (WIDE, NARROW) if large else ((2.9, 1.55),)
    charts = [line_chart(caption, lines, size=size, as_percent=as_percent) for size in sizes]
    if not charts[0]:
        return None
    # The charts are our own SVG; matplotlib escapes the text in them.
    return Chart(caption, Markup(charts[0]), Markup(charts[1]) if large else None)


def _scores(run: RunBeside, field: str, seconds: bool = False) -> list[tuple[float, float]]:
    seconds_spent, points = 0.0, []
    for record in run.run.rounds:
        seconds_spent += record.seconds
        if record.evaluation is not None:
            at = seconds_spent if seconds else float(finished_rounds(record))
            points.append((at, float(getattr(record.evaluation, field))))
    return points


def _held_out(run: RunBeside) -> list[tuple[float, float]]:
    return agreement_curves(run.run.rounds, "inverted")


def _metric(run: RunBeside, name: str) -> list[tuple[float, float]]:
    rounds: Sequence[RoundRecord] = run.run.rounds
    return [(float(finished_rounds(record)), record.metrics[name]) for record in rounds if name in record.metrics]


def _common(runs: Sequence[RunBeside]) -> list[str]:
    """Losses, then other measures, that at least two of the runs have."""
    names_by_run = [[*loss_names(run.run.rounds), *measure_names(run.run.rounds)] for run in runs]
    names = dict.fromkeys(
        name for names in names_by_run for name in names if name != "images"
    )  # the pool says the same
    return [name for name in names if sum(name in names for names in names_by_run) > 1]
