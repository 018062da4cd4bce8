"""`dfkd repeat`."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dfkd.cli.config import Distill, Repeat
from dfkd.cli.job import RECIPE_FILE, Job, full_recipe, prepare_job
from dfkd.cli.parse import Tree, fill, merge, read_yaml
from dfkd.cli.runner import run_job
from dfkd.cli.setup import resolve, with_recipe
from dfkd.engine.records import RunResult
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.recipes import yaml_of
from dfkd.report.files import RUN_FILE, plain, read_run, write_whole
from dfkd.report.repeat_page import REPEAT_FILE, seed_folders, unfinished_seeds, write_repeat_page
from dfkd.runs import CHECKPOINT_FOLDER

__all__ = ["run"]


def run(tree: Tree, show: bool = False) -> int:
    """Distil once for each seed, each in a folder of its own; then what they and earlier seeds there come to."""
    shared = {name: value for name, value in tree.items() if name not in ("seeds", "out")}
    settings = fill(Repeat, {name: value for name, value in tree.items() if name in ("seeds", "out")})
    seeds = list(settings.seeds)
    if len(set(seeds)) < len(seeds) or not seeds:
        raise UserError(f"repeat needs different seeds, at least one, got {seeds}; for example --seeds 0,1,2")
    if show:
        print(yaml_of(full_recipe(prepare_job(*resolve(Distill, with_recipe(shared))))), end="")
        return 0
    if hours := resolve(Distill, with_recipe(shared))[0].stop.hours:
        raise UserError(
            f"repeat needs one plan for all of its runs, got stop.hours {hours:g}, measured for each of them; see with "
            "`dfkd distill --dry-run` what fits, and give that as --plan.rounds and --plan.warmup"
        )
    if settings.out is None:
        raise UserError("repeat needs a folder for its runs, got none; give --out runs/x")
    out = Path(settings.out)
    _check_folder(out)
    tree = with_recipe(shared)
    for seed in {*seeds, *seed_folders(out)}:  # before any of them runs
        _check_begun(_job(tree, seed), out / f"seed{seed}")
    for seed in seeds:
        _run_seed(_job(tree, seed), out / f"seed{seed}")
        content = summary(_finished_rows(out))
        write_whole(out / REPEAT_FILE, (json.dumps(content, indent=1) + "\n").encode())
    _tell(content, out)
    return 0


def _check_folder(out: Path) -> None:
    """Refuse a folder that is another run's, or that holds something else."""
    if not out.exists():
        return
    is_repeat = out.is_dir() and ((out / REPEAT_FILE).is_file() or any(out.glob(f"seed*/{RECIPE_FILE}")))
    if (out / RUN_FILE).exists() or not (is_repeat or (out.is_dir() and not any(out.iterdir()))):
        what = (
            "a file" if out.is_file() else "the folder of a run" if (out / RUN_FILE).exists() else "other files in it"
        )
        raise UserError(f"repeat needs a new or empty folder, or that of a repeat, got {out} ({what}); choose another")


def _job(tree: Tree, seed: int) -> Job:
    return prepare_job(*resolve(Distill, merge(tree, {"runtime": {"seed": seed}})))


def _check_begun(job: Job, folder: Path) -> None:
    """Refuse a run that began with other settings: its figures are not those of the others."""
    file = folder / RECIPE_FILE
    if not file.is_file():
        return
    difference = next(_differences(read_yaml(file), plain(full_recipe(job)), ""), None)
    if difference is not None:
        name, before, now = difference
        raise UserError(
            f"repeat needs the settings the run in {folder} began with, got {name} = {now!r} instead of {before!r}; "
            "set it back, or start in a new folder"
        )


def _differences(before: Any, now: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of settings that make another student; one that is left out is None.

    A setting of the method or the plan that one recipe lacks is newer than the run, or gone: it has its default.
    """
    if at in ("watch", "runtime.device", "runtime.threads"):
        return
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        if before != now:
            yield at, before, now
        return
    for name in {**before, **now} if at in ("data", "stop") else [name for name in before if name in now]:
        yield from _differences(before.get(name), now.get(name), f"{at}.{name}" if at else name)


def _run_seed(job: Job, folder: Path) -> None:
    """Run a job from the start, or from where it stopped; one that has come to its end stays as it is."""
    machine = runtime_of(job.settings.runtime)
    if not (folder / RECIPE_FILE).is_file():
        run_job(job, folder, machine, resume=False)
    elif read_run(folder, mend=True).status not in ("finished", "stopped"):  # stopped: by the rules of --stop
        run_job(job, folder, machine, resume=(folder / CHECKPOINT_FOLDER).exists())


def _finished_rows(out: Path) -> list[dict[str, Any]]:
    """A row for every seed in the folder whose run has come to its end, of this call or of an earlier one."""
    runs = {seed: read_run(folder, mend=True) for seed, folder in seed_folders(out).items()}
    return [_row(seed, run.result) for seed, run in runs.items() if run.result is not None]


def _row(seed: int, result: RunResult) -> dict[str, Any]:
    final = result.final
    return {
        "seed": seed,
        "accuracy": None if final is None else final.accuracy,
        "agreement": None if final is None else final.agreement,
        "seconds": result.seconds,
        "run": f"seed{seed}",
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Every run, and over those with a figure its mean and (of two or more) standard deviation, fractions in [0, 1]."""
    content: dict[str, Any] = {"runs": runs}
    for measure in ("accuracy", "agreement"):
        values = [run[measure] for run in runs if run[measure] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            content[measure] = {"mean": statistics.fmean(values), "std": spread, "seeds": len(values)}
    return content


def _tell(content: dict[str, Any], out: Path) -> None:
    """Every run in a line, then what they come to."""
    from dfkd.report.summary import duration, percent

    for row in content["runs"]:
        print(f"seed {row['seed']}: accuracy {percent(row['accuracy'])}, {duration(row['seconds'])}")
    for measure in ("accuracy", "agreement"):
        if measure in content:
            mean, std = content[measure]["mean"], content[measure]["std"]
            spread = "" if std is None else f" ± {percent(std)} (standard deviation)"
            count = content[measure]["seeds"]
            print(f"{measure}: {percent(mean)}{spread}, {count} seed{'' if count == 1 else 's'}")
    remaining = unfinished_seeds(len(content["runs"]), len(seed_folders(out)))
    if remaining:
        print(remaining)
    print(f"page  {write_repeat_page(out)}\nevery run and {REPEAT_FILE} in {out}")
