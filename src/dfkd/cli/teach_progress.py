"""The progress display of training a teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dfkd.teacher import Epoch

__all__ = ["epoch_progress"]


def epoch_progress(epochs: int, quiet: bool) -> AbstractContextManager[Callable[[Epoch], None] | None]:
    """A progress display for the epochs, or none."""
    return nullcontext(None) if quiet else _Bar(epochs)


class _Bar:
    """One line that is redrawn on a terminal, and nothing elsewhere."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("teacher  epoch {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task("", total=epochs, numbers="")

    def __enter__(self) -> Callable[[Epoch], None]:
        self.progress.start()
        return self._update

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def _update(self, epoch: Epoch) -> None:
        self.progress.update(
            self.task, completed=epoch.number, numbers=f"loss {epoch.loss:.3g}  right {epoch.accuracy:.2%}"
        )
