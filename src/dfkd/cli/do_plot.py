"""`dfkd plot`: figures and curves of a run, drawn from its folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfkd.cli.config import Plot
from dfkd.cli.fields import notes
from dfkd.cli.job import Job, exam_of, rebuilt_job, task_of
from dfkd.cli.parse import Tree
from dfkd.cli.setup import find_method, plain_settings
from dfkd.deploy.stored import stored_images
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import State, Task
from dfkd.engine.driver import revisit
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.report.comparison import short_names
from dfkd.report.curves import comparison
from dfkd.report.drawers import class_sheet
from dfkd.report.figures import curves_of, figures_of
from dfkd.report.files import StoredRun, read_run, write_whole
from dfkd.report.gallery import FIGURES_FOLDER, Figure, Gallery, read_gallery, write_gallery
from dfkd.report.summary import class_names, known_measures, percent
from dfkd.report.sweep import sweep_chart, sweep_of

__all__ = ["run"]


def run(settings: Plot) -> int:
    """Draw what can be drawn, and say what cannot."""
    if settings.run is None and not settings.compare:
        raise UserError("plot needs a run folder, got none; for example `dfkd plot runs/x`")
    if settings.over is not None:
        return _over(settings.over, [*([settings.run] if settings.run else []), *(settings.compare or [])], settings)
    if settings.run is None:
        return _compare(Path(settings.out or "."), settings)
    folder = Path(settings.run)
    gallery = _of_run(folder, settings)
    if settings.compare:
        gallery = replace(gallery, figures=[*gallery.figures, _comparison([settings.run, *settings.compare], settings)])
    out = _writable(Path(settings.out) if settings.out else folder / FIGURES_FOLDER)
    write_gallery(out, gallery if settings.out else _with_earlier(out, gallery))
    for figure in gallery.figures:
        print(f"{figure.name:<19} {out / figure.file}")
    for name, why in gallery.skipped.items():
        print(f"{name:<19} not drawn: {why}")
    return 0


def _writable(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise UserError(f"plot needs a folder to write to, got the file {out}; remove it or choose another --out")
    return out


def _with_earlier(out: Path, gallery: Gallery) -> Gallery:
    """Where something is missing now, what was drawn while it was there stays: it may never be drawn again."""
    try:
        earlier = read_gallery(out).figures if gallery.skipped else ()
    except UserError:  # damaged: drawn anew as far as possible
        return gallery
    names = {figure.name for figure in gallery.figures}
    return replace(gallery, figures=[*gallery.figures, *(old for old in earlier if old.name not in names)])


def _compare(out: Path, settings: Plot) -> int:
    """One file, beside whatever else is there."""
    figure = _comparison(settings.compare or [], settings)
    write_whole(_writable(out) / figure.file, figure.data)
    print(f"{figure.name:<19} {out / figure.file}")
    return 0


def _over(name: str, folders: Sequence[str], settings: Plot) -> int:
    """The last accuracies of several runs over one setting; one file, and its numbers on the screen."""
    runs = {folder: read_run(Path(folder)) for folder in _distinct_folders(folders)}
    sweep = sweep_of(runs, name)
    means, spreads, many = sweep.means(), sweep.spreads(), [len(values) for values in sweep.accuracies.values()]
    for value, mean, spread, n in zip(sweep.accuracies, means, spreads, many, strict=True):
        text = f" ± {100 * spread:.2f}, {n} runs" if n > 1 else ""
        print(f"{name} = {value:<11} {percent(mean)}{text}")
    if sweep.others:
        print(f"the runs also differ in {', '.join(sweep.others)}")
    out = _writable(Path(settings.out or ".")) / f"over-{name}.{settings.format}"
    write_whole(out, sweep_chart(sweep, settings.format, _label(name, next(iter(runs.values())))))
    print(f"{'over ' + name:<19} {out}")
    return 0


def _label(name: str, stored_run: StoredRun) -> str:
    """What a hyper-parameter is called beside its field, with the paper's symbol; else the setting's name."""
    part, _, field = name.partition(".")
    if part != "method":
        return name
    try:
        note = notes(find_method(stored_run.info.method)).get(field, "")
    except UserError:  # a class of somebody's own that is not here
        return name
    return note.partition(" (")[0].partition(";")[0].partition(":")[0] or name


def _distinct_folders(folders: Sequence[str]) -> list[str]:
    """The folders, each once: a run that is given twice is no second run."""
    return list({Path(folder).resolve(): folder for folder in folders}.values())


def _of_run(folder: Path, settings: Plot) -> Gallery:
    """Curves from the metrics; the other figures from the checkpoint, or as many as go without."""
    stored_run = read_run(folder)
    curves = curves_of(stored_run.rounds, stored_run.result, settings.format, known_measures(stored_run.info))
    try:
        job, task = _rebuilt(folder, settings)
    except UserError as error:
        return _without_teacher(folder, stored_run, curves, str(error))
    skipped = {}
    state: State | None = None
    try:
        state = _state(folder, stored_run, job, task)
    except UserError as error:
        skipped["checkpoint"] = str(error)
    exam = None
    try:
        exam = exam_of(job, task)
    except UserError as error:
        skipped["test images"] = str(error)
    gallery = figures_of(task, job.method, job.plan, state, exam, settings.format, stored_run.info.overlap)
    return Gallery([*curves, *gallery.figures], {**skipped, **gallery.skipped})


def _rebuilt(folder: Path, settings: Plot) -> tuple[Job, Task]:
    """The pair as the run began, on whatever device there is, with what the flags say put over it."""
    flags: Tree = {name: plain_settings(getattr(settings, name)) for name in ("teacher", "student", "data")}
    if settings.own_method is not None:
        flags["method"] = {"name": settings.own_method}
    job, _ = rebuilt_job(folder, "plot", flags)
    return job, task_of(job, runtime_of(job.settings.runtime).launch())


def _state(folder: Path, stored_run: StoredRun, job: Job, task: Task) -> State:
    """What the run's first process remembered at its last save."""
    world: Any = stored_run.info.provenance.get("processes", 1)
    checkpoint = Checkpoint(folder / "checkpoint", 0, int(world))
    if not checkpoint.exists():
        raise UserError(f"plot needs the checkpoint of the run, got {folder} without; images of the run are lost")
    return revisit(task, job.method, job.plan, checkpoint)


