"""How far the conversion of web images is, said on the terminal: a million photographs take a while, once."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dfkd.report.summary import duration

__all__ = ["Conversion"]


class Conversion:
    """Says how many images are converted and how long the rest will take, once it has taken ``patience`` seconds.

    On a terminal this is one bar that goes away at the end; elsewhere a line every ``interval`` seconds. It is what
    :func:`~dfkd.data.rows.open_rows` takes as ``watch``; use it as a context manager.

    Args:
        console: where to write; default: standard output.
        quiet: write nothing at all.
        patience: seconds during which nothing is said.
        interval: least seconds between two plain lines.
        clock: the time in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        patience: float = 3.0,
        interval: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(file=sys.stdout) if console is None else console
        self.quiet = quiet
        self.patience = patience
        self.interval = interval
        self._clock = clock
        self._began = clock()
        self._written = -float("inf")
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Conversion":
        self._began = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int | None) -> None:
        """``done`` images of ``total`` are converted; None: of an unknown number."""
        now = self._clock()
        if self.quiet or now - self._began < self.patience or done == total:
            return
        if self.console.is_terminal:
            self._draw(done, total, now)
        elif now - self._written >= self.interval:
            self._written = now
            self.console.print(f"converting web images, once: {self._state(done, total, now)}", soft_wrap=True)

    def _draw(self, done: int, total: int | None, now: float) -> None:
        if self._bar is None:
            columns = (TextColumn("converting web images, once"), BarColumn(), TextColumn("{task.fields[said]}"))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=total, said="")
            self._bar.start()
        self._bar.update(self._task, completed=done, said=self._state(done, total, now))

    def _state(self, done: int, total: int | None, now: float) -> str:
        if total is None:
            return f"{done:,}"
        remaining = (now - self._began) / max(done, 1) * (total - done)
        return f"{done:,} of {total:,}, {duration(remaining)} left"
