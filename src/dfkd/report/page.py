"""One HTML file that tells whether a run went well. It needs no network, runs no script, and prints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.engine.measures import Measure
from dfkd.engine.records import Evaluation, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.report.charts import NARROW, TONES, WIDE, Line, line_chart, loss_names, metric_chart, quality_chart
from dfkd.report.collapse import Concern, warnings_of
from dfkd.report.console import cells
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import StoredRun, read_run, status_of, write_whole
from dfkd.report.gallery import CURVES, FIGURES_FOLDER, Gallery, read_gallery
from dfkd.report.html import render_template
from dfkd.report.image_kinds import image_kind
from dfkd.report.sheets import name_rows, sheets_in, sheets_of, sheets_within_limits
from dfkd.report.summary import (
    Number,
    Row,
    Verdict,
    class_names,
    duration,
    file_size,
    finished_rounds,
    fitted_sentence,
    known_measures,
    last_evaluation,
    measure_names,
    number,
    overlap_sentence,
    percent,
    rows_of,
    sentence,
    stop_sentence,
)
from dfkd.report.values import value_text
from dfkd.report.verdict import verdict_of
from dfkd.report.without_test import (
    agreement_curves,
    agreement_rows,
    estimate_sentence,
    last_estimate,
    picked_sentence,
    signal_notes,
)

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Concern", "Verdict", "warnings_of", "write_page"]

PAGE_FILE = "report.html"
MOST_NUMBERS = 6  # below a figure; its index has all
MOST_CLASSES = 40  # bars; of more classes, those with the lowest agreement are shown


@dataclass(frozen=True)
class Chart:
    """A chart and its caption; ``note`` says what a dashed line means."""

    caption: str
    svg: "Markup"
    note: str = ""


def write_page(source: Path | RunResult, out: Path | None = None, others: Sequence[Row] = ()) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        source: a run folder (``run.json``, ``metrics.jsonl``, ``samples/round_*.png``, ``figures/index.json``; of a
            finished, interrupted or running run), or a result, whose rounds may hold samples.
        out: the file to write; default ``report.html`` in the run folder.
        others: more lines for the comparison table, for instance a student that was fed noise.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder holds no run, a file in it is damaged, or the page cannot be written.
    """
    if isinstance(source, RunResult):
        if out is None:
            raise UserError("the report of a result needs a file to write to, got None; give out='report.html'")
        run, sheets, gallery = (
            StoredRun(source.info, source.rounds, source, status_of(source)),
            sheets_of(source),
            Gallery(),
        )
    else:
        run, sheets, gallery = read_run(source), sheets_in(source), read_gallery(source / FIGURES_FOLDER)
        out = source / PAGE_FILE if out is None else out
    write_whole(out, render(run, sheets, others, gallery).encode())
    return out


def render(
    run: StoredRun,
    sheets: Sequence[tuple[int, bytes]] = (),
    others: Sequence[Row] = (),
    gallery: Gallery | None = None,
) -> str:
    """The page as text; ``sheets`` are (rounds done, PNG file), oldest first. All text from the run is escaped."""
    return render_template("page.html.j2", _context(run, sheets, others, gallery or Gallery()))


