"""`dfkd demo`: the main job on small digits, start to end, with a student that was fed noise beside it."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from dfkd.api import Distilled, distill
from dfkd.cli.config import Demo, Distill
from dfkd.cli.job import prepare_job
from dfkd.cli.parse import Tree, merge
from dfkd.cli.setup import resolve, seed_everything
from dfkd.cli.teach_progress import epoch_progress
from dfkd.data.readers import STATISTICS, read_images
from dfkd.defaults import NOISE_METHOD
from dfkd.engine.records import Evaluation
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.nets.zoo import build
from dfkd.recipes import recipe
from dfkd.report.files import plain, write_whole
from dfkd.report.page import write_page
from dfkd.report.summary import Row, percent, rows_of
from dfkd.teacher import save_teacher, teach
from dfkd.teacher_plan import TeachPlan

__all__ = ["EPOCHS", "RECIPE", "run"]

RECIPE = "nayer/digits-wrn16-2-wrn16-1"
EPOCHS = 30


@dataclass(frozen=True)
class Trained:
    """One student: how it was trained, from which seed, and what came of it."""

    method: str
    seed: int
    done: Distilled

    @property
    def final(self) -> Evaluation:
        """Its evaluation after the last round."""
        if self.done.record.final is None:
            raise RuntimeError("the demo always has test images")
        return self.done.record.final


def run(settings: Demo) -> int:
    """Teach, distil, compare."""
    if settings.seeds < 1:
        raise UserError(f"demo needs at least one student, got --seeds {settings.seeds}; raise it")
    began = time.monotonic()
    out = free_folder(Path(settings.out))
    row = recipe(RECIPE)
    weights, seconds = _teacher(out / "teacher", row, settings)
    tree = merge(row, {"teacher": {"weights": str(weights)}, "watch": {"samples_every": 4}})
    students = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        students.append(_student(tree, out / f"nayer-{seed}", seed, settings.quiet))
        students.append(_student(tree, out / f"noise-{seed}", seed, settings.quiet, noise=True))
    rows = _rows(students, seconds)
    page = write_page(out / f"nayer-{settings.seed}", out / "report.html", rows[2:])
    took = time.monotonic() - began
    _record(out / "demo.json", students, rows, took)
    _tell(rows, settings.seeds, page, took)
    return 0


def free_folder(folder: Path) -> Path:
    """``folder``, or, where it exists, the first of ``folder-2``, ``folder-3``, ... that does not."""
    number, path = 1, folder
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path


def _teacher(folder: Path, row: Tree, settings: Demo) -> tuple[Path, float]:
    """Train the teacher on the training split: the only time that split is read."""
    seed_everything(settings.seed, settings.threads)
    train, test = read_images("digits", "train"), read_images("digits", "test")
    mean, std = STATISTICS["digits"]
    plan = TeachPlan(epochs=EPOCHS, flip=False)
    classifier = build(row["teacher"]["name"], len(train.names), 1)
    with epoch_progress(plan.epochs, settings.quiet) as watch:
        training = teach(
            classifier.net,
            train.images,
            train.labels,
            plan,
            mean=mean,
            std=std,
            test=(test.images, test.labels),
            seed=settings.seed,
            watch=watch,
        )
    path = save_teacher(
        folder,
        training,
        spec=classifier.spec,
        image_shape=(1, 8, 8),
        names=train.names,
        classes=len(train.names),
        mean=mean,
        std=std,
        plan=plan,
        seed=settings.seed,
    )
    return path, training.seconds


def _student(tree: Tree, out: Path, seed: int, quiet: bool, noise: bool = False) -> Trained:
    """One student by the recipe, or by noise with the same number of student steps."""
    job = prepare_job(*resolve(Distill, merge(tree, {"runtime": {"seed": seed}})))
    method: Any = job.method
    if noise:
        method = replace(cast(Any, METHODS[NOISE_METHOD]()), temperature=method.temperature)
    result = distill(
        job.teacher.classifier,
        job.student.classifier,
        method,
        data=replace(job.data, test="digits"),
        text=job.settings.text,
        plan=replace(job.plan, warmup=0) if noise else job.plan,
        runtime=Runtime(seed=seed),
        watch=replace(job.settings.watch, evaluate_every=2, export=not noise),
        out=out,
        progress=not quiet,
    )
    return Trained("noise" if noise else "nayer", seed, result)


def _rows(students: Sequence[Trained], seconds: float) -> list[Row]:
    """Teacher, student, student fed noise; means over seeds."""
    first = students[0].done.record
    teacher, student = rows_of(first.info, first.rounds, first)
    rows = [replace(teacher, seconds=seconds)]
    for method, name in (("nayer", student.name), ("noise", "fed noise")):
        of_method = [run for run in students if run.method == method]
        rows.append(
            replace(
                student,
                name=name,
                accuracy=statistics.fmean(run.final.accuracy for run in of_method),
                agreement=statistics.fmean(run.final.agreement for run in of_method),
                seconds=statistics.fmean(run.done.record.seconds for run in of_method),
            )
        )
    return rows


def _record(path: Path, students: Sequence[Trained], rows: Sequence[Row], took: float) -> None:
    """Everything in the table, and each seed, as JSON."""
    runs_of = [
        {"method": run.method, "seed": run.seed, "seconds": run.done.record.seconds, **asdict(run.final)}
        for run in students
    ]
    content = {
        "recipe": RECIPE,
        "seconds": took,
        "rows": [asdict(row) for row in rows],
        "students": runs_of,
        "provenance": students[0].done.record.info.provenance,
    }
    write_whole(path, json.dumps(plain(content), indent=1).encode() + b"\n")


def _tell(rows: Sequence[Row], seeds: int, page: Path, took: float) -> None:
    from dfkd.cli.pipes import PipeConsole
    from dfkd.report.console import table

    console = PipeConsole(soft_wrap=True)
    console.print(f"\nHeld-out digits{f', means of {seeds} seeds' if seeds > 1 else ''}", style="bold")
    console.print(table(rows))
    better = percent(rows[1].accuracy), percent(rows[2].accuracy)
    console.print(
        f"\nThe student never saw a digit: it gets {better[0]} right, the same network fed noise {better[1]}.",
        highlight=False,
    )
    console.print(f"All of it took {took:.0f} s.\nreport  {page}", highlight=False)
