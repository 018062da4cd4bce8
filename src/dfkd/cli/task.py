"""From a checked job to what the engine runs: for commands that look at a run without the front door."""

from dfkd.cli.do_distill import Job
from dfkd.cli.setup import text_of
from dfkd.engine.core import Need, Task
from dfkd.engine.runtime import Runtime
from dfkd.prepare import build_task, labelled
from dfkd.types import Bytes, Labels

__all__ = ["exam_of", "task_of"]


def task_of(job: Job, runtime: Runtime) -> Task:
    """The pair and its inputs on the runtime's device; class names are embedded only where the method uses them."""
    from rich.console import Console

    from dfkd.report.conversion import Conversion

    settings, facts = job.settings, job.facts
    with Conversion(Console(stderr=True), quiet=runtime.rank > 0) as said:
        return build_task(
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
            watch=said,
        )


def exam_of(job: Job, task: Task) -> tuple[Bytes, Labels] | None:
    """The labelled test images that the settings name, or None.

    Raises:
        UserError: images that cannot be read, or whose shape or labels are not those of the task.
    """
    return labelled(job.settings.data.test, task, "test")
