"""A run of the command line, checked: its settings, method, plan and networks; and the task that comes of them.

Every command that runs a method, or looks at a run again, makes its task here.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfkd.cli.config import Distill
from dfkd.cli.names import check_name
from dfkd.cli.parse import Tree, merge, read_yaml
from dfkd.cli.setup import (
    Loaded,
    load,
    method_settings,
    name_and_sidecar,
    plain_settings,
    resolve,
    seed_everything,
    with_weights_path,
)
from dfkd.cli.trust import refuse_code
from dfkd.engine.core import Method, Need, Task
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.inputs import Facts, facts_of
from dfkd.prepare import check_labelled, fit_student, prepare
from dfkd.settings import Images, Network
from dfkd.types import Bytes, Labels

__all__ = ["RECIPE_FILE", "Job", "absolute", "exam_of", "prepare_job", "rebuilt_job", "full_recipe", "task_of"]

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked."""

    settings: Distill
    method: Method[Any]
    plan: Plan
    facts: Facts
    teacher: Loaded
    student: Loaded

    @property
    def data(self) -> Images:
        """The images' section, with what the teacher's weights and the data set say filled in."""
        facts = self.facts
        return replace(
            self.settings.data, image_size=facts.image_size, mean=facts.mean, std=facts.std, classes=facts.class_names
        )


def prepare_job(settings: Distill, method: Method[Any], plan: Plan, trained: bool = True) -> Job:
    """Networks and data of a run; the student is made from torch's default stream, seeded here.

    Args:
        settings, method, plan: of the run.
        trained: refuse a teacher without weights.

    Raises:
        UserError: anything that is missing or does not fit.
    """
    settings = replace(
        settings, teacher=with_weights_path(settings.teacher), student=with_weights_path(settings.student)
    )
    check_name(settings.teacher, "teacher")
    check_name(settings.student, "student")
    _, sidecar = name_and_sidecar(settings.teacher, "teacher")
    facts = facts_of(settings.data, sidecar)
    teacher = load(settings.teacher, facts, "teacher", trained)
    name_and_sidecar(settings.student, "student")
    seed_everything(settings.runtime.seed, settings.runtime.threads)
    student = load(settings.student, facts, "student")
    pair = teacher.classifier, student.classifier
    student = replace(student, classifier=fit_student(method, *pair, facts.image_size))
    return Job(settings, method, plan, facts, teacher, student)


def rebuilt_job(folder: Path, who: str, flags: Tree) -> tuple[Job, str | None]:
    """The pair as a run began, on whatever device there is, with ``flags`` put over its recipe.

    Args:
        folder: of the run.
        who: the command, for messages.
        flags: sections of settings.

    Returns:
        The job, and the run's own source of test images, whatever ``flags`` say.

    Raises:
        UserError: a run without a recipe, or something of it that is not there any more.
    """
    file = folder / RECIPE_FILE
    if not file.is_file():
        raise UserError(
            f"{who} needs {RECIPE_FILE} to build the networks of the run again, got {folder} without; runs from "
            "Python are looked at in Python"
        )
    recipe = read_yaml(file)
    refuse_code(recipe, flags, file, "own_method")
    machine: Tree = {"runtime": {"device": "auto", "devices": 1, "compile": False}}
    job = prepare_job(*resolve(Distill, merge(merge(recipe, machine), flags)))
    return job, recipe.get("data", {}).get("test")


def full_recipe(job: Job) -> Tree:
    """The recipe with every default and every path written out: enough to start or continue the run elsewhere."""
    settings, facts = job.settings, job.facts
    data = plain_settings(settings.data)
    data |= {"image_size": facts.image_size, "mean": facts.mean, "std": facts.std, "classes": facts.class_names}
    data |= {key: absolute(data[key]) for key in ("test", "web", "real") if key in data}
    name = settings.method.name
    written_name = {"name": name} if ":" in name or "." in name else {}  # as it was written
    return {
        "teacher": _network(settings.teacher, job.teacher),
        "student": _network(settings.student, job.student),
        "data": data,
        "text": {
            key: absolute(value) if key == "file" else value for key, value in plain_settings(settings.text).items()
        },
        "method": {**method_settings(job.method), **written_name},
        "plan": asdict(job.plan),
        "runtime": plain_settings(settings.runtime),
        "watch": plain_settings(settings.watch),
        "stop": plain_settings(settings.stop),
    }


def absolute(source: str) -> str:
    """A source with its path made absolute, where there is such a path: ``cifar10:DIR``, ``folder:DIR``, a file."""
    head, colon, place = source.rpartition(":")
    path = Path(place).expanduser()
    return f"{head}{colon}{path.resolve()}" if path.exists() and (colon or os.sep in source or path.suffix) else source


def task_of(job: Job, runtime: Runtime) -> Task:
    """The pair and its inputs on the runtime's device; class names are embedded only where the method uses them."""
    from rich.console import Console

    from dfkd.report.conversion import Conversion

    with Conversion(Console(stderr=True), quiet=runtime.rank > 0) as progress:
        text = job.settings.text if Need.TEXT in job.method.needs() else "index"
        return prepare(
            job.teacher.classifier, job.student.classifier, runtime, job.data, text, progress, job.method
        ).task


def exam_of(job: Job, task: Task) -> tuple[Bytes, Labels] | None:
    """The labelled test images that the settings name, or None.

    Raises:
        UserError: images that cannot be read, or whose shape or labels are not those of the task.
    """
    return check_labelled(job.settings.data.test, task, "test")


def _network(network: Network, built: Loaded) -> Tree:
    settings = {**plain_settings(network), "name": built.name}
    return {**settings, "weights": str(Path(settings["weights"]).resolve())} if "weights" in settings else settings
