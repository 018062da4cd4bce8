"""`dfkd repeat`."""

import json
import statistics
from pathlib import Path
from typing import Any

from dfkd.cli.config import Distill
from dfkd.cli.job import RECIPE_FILE, prepare_job, resolved
from dfkd.cli.parse import Tree, fill, merge, read_yaml
from dfkd.cli.repeating import Repeat
from dfkd.cli.runner import run_job
from dfkd.cli.setup import resolve, with_recipe
from dfkd.cli.trust import refuse_code
from dfkd.engine.records import RunResult
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.recipes import yaml_of
from dfkd.report.files import read_run, write_whole
from dfkd.runs import CHECKPOINT_FOLDER

__all__ = ["SUMMARY_FILE", "run"]

SUMMARY_FILE = "repeat.json"


def run(tree: Tree, show: bool = False) -> int:
    """Distil once for each seed, each in a folder of its own; then mean and standard deviation."""
    told = {name: value for name, value in tree.items() if name not in ("seeds", "out")}
    own = fill(Repeat, {name: value for name, value in tree.items() if name in ("seeds", "out")})
    seeds = list(own.seeds)
    if len(set(seeds)) < len(seeds) or not seeds:
        raise UserError(f"repeat needs different seeds, at least one, got {seeds}; for example --seeds 0,1,2")
    if show:
        print(yaml_of(resolved(prepare_job(*resolve(Distill, with_recipe(told))))), end="")
        return 0
    if hours := resolve(Distill, with_recipe(told))[0].stop.hours:
        raise UserError(
            f"repeat needs one plan for all of its runs, got stop.hours {hours:g}, measured for each of them; see with "
            "`dfkd distill --dry-run` what fits, and give that as --plan.rounds and --plan.warmup"
        )
    if own.out is None:
        raise UserError("repeat needs a folder for its runs, got none; give --out runs/x")
    out = Path(own.out)
    runs = []
    for seed in seeds:
        runs.append(_row(seed, _one(told, out / f"seed{seed}", seed)))
        write_whole(out / SUMMARY_FILE, (json.dumps(summary(runs), indent=1) + "\n").encode())
    _tell(summary(runs), out)
    return 0


def _one(told: Tree, folder: Path, seed: int) -> RunResult:
    """The run with this seed: as it ended, or from where it stopped, or from the start."""
    file = folder / RECIPE_FILE
    if not file.is_file():
        seeded = merge(with_recipe(told), {"runtime": {"seed": seed}})
        job = prepare_job(*resolve(Distill, seeded))
        return run_job(job, folder, runtime_of(job.settings.runtime), resume=False).record
    stored = read_run(folder, mend=True)
    if stored.status in ("finished", "stopped") and stored.result is not None:  # by the rules of --stop
        return stored.result
    kept = read_yaml(file)
    refuse_code(kept, {}, file)
    job = prepare_job(*resolve(Distill, kept))
    again = (folder / CHECKPOINT_FOLDER).exists()
    return run_job(job, folder, runtime_of(job.settings.runtime), resume=again).record


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
    told: dict[str, Any] = {"runs": runs}
    for what in ("accuracy", "agreement"):
        values = [run[what] for run in runs if run[what] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            told[what] = {"mean": statistics.fmean(values), "std": spread, "seeds": len(values)}
    return told


def _tell(told: dict[str, Any], out: Path) -> None:
    """Every run in a line, then what they come to."""
    from dfkd.report.summary import duration, percent

    for one in told["runs"]:
        print(f"seed {one['seed']}: accuracy {percent(one['accuracy'])}, {duration(one['seconds'])}")
    for what in ("accuracy", "agreement"):
        if what in told:
            mean, std = told[what]["mean"], told[what]["std"]
            spread = "" if std is None else f" ± {percent(std)} (standard deviation)"
            print(f"{what}: {percent(mean)}{spread}, {told[what]['seeds']} seeds")
    print(f"every run and {SUMMARY_FILE} in {out}")
