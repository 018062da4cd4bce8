"""Observers that write files: the run's description, its rounds, its sample images, TensorBoard events.

The terminal is in ``dfkd.report.console``.
"""

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dfkd.engine.records import Ending, Observer, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.report.files import Status, keep_rounds, record_line, status_of, write_error_sentence, write_run, write_whole
from dfkd.report.grid import Layout, layout
from dfkd.report.sheets import png, sheet_of
from dfkd.report.summary import finished_rounds

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunFile(Observer):
    """Keeps ``run.json`` (see ``dfkd.report.files``): what runs, and, once it has finished, what came of
    it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._info: RunInfo | None = None  # while the run is on

    def started(self, info: RunInfo) -> None:
        """Write the settings; the status is "running"."""
        write_run(self.folder, info, None, "running")
        self._info = info

    def finished(self, result: RunResult) -> None:
        """Write the outcome; the status is "finished" or "stopped"."""
        write_run(self.folder, result.info, result, status_of(result))
        self._info = None

    def write_end(self, status: Status, reason: str | None = None) -> bool:
        """Write how the run ended before it was done; False where it had not begun, or was done."""
        if self._info is None:
            return False
        write_run(self.folder, self._info, None, status, reason)
        return True


class JsonLines(Observer):
    """Appends one line of JSON per round to ``path`` (``metrics.jsonl``); NaN and infinities become ``null``.

    Args:
        path: the file; its folder is made if need be.
        resume_at: the first round (counted from 0) of this start. Lines of this and later rounds, and lines
            torn by a kill, are dropped when the run starts: 0 begins a new file.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self.resume_at = resume_at
        self._synced = -math.inf  # when the file was last flushed to the disk

    def started(self, info: RunInfo) -> None:
        """Bring the file to the state it had when round ``resume_at`` began."""
        keep_rounds(self.path, self.resume_at)

    def rounded(self, record: RoundRecord) -> None:
        """Append the round. The file is opened anew each time, so that the line is out when this returns."""
        with write_error_sentence(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(record_line(record) + "\n")
            file.flush()
            if time.monotonic() - self._synced > 1.0:
                os.fsync(file.fileno())
                self._synced = time.monotonic()


class Samples(Observer):
    """Writes the sample images of a round as ``round_0010.png``, the number of rounds done: one row per
    class.

    The sheet is the same in every round (``dfkd.report.grid.layout``): at most 20 classes, up to 10 images of
    each. Rounds without samples write nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._layout = Layout((), 0)

    def started(self, info: RunInfo) -> None:
        """Choose the classes that are shown."""
        self._layout = layout(info.image_shape, info.classes)

    def rounded(self, record: RoundRecord) -> None:
        """Write the sheet."""
        sheet = sheet_of(record, self._layout)
        if sheet is not None:
            write_whole(self.folder / f"round_{finished_rounds(record):04d}.png", png(sheet))


class TensorBoard(Observer):
    """Writes scalars and sample images for TensorBoard (extra ``tensorboard``); numbers that are not finite
    are left out.

    Args:
        folder: where the event file goes.
        resume_at: the first round (counted from 0) of this start; TensorBoard hides older events from there
            on.
    """

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        self.folder = folder
        self.resume_at = resume_at
        self._layout = Layout((), 0)
        self._writer: SummaryWriter | None = None

    def started(self, info: RunInfo) -> None:
        """Open the event file. Raises UserError where the package is missing."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "the TensorBoard observer needs the package tensorboard, got none; "
                f"run `{install_extra('tensorboard')}`"
            ) from error
        self._layout = layout(info.image_shape, info.classes)
        purge = self.resume_at + 1 if self.resume_at > 0 else None
        with write_error_sentence(self.folder):
            self._writer = SummaryWriter(str(self.folder), purge_step=purge)

    def rounded(self, record: RoundRecord) -> None:
        """Write the numbers and the samples of the round."""
        if self._writer is None:
            return
        step = finished_rounds(record)
        for name, value in scalars_of(record).items():
            self._writer.add_scalar(name, value, step)
        sheet = sheet_of(record, self._layout)
        if sheet is not None:
            self._writer.add_image("samples", _array(sheet), step, dataformats="HWC")
        self._writer.flush()

    def finished(self, result: RunResult) -> None:
        """Close the event file."""
        self._close()

    def ended(self, status: Ending) -> None:
        """Close the event file of a run that did not finish, and end the thread that writes it."""
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _array(sheet: Image.Image) -> object:
    import numpy as np

    return np.asarray(sheet.convert("RGB"))


def scalars_of(record: RoundRecord) -> dict[str, float]:
    """What trackers log of a round, as far as it is finite: metrics, scores on test images, and the estimate.

    The estimate's names are ``heldout/<kind>/agreement`` and ``signals/<name>``
    (:class:`~dfkd.engine.records.Estimate`).
    """
    values = dict(record.metrics)
    if record.evaluation is not None:
        values |= {f"test/{name}": getattr(record.evaluation, name) for name in ("accuracy", "agreement", "loss")}
    if record.estimate is not None:
        values |= {f"heldout/{kind}/agreement": look.agreement for kind, look in record.estimate.sets.items()}
        values |= {f"signals/{name}": value for name, value in record.estimate.signals.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}