def _context(
    run: StoredRun, sheets: Sequence[tuple[int, bytes]], others: Sequence[Row], gallery: Gallery
) -> dict[str, Any]:
    info, rounds, result = run.info, run.rounds, run.result
    rows = [*rows_of(info, rounds, result), *others]
    return {
        "info": info,
        "kind": image_kind(info),
        "teacher": info.teacher.get("name") or "teacher",
        "student": info.student.get("name") or "student",
        "shape": " × ".join(str(size) for size in info.image_shape),
        "status": run.status,
        "progress": _progress(rounds),
        "ending": _ending_sentence(run),
        "verdict": verdict_of(info, rounds, result),
        "warnings": warnings_of(rounds, info.classes, known_measures(info)),
        "tiles": _tiles(rows, rounds),
        "table": [(row.name, cells(row)) for row in rows],
        "quality": _quality(rounds, result.teacher_evaluation if result else None),
        "teacher_accuracy": percent(rows[0].accuracy),
        **_without_test(rounds, result),
        "losses": _loss_charts(rounds),
        "health": _health_charts(rounds, info),
        "sheets": [name_rows(info, *sheet) for sheet in sheets_within_limits(sheets)],
        "figures": [
            (figure, [f"{name}: {_short_number(value)}" for name, value in list(figure.numbers.items())[:MOST_NUMBERS]])
            for figure in gallery.figures
            if figure.name not in CURVES and not (figure.name == "classes" and sheets)  # the last sheet shows that
        ],
        "skipped": gallery.skipped,
        "classes": _class_bars(run),
        "class_limit": MOST_CLASSES,
        "sections": _sections(info),
        "loading": _loading_code(info, result),
        "overlap": _overlap(info),
        "fitted": sentence(fitted_sentence(info)),
        "notes": info.notes,
        "files": {} if result is None else result.files,
    }


def _without_test(rounds: Sequence[RoundRecord], result: RunResult | None) -> dict[str, Any]:
    """What held-out synthetic images say of the student, where that was measured."""
    estimate = last_estimate(rounds)
    if estimate is None or not estimate.sets:
        return {"estimate": "", "estimate_rows": [], "estimate_chart": [], "signals": [], "picked": ""}
    kinds = [("own", "images of the run's method"), ("inverted", "images made from the teacher alone")]
    curves = [(tone, *kind) for tone, kind in zip(TONES, kinds, strict=False) if kind[0] in estimate.sets]
    lines = [Line(kind, agreement_curves(rounds, kind), tone) for tone, kind, _ in curves]
    title = "Agreement on held-out synthetic images over rounds"
    charts = [_chart("", line_chart(title, lines, size=size, as_percent=True)) for size in (WIDE, NARROW)]
    return {
        "estimate": estimate_sentence(estimate),
        "estimate_rows": agreement_rows(estimate),
        "estimate_legend": [(tone, name) for tone, _, name in curves],
        "estimate_chart": [(name, chart) for name, chart in zip(("wide", "narrow"), charts, strict=True) if chart],
        "signals": signal_notes(estimate),
        "picked": picked_sentence(result),
    }


def _ending_sentence(run: StoredRun) -> str:
    """Why the run ended where it did, unless by its plan, and what it goes on with."""
    earlier = "" if run.info.continues is None else f"It goes on with a run that was {run.info.continues}."
    if run.result is not None and run.result.stopped is not None:
        return f"This run was {stop_sentence(run.rounds, run.result.stopped)}. {earlier}".rstrip()
    if run.status == "failed":
        return f"This run failed: {run.reason or 'no reason is known'}. {earlier}".rstrip()
    warning = "" if run.status == "finished" else "This run has not finished; the numbers are those of its last round."
    return f"{warning} {earlier}".strip()


def _overlap(info: RunInfo) -> str:
    """Whether evaluation images are among those the student may have learnt from."""
    if info.overlap is None:
        return ""
    remark = " They were counted, not removed." if info.overlap.alike else ""
    return f"Near-duplicates: {overlap_sentence(info.overlap)}.{remark}"


def _progress(rounds: Sequence[RoundRecord]) -> str:
    return f"{finished_rounds(rounds[-1])} of {rounds[-1].rounds} rounds" if rounds else "no round done yet"


def _tiles(rows: Sequence[Row], rounds: Sequence[RoundRecord]) -> list[tuple[str, str, str]]:
    """The few numbers that matter: (what, value, compared with what); those that are unknown are left out."""
    teacher, student = rows[:2]
    tiles = [
        ("Accuracy", percent(student.accuracy), f"teacher {percent(teacher.accuracy)}"),
        ("Agreement", percent(student.agreement), "same class as the teacher"),
        ("Size", _ratio(student.parameters, teacher.parameters), "of the teacher's parameters"),
        ("Work", _ratio(student.macs, teacher.macs), "of the teacher's FLOPs"),
        ("File", file_size(student.bytes), f"teacher {file_size(teacher.bytes)}"),
        ("Time", duration(student.seconds), _progress(rounds)),
    ]
    return [tile for tile in tiles if tile[1] != "–"]


