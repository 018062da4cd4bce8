"""Which records are runs of a packaged recipe: what ``dfkd recipes`` shows, and the package keeps as a small file."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS
from dfkd.datasets import DATASETS
from dfkd.methods import METHODS
from dfkd.recipes import Row, rows


def figures(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """Recipe to its runs, one for each seed, in the order of seeds; where a seed was run twice, the newer run."""
    held = [json.loads(path.read_text("utf-8")) for path in sorted(folder.rglob("*.json"))]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows():
        mine = sorted((r for r in held if is_of(r, row)), key=lambda r: str(r["provenance"]["date"]))
        by_seed = {record["seed"]: _run(record) for record in mine}
        if by_seed:
            found[row.name] = [by_seed[seed] for seed in sorted(by_seed)]
    return found


def text(folder: Path = RESULTS) -> str:
    """The content of ``dfkd/recipes/results.json``: a line for each run."""
    parts = []
    for name, runs in figures(folder).items():
        lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
        parts.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def is_of(record: Mapping[str, Any], row: Row) -> bool:
    """Is this a run of exactly this recipe? Unnamed settings are the method's defaults in both.

    Recipes run in float32 and are not compiled. Records do not say which text embeddings they used: those of the
    experiments are the shipped ones, so a recipe that names others has no record yet.
    """
    teacher = record.get("teacher")
    name = teacher.get("name") if isinstance(teacher, Mapping) else None
    who = (record.get("method"), record.get("data"), name, record.get("student"))
    if who != (row.method, row.data, row.teacher, row.student) or record.get("accuracy") is None or row.text:
        return False
    return _plainly_run(record) and _shape(record) == _wanted_shape(row) and _same_settings(record, row)


def _plainly_run(record: Mapping[str, Any]) -> bool:
    """In float32 and not compiled; the experiment *precision* names what it changed."""
    precise = record.get("precision", "fp32") == "fp32" and record.get("variant", "fp32") == "fp32"
    return precise and not record.get("compile", False)


def _shape(record: Mapping[str, Any]) -> list[int] | None:
    """The image shape: as recorded, or, in records without, that of the experiment."""
    known = EXPERIMENTS.get(str(record.get("experiment")))
    shape = record.get("image_size") or (known and known[0].shape)
    return list(shape) if shape else None


def _wanted_shape(row: Row) -> list[int]:
    return list(row.inputs.get("image_size") or DATASETS[row.data].image_size)


def _same_settings(record: Mapping[str, Any], row: Row) -> bool:
    method = METHODS[row.method]
    defaults = {item.name: item.default for item in fields(method)}  # type: ignore[arg-type]
    plan = vars(method.default_plan)
    pairs = ((record.get("settings"), {**defaults, **row.settings}), (record.get("plan"), {**plan, **row.plan}))
    # By way of JSON, as the record went: tuples become lists.
    return all(had == json.loads(json.dumps(want)) for had, want in pairs)


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a record."""
    where = record["provenance"]
    threads = where["threads"]
    return {
        "seed": record["seed"],
        "accuracy": round(record["accuracy"], 6),
        "seconds": round(record["seconds"], 1),
        "hardware": f"{where['hardware']}, {threads} thread{'s' if threads > 1 else ''}",
        "commit": where["commit"],
    }
