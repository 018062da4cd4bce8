"""`dfkd choose`."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from dfkd.cli.config import Choose, Distill
from dfkd.cli.names import check_name
from dfkd.cli.parse import Tree
from dfkd.cli.setup import load, name_and_sidecar, resolve, seed_everything, wide_console, with_weights_path
from dfkd.defaults import NOISE_METHOD
from dfkd.engine.core import Method
from dfkd.inputs import facts_of
from dfkd.methods import METHODS
from dfkd.report.files import plain
from dfkd.report.summary import count, duration, operations, percent
from dfkd.settings import Text
from dfkd.tune.advice import ShortTrial
from dfkd.tune.candidates import Candidate
from dfkd.tune.choose import Choice, choose

__all__ = ["run"]


def run(settings: Choose) -> int:
    """Tables of methods, students and trials; a recommendation and the command that follows it."""
    settings = replace(settings, teacher=with_weights_path(settings.teacher))
    check_name(settings.teacher, "teacher")
    _, sidecar = name_and_sidecar(settings.teacher, "teacher")
    facts = facts_of(settings.data, sidecar)
    seed_everything(settings.runtime.seed, settings.runtime.threads)
    teacher = load(settings.teacher, facts, "teacher", trained=True)
    data = replace(
        settings.data, image_size=facts.image_size, mean=facts.mean, std=facts.std, classes=facts.class_names, test=None
    )
    choice = choose(
        teacher.classifier,
        students=settings.students,
        minutes=settings.minutes,
        latency=None if settings.latency is None else settings.latency / 1000,
        parameters=settings.parameters,
        methods={name: _method(name, settings) for name in METHODS},
        data=data,
        text=settings.text,
        runtime=settings.runtime,
        tell=None if settings.json else _print_trial,
    )
    follows = _next(choice, settings)
    if settings.json:
        print(json.dumps({**plain(asdict(choice)), "next": follows}, indent=1))
    else:
        _show(choice, follows)
    return 0


def _method(name: str, settings: Choose) -> Method[Any]:
    """A method with its defaults, as a run with this teacher and these images would have them."""
    tree: Tree = {"method": {"name": name}}
    if settings.data.preset is not None:
        tree["data"] = {"preset": settings.data.preset}
    if settings.teacher.weights is not None:
        tree["teacher"] = {"weights": settings.teacher.weights}
    return resolve(Distill, tree)[1]


def _print_trial(run: ShortTrial) -> None:
    print(f"tried {run.method} with {run.student}: {_score(run)}, {duration(run.seconds)}", flush=True)


def _score(run: ShortTrial) -> str:
    if run.score is None:
        return f"not judged: {run.reason}" if run.reason else "not judged"
    return f"agreement {percent(run.score.agreement)} after {run.rounds} round{'' if run.rounds == 1 else 's'}"


def _next(choice: Choice, settings: Choose) -> str | None:
    """The command that trains what was recommended."""
    advice = choice.advice
    if advice.method is None or advice.student is None:
        return None
    words = [f"--{role}.{key} {shlex.quote(str(value))}" for role, key, value in _given_settings(settings)]
    return (
        f"dfkd distill --method {advice.method} --student {shlex.quote(advice.student)} {' '.join(words)} --out runs/x"
    )


def _given_settings(settings: Choose) -> list[tuple[str, str, Any]]:
    """What the caller said of the teacher, its images and the text."""
    options_given = []
    defaults = {"teacher": None, "data": None, "text": Text()}
    for role, section in (("teacher", settings.teacher), ("data", settings.data), ("text", settings.text)):
        for key, value in vars(section).items():
            if value is not None and value != getattr(defaults[role], key, None):
                options_given.append((role, key, _spelt_list(value) if isinstance(value, list | tuple) else str(value)))
    return options_given


def _spelt_list(values: Sequence[Any]) -> str:
    """A list as one word of the command line: names with a comma in quotes, within brackets."""
    words = [str(value) for value in values]
    if any("," in word or word != word.strip() for word in words):
        return json.dumps(words, ensure_ascii=False)
    return ",".join(words)


def _show(choice: Choice, follows: str | None) -> None:
    from rich import text
    from rich.table import Table

    console = wide_console()
    console.print("\nMethods, with their default settings", style="bold")
    for name, missing in choice.missing.items():
        remark = "fits" if not missing else f"needs {'; '.join(missing)}"
        if name == NOISE_METHOD:
            remark = "the lower bound: pure noise"
        console.print(text.Text(f"  {name:<14}{remark}", style="dim" if missing else ""))
    console.print()
    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    sheet.add_column("network", overflow="fold")
    for heading in ("parameters", "FLOPs", "one image", "faster", "agreement in a trial"):
        sheet.add_column(heading, justify="right", no_wrap=True)
    for row, role in [(choice.teacher, "teacher "), *((row, "") for row in choice.students)]:
        sheet.add_row(text.Text(f"{role}{row.name}"), *_cells(row, choice.trials))
    console.print(sheet)
    if not choice.trials:  # sizes and speed alone were asked for, or nothing fits
        return
    console.print("\nRecommended" if follows else "\nNo recommendation", style="bold")
    if choice.advice.method is not None:
        console.print(f"  {choice.advice.method} and {choice.advice.student}", highlight=False)
    for reason in choice.advice.reasons:
        console.print(text.Text(f"  - {reason}"))
    if follows:
        print(f"next  {follows}")
        print("      add --dry-run for hours, memory and disk; `dfkd search` finds settings")


def _cells(row: Candidate, trials: Sequence[ShortTrial]) -> tuple[str, ...]:
    scores = [f"{run.method} {percent(run.score.agreement)}" for run in trials if run.student == row.name and run.score]
    best = max(
        ((run.score.agreement, run.method) for run in trials if run.student == row.name and run.score),
        default=None,
    )
    score = "" if best is None else f"{best[1]} {percent(best[0])}" + (f" of {len(scores)}" if len(scores) > 1 else "")
    return (
        count(row.parameters),
        operations(None if row.macs is None else 2 * row.macs),
        f"{1000 * row.seconds:.2f} ms",
        f"{row.speedup:.1f}x",
        score,
    )
