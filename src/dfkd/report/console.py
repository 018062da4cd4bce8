"""The terminal: one live display while a run goes on, plain lines where there is no terminal, and the final
table."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dfkd.engine.measures import RUN_MEASURES, Measure
from dfkd.engine.records import Evaluation, Observer, RoundRecord, RunInfo, RunResult
from dfkd.report.collapse import warnings_of
from dfkd.report.summary import (
    Row,
    count,
    duration,
    file_size,
    finished_rounds,
    fitted_sentence,
    images_per_second,
    known_measures,
    last_evaluation,
    losses_of,
    notes_of,
    number,
    operations,
    overlap_sentence,
    percent,
    stop_sentence,
)
from dfkd.report.without_test import estimate_sentence, last_estimate, picked_sentence, short_estimate

RECENT = 5  # rounds whose median says how long the next one will take


class Progress(Observer):
    """Shows a run on the terminal: round, losses, pool, images per second, time left, and scores where
    evaluated.

    On a terminal this is one display that is redrawn in place. Elsewhere (a file, a pipe, a job's log) it is
    one line per round, at most one every ``interval`` seconds, and always the last. Signs of collapse are
    said once, when they show. Use it as a context manager, or call ``close``, so that an interrupt leaves the
    terminal clean.

    Args:
        console: where to write; default: standard output.
        quiet: write nothing at all.
        interval: least seconds between two plain lines.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False, interval: float = 3.0) -> None:
        self.console = Console(file=sys.stdout) if console is None else console
        self.quiet = quiet
        self.interval = interval
        self._records: list[RoundRecord] = []
        self._told: set[str] = set()
        self._classes = 0
        self._known: Mapping[str, Measure] = RUN_MEASURES
        self._total = 0
        self._warmup = 0
        self._done = 0
        self._phase = ""
        self._written = -float("inf")
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop redrawing; what is on the screen stays."""
        if self._live is not None:
            self._phase = ""
            self._live.stop()
            self._live = None

    def started(self, info: RunInfo) -> None:
        """Say what is distilled into what, and open the display."""
        self._classes, self._known = info.classes, known_measures(info)
        self._warmup = int(number(info.plan.get("warmup")) or 0)
        self._total = int(number(info.plan.get("rounds")) or 0) + self._warmup
        if self.quiet:
            return
        self.console.print(Text(_headline(info), style="bold"), soft_wrap=True)
        if info.continues is not None:
            self.note(f"goes on with a run that was {info.continues}")
        for note in notes_of(info):
            self.note(f"note: {note}")
        if info.fitted is not None:
            self.note(fitted_sentence(info))
        if info.overlap is not None:
            self.note(overlap_sentence(info.overlap))
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=5)
            self._live.start()

    def note(self, line: str) -> None:
        """Say something beside the rounds."""
        if not self.quiet:
            self._print(line)

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        """Remember where the round is; the display looks at it when it is redrawn."""
        self._done = round
        self._phase = f"{phase} {done}/{total}"

    def rounded(self, record: RoundRecord) -> None:
        """Show the round."""
        self._done, self._total, self._phase = finished_rounds(record), record.rounds, ""
        self._records.append(replace(record, samples=None))
        if self.quiet:
            return
        now = time.monotonic()
        last = self._done >= self._total
        if self._live is None and (last or now - self._written >= self.interval):
            self._written = now
            remaining = "" if last else f"  {self._time_left()}"
            self._print(f"round {self._done}/{self._total}  {_state(self._records)}{remaining}")
        for concern in warnings_of(self._records, self._classes, self._known):
            if concern.kind not in self._told:
                self._told.add(concern.kind)
                self._print(f"warning: {concern.text}", "yellow")

    def finished(self, result: RunResult) -> None:
        """Close the display and say how long it took."""
        self.close()
        if not self.quiet and result.stopped is not None:
            self._print(stop_sentence(result.rounds, result.stopped))
        estimate = last_estimate(result.rounds)
        if estimate is not None and estimate.sets:
            self.note(estimate_sentence(estimate))
        if picked_sentence(result):
            self.note(picked_sentence(result))
        if not self.quiet:
            self._print(f"done in {duration(result.seconds)}")

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style=style), soft_wrap=self._live is None)

    def _time_left(self) -> str:
        """Time to go, from the latest rounds of the same kind; until the student's turn comes, that of the warm-up."""
        if not self._records:
            return f"{duration(None)} left"
        kind = self._records[-1].warmup
        recent = [record.seconds for record in self._records if record.warmup == kind][-RECENT:]
        rounds = (self._warmup if kind else self._total) - self._done
        remaining = f"{duration(statistics.median(recent) * rounds)} left"
        if kind:
            return f"{remaining} of the warm-up" if rounds > 0 else "end of the warm-up"
        return remaining

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        remaining = self._time_left() if self._done < self._total else "all rounds done"
        bar.add_row(
            Text(f"round {self._done}/{self._total}", style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._done),
            Text("  ".join(part for part in (self._phase, remaining) if part), style="dim"),
        )
        return Group(bar, Text(_state(self._records), overflow="fold"))


def announce(line: str, quiet: bool = False) -> None:
    """Say on standard output what takes a while before a run can begin."""
    if not quiet:
        Console(file=sys.stdout).print(Text(line, style="dim"), soft_wrap=True)


def table(rows: Sequence[Row]) -> Table:
    """The comparison as a rich table; FLOPs are twice the multiply-accumulates. Unknown values show as a
    dash."""
    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    sheet.add_column("", overflow="fold")  # a long name takes two lines before a number loses a digit
    for heading in ("accuracy", "agreement", "parameters", "FLOPs", "file", "time"):
        sheet.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sheet.add_row(Text(row.name), *cells(row))
    return sheet


def cells(row: Row) -> tuple[str, str, str, str, str, str]:
    """Accuracy, agreement, parameters, FLOPs, file size and time of a row, as people read them."""
    return (
        percent(row.accuracy),
        percent(row.agreement),
        count(row.parameters),
        operations(None if row.macs is None else 2 * row.macs),
        file_size(row.bytes),
        duration(row.seconds),
    )


def _headline(info: RunInfo) -> str:
    shape = "x".join(str(size) for size in info.image_shape)
    teacher, student = info.teacher.get("name") or "teacher", info.student.get("name") or "student"
    return f"{info.method}: {teacher} -> {student}, {info.classes} classes, images {shape}"


def _state(records: Sequence[RoundRecord]) -> str:
    """The newest round in one line."""
    if not records:
        return "starting"
    record = records[-1]
    parts = [f"{name.removeprefix('loss/')} {value:.3g}" for name, value in losses_of(record).items()]
    pool, rate = number(record.metrics.get("pool")), images_per_second(records)
    if pool is not None:
        parts.append(f"pool {pool:,.0f}")
    if rate:  # none are made once a transfer set is complete
        parts.append(f"{rate:,.0f} images/s")
    if record.warmup:
        parts.insert(0, "warm-up")
    estimate = last_estimate(records)
    scores = _scores(last_evaluation(records))
    scores += [] if estimate is None else [short_estimate(estimate)]
    return "  ".join(parts + [text for text in scores if text])


def _scores(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return []
    scores = {"accuracy": evaluation.accuracy, "agreement": evaluation.agreement}
    return [f"{name} {percent(value)}" for name, value in scores.items() if number(value) is not None]
