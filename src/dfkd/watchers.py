"""The observers of a run: files, the terminal, the user's own; and what they are told before its first round."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dfkd.data.overlap import find_duplicates
from dfkd.engine.core import Task
from dfkd.engine.lock import lock_folder
from dfkd.engine.records import Ending, Keep, Observer, RunInfo
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.report.console import Progress
from dfkd.report.files import METRICS_FILE, SAMPLES_FOLDER, StoredRun, read_run, write_run
from dfkd.report.observers import JsonLines, RunFile, Samples, TensorBoard
from dfkd.report.page import write_page
from dfkd.report.summary import duration, stop_sentence
from dfkd.report.trackers import MLflow, WandB
from dfkd.runs import forget_run

__all__ = ["earlier_stop", "end_with_lost_process", "look_for_duplicates", "observers_of", "recording_end", "tell"]

LONG = 10.0  # seconds of a look at the web images that are announced


def observers_of(
    folder: Path | None,
    stored: StoredRun | None,
    done: int,
    runtime: Runtime,
    stack: ExitStack,
    progress: bool,
    keep: Keep,
    tensorboard: bool = False,
    track: str = "none",
) -> list[Observer]:
    """Only process 0 watches; ``keep`` gets the ``done`` rounds that were run before."""
    if runtime.rank > 0:
        return []
    observers: list[Observer] = []
    if folder is not None:
        observers += [RunFile(folder), JsonLines(folder / METRICS_FILE, done), Samples(folder / SAMPLES_FOLDER)]
        keep.records.extend(record for record in (stored.rounds if stored else []) if record.round < done)
    if folder is not None and tensorboard:
        observers.append(TensorBoard(folder / "tensorboard", done))
    if folder is not None and track != "none":
        observers.append(WandB(folder) if track == "wandb" else MLflow(folder))
    if progress:
        observers.append(stack.enter_context(Progress()))
    return observers


def earlier_stop(run: StoredRun | None) -> str | None:
    """Where and why an earlier start of this run was stopped; None where it was not."""
    if run is None:
        return None
    if run.result is None or run.result.stopped is None:
        return run.info.continues
    return stop_sentence(run.result.rounds, run.result.stopped)


def look_for_duplicates(
    task: Task, exam: tuple[Tensor, Tensor] | None, info: RunInfo, watchers: Sequence[Observer]
) -> RunInfo:
    """``info`` with near-duplicates of the test images among the web images, by process 0.

    What a resumed run found in its earlier start (``info.overlap``) is kept where it was about the same images.
    """
    web, earlier = task.web, info.overlap
    if web is None or exam is None or task.runtime.rank > 0:
        return info
    if earlier is not None and (earlier.web, earlier.images) == (len(web), len(exam[0])):
        return info
    screens = [watcher for watcher in watchers if isinstance(watcher, Progress)]

    def warn(seconds: float) -> None:
        for screen in screens if seconds > LONG else ():
            screen.note(
                f"looking for test images among {len(web):,} web images: about {duration(seconds)}; to leave that out, "
                "--watch.overlap false (overlap=False)"
            )

    return replace(info, overlap=find_duplicates(web, exam[0], expect=warn))


def tell(watchers: Sequence[Observer], info: RunInfo, runtime: Runtime) -> None:
    """The run begins: only now, when every process has read what it continues from, may its files change.

    ``run.json`` is written last: a folder that has it has all that a resume needs.
    """
    runtime.barrier()
    for observer in sorted(watchers, key=lambda watcher: isinstance(watcher, RunFile)):
        observer.started(info)


@contextmanager
def recording_end(
    watchers: Sequence[Observer], keep: Keep, resumed: bool, runtime: Runtime, folder: Path | None
) -> Iterator[None]:
    """What ends a run early is written into its folder; one that had no round yet leaves a folder to start again in.

    An error makes it "failed", with its sentence in ``run.json`` and in the report; a signal makes it "interrupted".
    However it ends, the observers are told (:meth:`~dfkd.engine.records.Observer.ended`).
    """
    try:
        yield
    except BaseException as error:
        error = runtime.explain(error, folder) if runtime.comes_of_lost_process(error) else error
        begun = resumed or bool(keep.records)
        run_files = [watcher for watcher in watchers if isinstance(watcher, RunFile)]
        for run_file in run_files if begun else ():  # first of all: a tracker may take its time to close
            with suppress(UserError, OSError):  # a full disk must not hide the error
                _record_end(run_file, error)
        with suppress(Exception):  # nor may an observer
            _tell_end(watchers, "failed" if isinstance(error, Exception) else "interrupted")
        for run_file in () if begun else run_files:  # last: observers hold files open
            with suppress(UserError, OSError):
                forget_run(run_file.folder)
        raise
    _tell_end(watchers, "finished" if keep.result is None or keep.result.stopped is None else "stopped")


def _record_end(run_file: RunFile, error: BaseException) -> None:
    if not isinstance(error, Exception):
        run_file.write_end("interrupted")
    elif run_file.write_end("failed", _sentence(error)):
        write_page(run_file.folder)


def _tell_end(watchers: Sequence[Observer], status: Ending) -> None:
    """Every observer is told, in order, whatever the hooks of others raise; that is raised in the end."""
    with ExitStack() as stack:
        for watcher in reversed(watchers):
            if hasattr(watcher, "ended"):  # an object that is no Observer may have the four older hooks alone
                stack.callback(watcher.ended, status)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def end_with_lost_process(runtime: Runtime, folder: Path | None) -> Iterator[None]:
    """A process of the run that is gone, or does not answer, ends the others in one sentence, with how to go on.

    Where process 0 is gone, one that is left records that the run failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not runtime.comes_of_lost_process(error):
            raise
        sentence = runtime.explain(error, folder)
        if folder is not None and runtime.rank > 0:
            with suppress(UserError, OSError):
                _record_loss(folder, str(sentence))
        raise sentence from error


def _record_loss(folder: Path, sentence: str) -> None:
    """For a process 0 that is gone. Raises UserError while it is there: it has the lock."""
    with lock_folder(folder):
        record = read_run(folder, mend=True)
        if record.status == "running":
            write_run(folder, record.info, None, "failed", sentence)
