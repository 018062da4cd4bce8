"""`dfkd distill --dry-run`: what the run would take, and whether there is room for it."""

import json
import sys
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
    measured = is_measured(
        settings.watch.estimate, stop.agreement_field is not None, exam is None, job.plan, task.classes
    )
    watch = Watch(
        test=exam,
        judge=Judge(keep=stop.picked is not False) if measured else None,
        evaluate_every=settings.watch.evaluate_every,
        metrics_every=settings.watch.metrics_every,
        samples_every=settings.watch.samples_every,
        save_every=settings.watch.save_every,
    )
    if runtime.rank == 0 and not settings.watch.quiet:
        print("measuring the first rounds, which takes as long as up to four of them ...", file=sys.stderr, flush=True)
    expected, plan = _estimate_run(job, task, watch, _nearest_folder(out))
    if runtime.rank == 0:
        if settings.json:
            _print_json(expected, plan)
        else:
            _print_table(expected, runtime, plan if settings.stop.hours else None)
    return 0


def _estimate_run(job: Job, task: Task, watch: Watch, folder: Path) -> tuple[Estimate, Plan]:
    """What the run takes, and its plan: the job's, or what of it fits the hours that were given."""
    if job.settings.stop.hours is None:
        return estimate(task, job.method, job.plan, watch, folder), job.plan
    fit = fit_plan(task, job.method, job.plan, watch, job.settings.stop.hours, folder)
    return fit.estimate, fit.plan


def warnings_of(measured: Estimate) -> list[str]:
    """What there is no room for, and what would help."""
    sentences = []
    if measured.memory > measured.memory_free:
        sentences.append(
            f"the run needs {file_size(measured.memory)} of memory, {file_size(measured.memory_free)} are free: set "
            "the method's memory to fewer images, or lower the batch sizes"
        )
    if measured.disk > measured.disk_free:
        sentences.append(
            f"the run folder needs {file_size(measured.disk)}, {file_size(measured.disk_free)} are free there: set the "
            "method's memory to fewer images, or choose another --out"
        )
    return sentences


def _print_json(measured: Estimate, plan: Plan) -> None:
    content = {"plan": asdict(plan), "total": measured.total, "warnings": warnings_of(measured)}
    print(json.dumps({**asdict(measured), **content}))


def _print_table(measured: Estimate, runtime: Runtime, plan: Plan | None) -> None:
    from rich.table import Table

    console = wide_console()
    per_process = " (each process)" if runtime.world > 1 else ""
    grid = Table(box=None, show_header=False, pad_edge=False)
    if plan is not None:
        grid.add_row("plan", f"{plan.rounds} rounds" + (f", {plan.warmup} of warm-up before" if plan.warmup else ""))
    grid.add_row("time", f"{duration(measured.total)} ({measured.total / 3600:.2f} hours)")
    for phase, seconds in measured.seconds.items():
        grid.add_row(f"  {phase}", f"{duration(seconds)}")
    grid.add_row(f"images{per_process}", count(measured.images))
    grid.add_row(f"pool{per_process}", file_size(measured.pool))
    grid.add_row(f"peak memory{per_process}", f"{file_size(measured.memory)} of {file_size(measured.memory_free)}")
    grid.add_row(f"disk{per_process}", f"{file_size(measured.disk)} of {file_size(measured.disk_free)}")
    console.print(grid)
    for line in warnings_of(measured):
        console.print(f"warning: {line}", soft_wrap=True)


def _nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
