"""`dfkd distill --dry-run`: what the run would take, and whether there is room for it."""

import json
from dataclasses import asdict
from pathlib import Path

from dfkd.cli.do_distill import Job
from dfkd.cli.setup import text_of, wide_console
from dfkd.data.readers import read_images
from dfkd.engine.core import Need
from dfkd.engine.driver import Watch
from dfkd.engine.estimate import Estimate, estimate
from dfkd.engine.runtime import Runtime
from dfkd.prepare import build_task
from dfkd.report.summary import count, file_size

__all__ = ["rehearse"]


def rehearse(job: Job, out: Path, runtime: Runtime) -> int:
    """Estimate the run and print what comes of it. Nothing is written, not even the run's folder.

    Raises:
        UserError: whatever the run would refuse.
    """
    settings, facts = job.settings, job.facts
    runtime.launch()
    task = build_task(
        job.teacher.built.net,
        job.student.built.net,
        image_size=facts.image_size,
        mean=facts.mean,
        std=facts.std,
        classes=facts.named,
        text=text_of(settings.text, facts, job.method) if Need.TEXT in job.method.needs() else "index",
        web=settings.data.web,
        real=settings.data.real,
        runtime=runtime,
        teacher_layers=job.teacher.layers,
        student_layers=job.student.layers,
    )
    channels, side, _ = facts.image_size
    held = read_images(settings.data.test, "test", side=side, channels=channels) if settings.data.test else None
    watch = Watch(
        test=None if held is None else (held.images, held.labels.long()),
        evaluate_every=max(1, settings.watch.evaluate_every),
        samples_every=settings.watch.samples_every,
        save_every=settings.watch.save_every,
    )
    found = estimate(task, job.method, job.plan, watch, _existing(out))
    if runtime.rank == 0:
        _print_json(found) if settings.json else _print_table(found, runtime)
    return 0


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


def duration(seconds: float) -> str:
    """``3.2 h``, ``12 min`` or ``40 s``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"


def _print_json(found: Estimate) -> None:
    print(json.dumps({**asdict(found), "total": found.total, "warnings": warnings_of(found)}))


def _print_table(found: Estimate, runtime: Runtime) -> None:
    from rich.table import Table

    console = wide_console()
    each = " (each process)" if runtime.world > 1 else ""
    grid = Table(box=None, show_header=False, pad_edge=False)
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