def _short_number(value: float) -> str:
    if number(value) is None:
        return "–"
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _ratio(part: Number, total: Number) -> str:
    return "–" if part is None or not total else f"{100 * part / total:.3g} %"


def _chart(caption: str, svg: str, note: str = "") -> Chart | None:
    from markupsafe import Markup

    # The charts are our own SVG; matplotlib escapes the text in them.
    return Chart(caption, Markup(svg), note) if svg else None


def _quality(rounds: Sequence[RoundRecord], teacher: Evaluation | None) -> list[tuple[str, Chart]]:
    """The chart of accuracy and agreement for wide and for narrow windows, of which one shows; none without scores."""
    charts = [_chart("", quality_chart(rounds, teacher, size)) for size in (WIDE, NARROW)]
    return [(name, chart) for name, chart in zip(("wide", "narrow"), charts, strict=True) if chart is not None]


def _loss_charts(rounds: Sequence[RoundRecord]) -> list[Chart]:
    charts = [_chart(name.removeprefix("loss/"), metric_chart(rounds, name)) for name in loss_names(rounds)]
    return [chart for chart in charts if chart is not None]


def _health_charts(rounds: Sequence[RoundRecord], info: RunInfo) -> list[Chart]:
    """Every measure that is not minor."""
    measures, charts = known_measures(info), []
    for name in measure_names(rounds, measures):
        measure = measures.get(name, Measure(name.replace("_", " ")))
        chart = metric_chart(rounds, name, measure.height(info.classes))
        charts += [] if measure.minor else [_chart(sentence(measure.heading), chart, measure.note(info.classes))]
    return [chart for chart in charts if chart is not None]


def _class_bars(run: StoredRun) -> list[tuple[str, float | None, float | None]]:
    """Name, agreement and accuracy of each class; of many classes, those with the lowest agreement, lowest first."""
    evaluation = run.result.final if run.result is not None else last_evaluation(run.rounds)
    if evaluation is None or len(evaluation.class_agreement) != run.info.classes:
        return []
    accuracies: Sequence[float] = evaluation.class_accuracy
    if len(accuracies) != run.info.classes:
        accuracies = [math.nan] * run.info.classes
    bars = [
        (name, number(agreement), number(accuracy))
        for name, agreement, accuracy in zip(class_names(run.info), evaluation.class_agreement, accuracies, strict=True)
    ]
    if len(bars) <= MOST_CLASSES:
        return bars
    return sorted(bars, key=lambda bar: math.inf if bar[1] is None else bar[1])[:MOST_CLASSES]


def _sections(info: RunInfo) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings and provenance as titled lists of (name, value)."""
    parts: list[tuple[str, Mapping[str, object]]] = [
        (f"Method: {info.method}", info.settings),
        ("Plan", info.plan),
        ("Teacher", info.teacher),
        ("Student", info.student),
        ("Label text", info.text or {}),
        ("Provenance", info.provenance),
    ]
    return [
        (title, [(name, value_text(value)) for name, value in dotted_settings(values).items()])
        for title, values in parts
        if values
    ]


def _loading_code(info: RunInfo, result: RunResult | None) -> str:
    """The lines that load the student into the network that the user built."""
    weights = "student.safetensors" if result is None else result.files.get("weights", "student.safetensors")
    return "\n".join(
        [
            "from safetensors.torch import load_file",
            f"student = ...  # build the network as for the run: {info.student.get('name') or 'your student'}",
            f"student.load_state_dict(load_file({weights!r}))",
        ]
    )
