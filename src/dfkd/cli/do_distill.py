"""`dfkd distill`."""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dfkd.api import Distilled
from dfkd.cli.config import Distill
from dfkd.cli.exported import show_exported
from dfkd.cli.job import RECIPE_FILE, Job, full_recipe, prepare_job
from dfkd.cli.parse import Tree, merge, read_yaml
from dfkd.cli.runner import run_job
from dfkd.cli.setup import resolve, with_recipe
from dfkd.cli.stop import Stopped, ending_for_sure
from dfkd.cli.trust import refuse_code, to_repeat
from dfkd.engine.lock import lock_folder
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.recipes import yaml_of
from dfkd.report.files import read_run, write_run

__all__ = ["run"]


def run(tree: Tree, show: bool = False) -> int:
    """Distil, or print the resolved recipe and stop."""
    folder = tree.get("resume")
    if folder is not None and tree.get("dry_run", "false") != "false":
        raise UserError(
            f"dry-run needs a run that has not begun, got --resume {folder}; leave --resume out, or see `dfkd report`"
        )
    if tree.get("json", "false") != "false" and "dry_run" not in tree:
        raise UserError("json needs --dry-run, got a run without; add --dry-run, or leave --json out")
    if folder is not None:
        tree = _recipe_of_run(tree, Path(folder))
    job = prepare_job(*resolve(Distill, with_recipe(tree)))
    if show:
        print(yaml_of(full_recipe(job)), end="")
        return 0
    out = Path(folder) if folder is not None else _out(job)
    machine = runtime_of(job.settings.runtime)
    if job.settings.dry_run:
        from dfkd.cli.rehearse import rehearse

        return rehearse(job, out, machine)
    try:
        with ending_for_sure(lambda: _write_interrupted(out, machine.rank)):
            result = run_job(job, out, machine, resume=folder is not None)
    except (KeyboardInterrupt, Stopped) as stop:
        return _say_how_to_resume(out, stop, job)
    if machine.rank == 0:
        _tell(result, job, out)
        if result.exported is not None:
            show_exported(result.exported)
    return 0


def _recipe_of_run(tree: Tree, folder: Path) -> Tree:
    """The recipe a run began with, with the flags put over it; settings that matter may not differ."""
    file = folder / RECIPE_FILE
    if not file.is_file():
        raise UserError(
            f"resume needs the folder of a run with {RECIPE_FILE}, got {folder} without; give the folder that was --out"
        )
    if "recipe" in tree or "out" in tree:
        raise UserError("resume needs neither a recipe nor --out, got one of them; the run keeps its own")
    recipe, overrides = read_yaml(file), {key: value for key, value in tree.items() if key != "resume"}
    refuse_code(recipe, overrides, file)
    return merge(recipe, overrides)


def _out(job: Job) -> Path:
    """The run folder; several processes must agree on it, so the first one tells the others."""
    if job.settings.out is not None:
        return Path(job.settings.out)
    if "DFKD_RUN_FOLDER" in os.environ:
        return Path(os.environ["DFKD_RUN_FOLDER"])
    student = job.student.name.replace(":", "-").replace("/", "-")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = Path("runs") / f"{type(job.method).__name__.lower()}-{student}-{stamp}"
    if job.settings.runtime.devices > 1:
        os.environ["DFKD_RUN_FOLDER"] = str(out)
    return out


def _say_how_to_resume(out: Path, stop: BaseException, job: Job) -> int:
    """Say how to go on."""
    code = stop.code if isinstance(stop, Stopped) else 130
    if (out / "run.json").is_file() and (out / RECIPE_FILE).is_file():
        record = read_run(out, mend=True)
        if record.status not in ("finished", "stopped"):
            with suppress(UserError), lock_folder(out):  # a run that another process goes on with stays as it is
                write_run(out, record.info, None, "interrupted")
            print(
                f"stopped; go on with: dfkd distill --resume {shlex.quote(str(out))}{to_repeat(full_recipe(job))}",
                file=sys.stderr,
            )
            return code
    print("stopped before the first round; nothing is lost, start again", file=sys.stderr)
    return code


def _write_interrupted(out: Path, rank: int) -> None:
    """Write "interrupted" for a process that a signal does not reach, and say how to go on from the last save."""
    if rank == 0 and (out / "run.json").is_file():
        record = read_run(out, mend=True)
        if record.status == "running":
            write_run(out, record.info, None, "interrupted")
    print(
        f"stopped; go on with: dfkd distill --resume {shlex.quote(str(out))}, or start again",
        file=sys.stderr,
        flush=True,
    )


def _tell(result: Distilled, job: Job, out: Path) -> None:
    """The comparison, and where everything is."""
    from dfkd.cli.pipes import PipeConsole
    from dfkd.report.console import table
    from dfkd.report.summary import rows_of

    rows = rows_of(result.record.info, result.record.rounds, result.record)
    rows[0] = replace(rows[0], seconds=job.teacher.sidecar.seconds)
    console = PipeConsole(soft_wrap=True)
    console.print()
    console.print(table(rows))
    console.print(f"\nreport  {out / 'report.html'}\nstudent {out / 'student.safetensors'}", highlight=False)