def _without_teacher(folder: Path, stored_run: StoredRun, curves: Sequence[Figure], why: str) -> Gallery:
    """Curves, and the images that lie in the checkpoint."""
    skipped = {"networks": why}
    try:
        images, labels = stored_images(folder, 2000)
        sheet = class_sheet((images.flip(0), labels.flip(0)), class_names(stored_run.info))
        return Gallery([*curves, sheet], skipped)
    except UserError as error:
        return Gallery(curves, {**skipped, "classes": str(error)})


def _comparison(folders: Sequence[str], settings: Plot) -> Figure:
    """One chart of the accuracies of several runs."""
    folders = _distinct_folders(folders)
    if len(folders) < 2:
        raise UserError(
            f"plot --compare needs at least two runs, got only {folders[0]}; add another, or draw the curves of one "
            f"with `dfkd plot {folders[0]}`"
        )
    runs = {folder: read_run(Path(folder)).rounds for folder in folders}
    blank = [name for name, records in runs.items() if all(record.evaluation is None for record in records)]
    if blank:
        raise UserError(
            f"plot --compare needs runs that were evaluated on test images, got {blank[0]} without; leave it out"
        )
    by_name = dict(zip(short_names([Path(folder) for folder in folders]), runs.values(), strict=True))
    caption = f"Accuracy of {len(by_name)} students over rounds and over seconds of distillation."
    return Figure("comparison", caption, comparison(by_name, settings.format), "Two charts with one curve per run")
