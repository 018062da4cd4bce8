"""What rules that end a run cost, and what the picked student is worth: small runs with a look at the test images in
every round, from which follows where each rule would have ended them; and runs of shortened plans beside them.

    python -m benchmarks.stopping run --data .data --hours 0.5   # resumes where it stopped
    python -m benchmarks.stopping judge                          # tables from what was run
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.estimate import PLAN, Set, Taught, method_for, sets, small, teacher_of
from benchmarks.estimate_tables import table
from benchmarks.records import RESULTS, provenance
from dfkd.engine.driver import Watch
from dfkd.engine.driver import run as drive
from dfkd.engine.heldout import make_gauge
from dfkd.engine.hours import shorten
from dfkd.engine.records import Agreement, Estimate, Keep, RoundRecord
from dfkd.engine.runtime import Runtime
from dfkd.engine.stopping import Judge
from dfkd.prepare import build_task
from dfkd.settings import Images

FILE = RESULTS / "stopping" / "runs.jsonl"
METHODS = ("NAYER", "SpaceshipNet", "D3K", "CMI")
WHOLE = replace(PLAN, rounds=60)
SHORTER = (30, 15)
PATIENCE = (3, 5, 10, 20)
KINDS = ("inverted", "own")

Row = dict[str, Any]


def cases() -> list[tuple[str, str, int, int]]:
    """(data, method, seed, rounds), one seed after the other."""
    return [
        (data, method, seed, rounds)
        for seed in (0, 1)
        for data in ("digits", "mnist")
        for method in METHODS
        for rounds in (WHOLE.rounds, *SHORTER)
    ]


def distil_once(held: Set, teacher: Taught, name: str, seed: int, rounds: int) -> Row:
    """Accuracy on test images after every round, and agreement on held-out images; of shorter plans only the last."""
    network, mean, std, reference = teacher
    channels, side = held.train[0].shape[1], held.train[0].shape[2]
    shape = (channels, side, side)
    method, plan = method_for(name, "good", shape), shorten(WHOLE, rounds)
    torch.manual_seed(seed + 1)
    student = small(10, channels, held.classes)
    data = Images(image_size=shape, mean=mean, std=std, classes=held.classes)
    runtime = Runtime(device="cpu", seed=seed + 1, channels_last=False).launch()
    task = build_task(network, student, data=data, text="index", runtime=runtime)
    keep, whole = Keep(), rounds == WHOLE.rounds
    gauge = make_gauge(task, method, plan) if whole else None
    drive(task, method, plan, Watch([keep], test=held.test, evaluate_every=1 if whole else 99, gauge=gauge))
    task.teacher.release()
    task.student.release()
    made = [record.estimate.sets for record in keep.records if record.estimate is not None]
    return {
        "teacher_accuracy": reference,
        "accuracy": [record.evaluation.accuracy for record in keep.records if record.evaluation is not None],
        "agreement": {kind: [sets[kind].agreement for sets in made if kind in sets] for kind in KINDS},
    }


def end_of(agreements: Sequence[float], kind: str, patience: int | None) -> tuple[int, int]:
    """The last round and the picked one, as the judge of a run decides."""
    judge, net = Judge(kind, patience), nn.Identity()
    for round, agreement in enumerate(agreements):
        sets = {kind: Agreement(agreement, 0.0, 1.0, 1, 0.0)}
        judge.look(RoundRecord(round, len(agreements), False, 0.0, {}, estimate=Estimate(sets, {}, 0.0)), net)
        if judge.reason() is not None:
            break
    return round, judge.best.round if judge.best is not None else round


def tables_of(file: Path) -> str:
    """All tables as Markdown."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    whole = [row for row in rows if row["case"][3] == WHOLE.rounds]
    return (_rules(whole) + _picked_gain(whole) + _shorter(rows)).strip() + "\n"


def _rules(rows: Sequence[Row]) -> str:
    """Where each patience ends runs, and the accuracy there less that of the last round, in points."""
    cells = []
    for kind in KINDS:
        known = [row for row in rows if row["agreement"][kind]]
        for patience in PATIENCE:
            ends = [end_of(row["agreement"][kind], kind, patience)[0] for row in known]
            lost = [row["accuracy"][end] - row["accuracy"][-1] for row, end in zip(known, ends, strict=True)]
            early = sum(end + 1 < WHOLE.rounds for end in ends)
            mean = statistics.fmean(end + 1 for end in ends)
            cells.append(
                [kind, patience, len(known), early, f"{mean:.0f}", _points(statistics.fmean(lost)), _points(min(lost))]
            )
    head = ["held-out images", "patience", "runs", "ended early", "rounds of 60, mean", "accuracy, mean", "worst"]
    return "### Patience\n\n" + table(head, cells)


def _picked_gain(rows: Sequence[Row]) -> str:
    """The accuracy of the picked round less that of the last one, in points."""
    cells = []
    for kind in KINDS:
        known = [row for row in rows if row["agreement"][kind]]
        picks = [end_of(row["agreement"][kind], kind, None)[1] for row in known]
        gains = [row["accuracy"][pick] - row["accuracy"][-1] for row, pick in zip(known, picks, strict=True)]
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        mean = _points(statistics.fmean(gains))
        cells.append([kind, len(known), better, worse, mean, _points(min(gains)), _points(max(gains))])
    best = [max(row["accuracy"]) - row["accuracy"][-1] for row in rows]
    told = f"The round that the test images would have picked: {_points(statistics.fmean(best))} on average.\n\n"
    head = ["held-out images", "runs", "better than the last", "worse", "mean", "worst", "best"]
    return "### The picked student\n\n" + table(head, cells) + told


def _shorter(rows: Sequence[Row]) -> str:
    """A long plan cut off, and a plan that was shortened to as many rounds, less the last round of the long one."""
    by_case = {tuple(row["case"]): row for row in rows}
    cells = []
    for rounds in SHORTER:
        pairs = [
            (row["accuracy"], by_case[*row["case"][:3], rounds]["accuracy"][-1])
            for row in rows
            if row["case"][3] == WHOLE.rounds and (*row["case"][:3], rounds) in by_case
        ]
        cut = [accuracy[rounds - 1] - accuracy[-1] for accuracy, _ in pairs]
        short = [other - accuracy[-1] for accuracy, other in pairs]
        cells.append([rounds, len(pairs), _points(statistics.fmean(cut)), _points(statistics.fmean(short))])
    head = ["rounds", "runs", "60 rounds, cut off", "a plan of so many"]
    return "### A shortened plan\n\n" + table(head, cells)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def run(data: Path, out: Path, hours: float) -> None:
    """Run what has not been run yet, one line a run, until the time is up."""
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(json.loads(line)["case"]) for line in (out.read_text().splitlines() if out.exists() else [])}
    known, made = sets(data), dict[str, tuple[Set, Taught]]()
    until = time.monotonic() + 3600 * hours
    for case in cases():
        if case in done or time.monotonic() > until:
            continue
        name, method, seed, rounds = case
        if name not in made:
            held = known[name]()
            made[name] = held, teacher_of(held)
        row = {"case": case, **distil_once(*made[name], method, seed, rounds), "provenance": provenance()}
        with out.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(*case, f"{row['accuracy'][-1]:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "judge"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--hours", type=float, default=1.0)
    told = parser.parse_args()
    if told.what == "run":
        run(told.data, told.file, told.hours)
    else:
        print(tables_of(told.file))


if __name__ == "__main__":
    main()
