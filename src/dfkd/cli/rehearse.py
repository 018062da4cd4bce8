"""`dfkd distill --dry-run`: what the run would take, and whether there is room for it."""

import json
from dataclasses import asdict
from pathlib import Path

from dfkd.cli.job import Job, exam_of, task_of
from dfkd.cli.setup import wide_console
from dfkd.engine.core import Task
from dfkd.engine.driver import Watch
from dfkd.engine.estimate import Estimate, estimate
from dfkd.engine.heldout import is_measured
from dfkd.engine.hours import fit_plan
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.engine.stopping import Judge
from dfkd.inputs import check_measured
from dfkd.report.summary import count, duration, file_size
from dfkd.runs import check_free

__all__ = ["rehearse"]


def rehearse(job: Job, out: Path, runtime: Runtime) -> int:
    """Estimate the run and print what comes of it. Nothing is written, not even the run's folder.

    Raises:
        UserError: whatever the run would refuse.
    """
    settings = job.settings
    check_measured(settings.stop, settings.watch)
    check_free(out)
    runtime.launch()
    task = task_of(job, runtime)
    exam, stop = exam_of(job, task), settings.stop
    measured = is_measured(settings.watch.estimate, stop.measured is not None, exam is None, job.plan, task.classes)
    watch = Watch(
        test=exam,
        judge=Judge(keep=stop.picked is not False) if measured else None,
        evaluate_every=settings.watch.evaluate_every,
        metrics_every=settings.watch.metrics_every,
        samples_every=settings.watch.samples_every,
        save_every=settings.watch.save_every,
    )
    found, plan = _expected(job, task, watch, _existing(out))
    if runtime.rank == 0:
        if settings.json:
            _print_json(found, plan)
        else:
            _print_table(found, runtime, plan if settings.stop.hours else None)
    return 0


def _expected(job: Job, task: Task, watch: Watch, folder: Path) -> tuple[Estimate, Plan]:
    """What the run takes, and its plan: the job's, or what of it fits the hours that were given."""
    if job.settings.stop.hours is None:
        return estimate(task, job.method, job.plan, watch, folder), job.plan
    fit = fit_plan(task, job.method, job.plan, watch, job.settings.stop.hours, folder)
    return fit.estimate, fit.plan


def warnings_of(found: Estimate) -> list[str]:
    """What there is no room for, and what would help."""
    said = []
    if found.memory > found.memory_free:
        said.append(
            f"the run needs {file_size(found.memory)} of memory, {file_size(found.memory_free)} are free: set the "
            "method's memory to fewer images, or lower the batch sizes"
        )
    if found.disk > found.disk_free:
        said.append(
            f"the run folder needs {file_size(found.disk)}, {file_size(found.disk_free)} are free there: set the "
            "method's memory to fewer images, or choose another --out"
        )
    return said


def _print_json(found: Estimate, plan: Plan) -> None:
    told = {"plan": asdict(plan), "total": found.total, "warnings": warnings_of(found)}
    print(json.dumps({**asdict(found), **told}))


def _print_table(found: Estimate, runtime: Runtime, plan: Plan | None) -> None:
    from rich.table import Table

    console = wide_console()
    each = " (each process)" if runtime.world > 1 else ""
    grid = Table(box=None, show_header=False, pad_edge=False)
    if plan is not None:
        grid.add_row("plan", f"{plan.rounds} rounds" + (f", {plan.warmup} of warm-up before" if plan.warmup else ""))
    grid.add_row("time", f"{duration(found.total)} ({found.total / 3600:.2f} hours)")
    for phase, seconds in found.seconds.items():
        grid.add_row(f"  {phase}", f"{duration(seconds)}")
    grid.add_row(f"images{each}", count(found.images))
    grid.add_row(f"pool{each}", file_size(found.pool))
    grid.add_row(f"peak memory{each}", f"{file_size(found.memory)} of {file_size(found.memory_free)}")
    grid.add_row(f"disk{each}", f"{file_size(found.disk)} of {file_size(found.disk_free)}")
    console.print(grid)
    for line in warnings_of(found):
        console.print(f"warning: {line}", soft_wrap=True)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
