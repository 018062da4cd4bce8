"""Running a job of the command line: distil into its folder, which keeps the recipe the run began with."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dfkd.api import Distilled, distill
from dfkd.cli.job import RECIPE_FILE, Job, full_recipe
from dfkd.cli.streams import decode_word
from dfkd.cli.trust import to_repeat
from dfkd.engine.records import Observer, RunInfo
from dfkd.engine.runtime import Runtime
from dfkd.recipes import yaml_of
from dfkd.report.files import write_whole
from dfkd.settings import Stopping, Watching

__all__ = ["run_job"]


def run_job(
    job: Job,
    out: Path,
    machine: Runtime,
    resume: bool,
    observers: Sequence[Observer] = (),
    watch: Watching | None = None,
    stop: Stopping | None = None,
) -> Distilled:
    """Run ``job`` in the folder ``out``, or go on with what is there.

    ``observers`` are told beside those of the folder; ``watch`` and ``stop``, if given, stand for the job's own.
    """
    settings = job.settings
    head = (
        "written by dfkd when the run began; to go on after a stop:",
        f"dfkd distill --resume {shlex.quote(str(out))}{to_repeat(full_recipe(job))}",
        "",
        shlex.join(["dfkd", *map(decode_word, sys.argv[1:])]),
    )
    recipe: list[Observer] = [] if resume else [_SaveRecipe(out, job, head)]
    return distill(
        job.teacher.classifier,
        job.student.classifier,
        job.method,
        data=job.data,
        text=settings.text,
        plan=job.plan,
        runtime=machine,
        watch=watch or settings.watch,
        stop=stop or settings.stop,
        out=out,
        resume=resume,
        observers=[*recipe, *observers],
    )


class _SaveRecipe(Observer):
    """Writes the resolved recipe when the run begins: after the folder was found free, before the first round.

    Its plan is the one that runs: one that was shortened for a time is not measured again.
    """

    def __init__(self, folder: Path, job: Job, head: Sequence[str]) -> None:
        self.folder, self.job, self.head = folder, job, head

    def started(self, info: RunInfo) -> None:
        tree = full_recipe(self.job)
        rules = {name: value for name, value in tree["stop"].items() if name != "hours"}
        text = yaml_of({**tree, "plan": {**tree["plan"], **info.plan}, "stop": rules}, self.head)
        write_whole(self.folder / RECIPE_FILE, text.encode())
