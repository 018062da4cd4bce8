"""`dfkd search`."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dfkd.cli.config import Search
from dfkd.cli.job import Job, full_recipe, prepare_job
from dfkd.cli.parse import Tree
from dfkd.cli.runner import run_job
from dfkd.cli.setup import resolve, with_recipe
from dfkd.cli.trust import to_repeat
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.nets.zoo import Classifier
from dfkd.recipes import yaml_of
from dfkd.report.files import write_whole
from dfkd.report.summary import duration, percent
from dfkd.report.trial_page import SEARCH_PAGE, spelt_values, write_search_page
from dfkd.report.trials import BEST_FILE, Trial, not_told_apart
from dfkd.settings import Stopping
from dfkd.tune import search as room
from dfkd.tune.ranges import check_ranges

__all__ = ["run"]


def run(tree: Tree, show: bool = False) -> int:
    """Find settings without test images, or print the recipe that trials begin from and stop."""
    recipe = with_recipe({name: value for name, value in tree.items() if name != "search"})
    section = recipe.pop("search", {})
    ranges = {**dict(_ranges(section, "")), **dict(_ranges(tree.get("search", {}), ""))}
    settings, method, plan = resolve(Search, recipe)
    checked = check_ranges(ranges, method, plan)
    door = _Jobs(settings)
    first = door.job(method, plan)
    if show:
        print(yaml_of({**full_recipe(first), "search": {name: str(span) for name, span in checked.items()}}), end="")
        return 0
    if settings.out is None:
        raise UserError("search needs a folder for its trials, got none; give --out runs/search")
    for rule in ("patience", "until_agreement", "hours"):
        if (value := getattr(settings.stop, rule)) is not None:
            raise UserError(
                f"search needs trials that run their plan, got stop.{rule} = {value}; leave it out: trials that are "
                "behind are ended, and --plan.rounds makes all of them shorter"
            )
    out = Path(settings.out)
    machine = runtime_of(settings.runtime)
    what = room.Search(
        method,
        plan,
        checked,
        first.data,
        machine,
        settings.text,
        settings.trials,
        settings.minutes,
        settings.prune,
    )
    best = out / BEST_FILE
    again = f"dfkd distill {shlex.quote(str(best))} --out {shlex.quote(str(out))}-best{to_repeat(full_recipe(first))}"
    result = room.conduct(what, door, out, _tell, {"next": again})
    _end(result, door, again)
    return 0


def _ranges(section: Any, at: str) -> Iterator[tuple[str, str]]:
    """Dotted names to texts, from a section nested or not."""
    if not isinstance(section, Mapping):
        raise UserError(
            f"search needs ranges by the names of settings, got {section!r}; write --search.method.lr 0.001:0.1:log"
        )
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _ranges(value, f"{at}{key}.")
        else:
            yield at + str(key), ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class _Jobs:
    """Trials as `dfkd distill` would run them, each with its recipe."""

    settings: Search

    def job(self, method: Method[Any], plan: Plan) -> Job:
        """A job with these settings; its student is made anew from the seed."""
        return prepare_job(self.settings, method, plan)  # type: ignore[arg-type]

    def pair(self, method: Method[Any], plan: Plan) -> tuple[Classifier, Classifier]:
        job = self.job(method, plan)
        return job.teacher.classifier, job.student.classifier

    def run(
        self, method: Method[Any], plan: Plan, folder: Path, resume: bool, images: Tensor, observer: Observer
    ) -> None:
        untested = replace(self.settings.data, test=None)
        job = prepare_job(replace(self.settings, data=untested), method, plan)  # type: ignore[arg-type]
        watch = room.trial_watching(self.settings.watch, images)
        run_job(job, folder, runtime_of(self.settings.runtime), resume, [observer], watch, Stopping(picked=False))


def _tell(trial: Trial) -> None:
    """One trial in a line."""
    score = f"agreement {percent(trial.agreement)}" if trial.agreement is not None else "not judged"
    end = {"complete": "", "pruned": f", pruned after round {trial.done} of {trial.rounds}", "failed": ", failed"}
    name = "defaults" if trial.default else spelt_values(trial.values)
    why = f": {trial.reason}" if trial.state == "failed" and trial.reason else ""
    print(
        f"trial {trial.number}: {score}, {duration(trial.seconds)}{end.get(trial.state, '')}  {name}{why}", flush=True
    )


def _end(result: room.Searched, door: _Jobs, again: str) -> None:
    """The best settings as a recipe, and what to run next."""
    best = result.best
    running = sum(trial.state == "running" for trial in result.trials)
    if running:
        print(f"{running} trials go on in other processes")
    print(f"page  {result.folder / SEARCH_PAGE}")
    if best is None:
        print("no trial is complete")
        return
    job = door.job(result.method, result.plan)
    head = [
        f"the best of {len(result.trials)} trials of a search: trial {best.number}, agreement "
        f"{percent(best.agreement)} on {best.images} held-out images",
        again,
    ]
    write_whole(result.folder / BEST_FILE, yaml_of(full_recipe(job), head).encode())
    write_search_page(result.folder)  # again, now with the command that runs the best settings
    alike = not_told_apart(result.trials)
    name = "the defaults" if best.default else spelt_values(best.values)
    print(f"best  trial {best.number}, agreement {percent(best.agreement)}: {name}")
    if alike:
        numbers = ", ".join(str(trial.number) for trial in alike[:8]) + (", ..." if len(alike) > 8 else "")
        others = "1 other" if len(alike) == 1 else f"{len(alike)} others"
        print(f"      {best.images} images do not tell it from {others} ({numbers})")
    tested = [trial for trial in result.trials if trial.accuracy is not None]
    first = next((trial for trial in tested if trial.default), None)
    if best.accuracy is not None:
        beside = f", the defaults' {percent(first.accuracy)}" if first and first.number != best.number else ""
        print(f"afterwards, on {best.tested:,} test images: accuracy {percent(best.accuracy)}{beside}")
    print(f"next  {again}")
