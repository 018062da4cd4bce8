"""Which records are runs of a packaged recipe: what ``dfkd recipes`` shows, and the package keeps as a small file."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS
from dfkd.data.text import class_list, embed
from dfkd.datasets import DATASETS
from dfkd.engine.core import Need
from dfkd.engine.plan import Plan
from dfkd.methods import METHODS
from dfkd.nets.zoo import build
from dfkd.prepare import build_task
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

    Recipes run in float32 and are not compiled. Settings, plan, image shape, text embeddings and stages have to be the
    same. A setting that a record does not name is younger than the record and had today's default. Records before
    stages and text were kept count where the method reads no stages and the recipe takes the shipped embeddings.
    """
    teacher = record.get("teacher")
    name = teacher.get("name") if isinstance(teacher, Mapping) else None
    who = (record.get("method"), record.get("data"), name, record.get("student"))
    if who != (row.method, row.data, row.teacher, row.student) or record.get("accuracy") is None:
        return False
    if record.get("bits", "") != row.bits:
        return False
    if not (_plainly_run(record) and _shape(record) == _wanted_shape(row) and _same_settings(record, row)):
        return False
    return _same_text(record, row) and _same_stages(record, row)


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


def _same_text(record: Mapping[str, Any], row: Row) -> bool:
    """Do both embed the class names alike? Methods that read no text agree."""
    method = METHODS[row.method](**row.settings)
    if Need.TEXT not in method.needs():
        return True
    had = record.get("text")
    if had is None:
        return not row.text
    names, told = class_list(row.data), row.text
    if told.get("encoder", "auto") not in ("auto", "shipped"):  # asks for a model: compared by its name
        return told["encoder"] in str(had.get("encoder", "")).lower()
    want = embed(names, len(names), "shipped", told.get("prompt", "P2")).source
    return all(had.get(key) == want[key] for key in ("encoder", "prompt"))


def _same_stages(record: Mapping[str, Any], row: Row) -> bool:
    """Do both read the same stages? Methods that read none agree."""
    method = METHODS[row.method](**row.settings)
    if Need.STAGES not in method.needs():
        return True
    had = record.get("stages")
    return had is not None and had == stages_of(row)


def stages_of(row: Row) -> dict[str, list[str]]:
    """The stages that a run of this recipe compares, in teacher and student."""
    channels, h, w = _wanted_shape(row)
    classes = len(class_list(row.data))
    built = [build(name, classes, channels) for name in (row.teacher, row.student)]
    pair = [replace(one, stages=row.stages or one.stages) for one in built]
    half = [0.5] * channels
    task = build_task(pair[0], pair[1], image_size=(channels, h, w), classes=classes, mean=half, std=half)
    return {"teacher": list(task.teacher.stage_names), "student": list(task.student.stage_names)}


def _same_settings(record: Mapping[str, Any], row: Row) -> bool:
    """Settings and plan, by way of JSON, as the record went: tuples become lists."""
    method = METHODS[row.method]
    defaults = {item.name: item.default for item in fields(method)}  # type: ignore[arg-type]
    pairs = (
        ("settings", defaults, {**defaults, **row.settings}),
        ("plan", vars(Plan()), {**vars(method.default_plan), **row.plan}),
    )
    for section, younger, want in pairs:
        had = {**younger, **(record.get(section) or {})}  # what the record does not name had its default
        if json.loads(json.dumps(had)) != json.loads(json.dumps(want)):
            return False
    return True


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
