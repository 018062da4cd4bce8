"""`dfkd bench`: where the time of a round goes."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from dfkd.cli.config import Bench, Distill
from dfkd.cli.job import Job, exam_of, full_recipe, prepare_job, task_of
from dfkd.cli.parse import Tree, fill
from dfkd.cli.setup import resolve, wide_console, with_recipe
from dfkd.engine.account import Account, Phases, account
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Task
from dfkd.engine.runtime import Runtime
from dfkd.engine.work import Work
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.recipes import yaml_of
from dfkd.report.summary import file_size, operations
from dfkd.types import Bytes, Labels

__all__ = ["run"]


def run(tree: Tree, show: bool = False) -> int:
    """Time a few rounds and say where the time went."""
    own_settings = fill(Bench, {key: tree.pop(key) for key in ("rounds", "json") if key in tree})
    if own_settings.rounds < 1:
        raise UserError(f"bench needs --rounds of at least 1, got {own_settings.rounds}; raise it")
    evaluates = tree.get("data", {}).get("test") is not None
    job = prepare_job(*resolve(Distill, with_recipe(tree)), trained=False)
    job = replace(job, plan=replace(job.plan, rounds=own_settings.rounds, warmup=job.method.least_warmup()))
    if show:
        print(yaml_of(full_recipe(job)), end="")
        return 0
    machine = runtime_of(job.settings.runtime)
    measured = _measure(job, machine, evaluates)
    if machine.rank:
        return 0
    if own_settings.json:
        print(json.dumps(_plain(job, measured), indent=1))
    else:
        _show(job, measured)
    return 0


def _measure(job: Job, machine: Runtime, evaluates: bool) -> Account:
    machine.launch()
    task = task_of(job, machine)
    exam = _exam(job, task, evaluates)
    with tempfile.TemporaryDirectory(prefix="dfkd-bench-") as folder:
        save = Checkpoint(Path(folder), machine.rank, machine.world, machine.barrier)
        return account(task, job.method, job.plan, exam, save)


def _exam(job: Job, task: Task, evaluates: bool) -> tuple[Bytes, Labels] | None:
    """The test images; a recipe's own may be missing here, those that were ``asked`` for may not."""
    try:
        return exam_of(job, task)
    except UserError as error:
        if evaluates:
            raise
        if not task.runtime.rank:
            print(f"evaluation is not timed, the recipe's test images are left out: {error}", file=sys.stderr)
        return None


def _plain(job: Job, account: Account) -> Tree:
    about = {"teacher": job.teacher.name, "student": job.student.name, "method": type(job.method).__name__}
    return {
        **about,
        **asdict(account),
        "typical": asdict(account.typical),
        "rounds_per_hour": 3600 / account.typical.total,
    }


def _show(job: Job, account: Account) -> None:
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("phase", "s / round", "share", "FLOPs", "FLOP/s", "of ceiling", "bytes/s", "of ceiling"):
        sheet.add_column(title, justify="left" if title == "phase" else "right")
    for cells in _rows(account):
        sheet.add_row(*cells)
    typical, top = account.typical, account.ceilings
    console = wide_console()
    shape = " x ".join(map(str, job.facts.image_size))
    console.print(f"{type(job.method).__name__}, {job.teacher.name} to {job.student.name}, images {shape}")
    if job.settings.teacher.weights is None:
        console.print("The teacher's weights are random: times are right, losses mean nothing.")
    console.print(sheet)
    if job.plan.warmup:  # the first round, which is not in the table
        console.print(
            f"\nimages    {account.rounds[0].synthesis:.3g} s in a warm-up round, before the first of the table"
        )
    console.print(
        f"\nround     {typical.total:.3g} s, {3600 / typical.total:.3g} an hour; the plan has {account.steps} student "
        f"steps in each\nceilings  {operations(round(top.flops))}FLOP/s (matrix product), {top.bytes / 1e9:.3g} GB/s "
        f"(copy)\nmemory    {account.peak_bytes / 1e6:,.0f} MB at most, of them "
        f"{file_size(account.pool_bytes)} for the pool of these rounds"
    )


def _rows(account: Account) -> Iterator[tuple[str, ...]]:
    typical, total = account.typical, account.typical.total
    student = (
        None if account.step is None else Work(account.step.flops * account.steps, account.step.bytes * account.steps)
    )
    for name, seconds, work in (
        ("synthesis", typical.synthesis, account.synthesis),
        ("drawing batches", typical.batch, None),
        ("student steps", typical.step, student),
        ("evaluation", typical.evaluation, None),
        ("saving", typical.saving, None),
    ):
        yield name, f"{seconds:.3g}", f"{seconds / total:.1%}", *_rates(work, _seconds(name, typical, seconds), account)


def _seconds(name: str, typical: Phases, seconds: float) -> float:
    """The work of a student step was counted together with that of its batch."""
    return seconds + typical.batch if name == "student steps" else seconds


def _rates(work: Work | None, seconds: float, account: Account) -> tuple[str, ...]:
    if work is None or not seconds:
        return ("",) * 5
    flops, traffic = work.flops / seconds, work.bytes / seconds
    return (
        operations(work.flops),
        operations(round(flops)),
        f"{flops / account.ceilings.flops:.0%}",
        f"{traffic / 1e9:.3g} GB",
        f"{traffic / account.ceilings.bytes:.0%}",
    )
