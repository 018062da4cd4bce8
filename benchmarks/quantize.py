"""Data-free quantization by packaged recipes: one record for each recipe and seed, and the table of them.

``python -m benchmarks.quantize RECIPE TEACHER SEED ...`` writes ``results/quantize/NAME-seed0.json``, where RECIPE is
such as ``nayer/digits-wrn16-2-w4a4`` and TEACHER a folder of ``dfkd teach``; what has a record is passed over.
``python -m benchmarks.quantize table`` prints the table of docs/deploy.md.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import RESULTS, write_record
from dfkd.cli.config import Distill
from dfkd.cli.job import Job, prepare_job
from dfkd.cli.parse import merge
from dfkd.cli.setup import resolve
from dfkd.deploy.quantize import quantize
from dfkd.identity import settings_of
from dfkd.recipes import Row, find, recipe, rows
from dfkd.report.files import plain
from dfkd.weights import find_weights

FOLDER = "quantize"


def job_of(row: Row, teacher: str, seed: int) -> Job:
    """A run of the recipe with this teacher, one thread."""
    tree = {key: value for key, value in recipe(row.name).items() if key != "bits"}
    weights = {"teacher": {"weights": teacher}, "student": {"name": row.student, "weights": teacher}}
    machine = {"seed": seed, "threads": 1, "device": "cpu"}
    watch = {"figures": False, "export": False, "quiet": True}
    return prepare_job(*resolve(Distill, merge(tree, {**weights, "runtime": machine, "watch": watch})))


def quantize_once(row: Row, teacher: str, seed: int) -> dict[str, Any]:
    """One recipe, one seed."""
    job = job_of(row, teacher, seed)
    began = time.perf_counter()
    done = quantize(
        replace(job.teacher.classifier, name=row.teacher),
        row.bits,
        job.method,
        data=job.data,
        text=job.settings.text,
        plan=job.plan,
        runtime=job.settings.runtime,
        watch=job.settings.watch,
        progress=False,
    )
    about = json.loads(find_weights(Path(teacher)).with_suffix(".json").read_text("utf-8"))
    info, last = done.record.info, done.stages[-1]
    return {
        "recipe": row.name,
        "bits": row.bits,
        "seed": seed,
        "method": row.method,
        "data": row.data,
        "image_size": list(job.facts.image_size),
        "teacher": {"name": row.teacher, "sha256": info.teacher["sha256"], "plan": about["plan"]},
        "student": row.student,
        "text": info.text,
        "settings": plain(settings_of(job.method)),
        "plan": plain(settings_of(job.plan)),
        "looks": plain(list(done.stages)),
        "accuracy": last.accuracy,
        "agreement": last.agreement,
        "seconds": time.perf_counter() - began,
    }


def table(folder: Path = RESULTS / FOLDER) -> str:
    """Markdown: one line for each recipe that has records, means and spread over seeds, in percent."""
    held = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [
        "| recipe | fp32 | calibrated only | trained | agreement: calibrated | trained | kB | seeds | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        mine = [record for record in held if record["recipe"] == row.name]
        if mine:
            lines.append(_line(row, mine))
    return "\n".join(lines) + "\n"


def _line(row: Row, mine: list[dict[str, Any]]) -> str:
    looks = [{look["name"]: look for look in record["looks"]} for record in mine]
    cells = [f"`{row.name}`"]
    cells += [_mean([one[name] for one in looks], "accuracy") for name in ("fp32", "calibrated", "trained")]
    cells += [_mean([one[name] for one in looks], "agreement") for name in ("calibrated", "trained")]
    cells.append(f"{looks[0]['fp32']['bytes'] / 1000:.0f} → {looks[0]['trained']['bytes'] / 1000:.0f}")
    cells += [str(len(mine)), f"{statistics.fmean(record['seconds'] for record in mine):.0f}"]
    return f"| {' | '.join(cells)} |"


def _mean(looks: list[Mapping[str, Any]], key: str) -> str:
    values = [100 * look[key] for look in looks]
    spread = f" ± {statistics.stdev(values):.2f}" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main(words: list[str]) -> None:
    """Run and write, or print the table."""
    if words == ["table"]:
        print(table(), end="")
        return
    row, teacher = find(words[0]), words[1]
    for seed in map(int, words[2:]):
        name = f"{FOLDER}/{row.name.partition('/')[2]}-seed{seed}"
        if not (RESULTS / f"{name}.json").exists():
            print(write_record(name, quantize_once(row, teacher, seed)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
