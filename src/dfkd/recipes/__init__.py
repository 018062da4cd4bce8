"""Packaged recipes: a table of published and own settings, as nested plain values or as YAML."""

import difflib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dfkd.errors import UserError
from dfkd.recipes.ablations import ABLATIONS
from dfkd.recipes.table import ROWS, Row

__all__ = ["Reached", "Row", "find", "names", "reached", "recipe", "rows", "yaml_of"]


# Data sets whose published files are read by name; of others the user gives a folder or an array.
_READABLE = ("digits", "mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class Reached:
    """What records of runs with exactly these settings say: accuracies in [0, 1], one a seed."""

    accuracies: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.accuracies)


def rows() -> tuple[Row, ...]:
    """The rows whose method exists: the papers' main results, then their ablations."""
    from dfkd.methods import METHODS

    return tuple(row for row in (*ROWS, *ABLATIONS) if row.method in METHODS)


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(row.name for row in rows())


def find(name: str) -> Row:
    """The row of this name.

    Raises:
        UserError: no such recipe, with the nearest.
    """
    found = {row.name: row for row in rows()}
    if name not in found:
        near = difflib.get_close_matches(name.lower(), list(found), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`dfkd recipes` lists them"
        raise UserError(f"recipe needs a YAML file or a packaged name, got {name!r}; {hint}")
    return found[name]


def recipe(name: str) -> dict[str, Any]:
    """The settings of a packaged recipe, section by section, as a recipe file holds them.

    Raises:
        UserError: no such recipe, with the nearest.
    """
    row = find(name)
    tests = row.data if row.data in _READABLE else None
    data = {"preset": row.data, **({"test": tests} if tests else {}), **row.inputs}
    return {
        "teacher": {"name": row.teacher},
        "student": {"name": row.student},
        "data": {key: value for key, value in data.items() if value is not None},
        **({"text": dict(row.text)} if row.text else {}),
        "method": {"name": row.method, **row.settings},
        "plan": dict(row.plan),
    }


def yaml_of(tree: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    """Nested plain values as YAML, lists on one line, with ``head`` as comments above."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Lists on one line."""

    Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
    comments = "".join(f"# {line}".rstrip() + "\n" for line in head)
    body = {key: value for key, value in tree.items() if value not in ({}, None)}
    return comments + yaml.dump(_plain(body), Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


def reached(row: Row, folder: Path | None = None) -> Reached | None:
    """What was measured with this recipe: records of the checkout, else those packaged.

    Args:
        row: the recipe.
        folder: of the records; default ``benchmarks/results`` of the checkout this package runs from.
    """
    records = [record for record in _records(folder) if _same(record, row)]
    if not records:
        return None
    by_seed = {record.get("seed"): record for record in records}
    seconds = statistics.fmean(float(record.get("seconds", 0.0)) for record in by_seed.values())
    return Reached(tuple(float(record["accuracy"]) for record in by_seed.values()), seconds)


def _records(folder: Path | None) -> list[dict[str, Any]]:
    folder = folder or Path(__file__).resolve().parents[3] / "benchmarks" / "results"
    packaged = Path(__file__).with_name("results.json")
    if folder.is_dir():
        texts = [path.read_text("utf-8") for path in sorted(folder.rglob("*.json"))]
    else:
        texts = [json.dumps(one) for one in json.loads(packaged.read_text("utf-8"))] if packaged.exists() else []
    held = []
    for text in texts:
        try:
            held.append(json.loads(text))
        except ValueError:
            continue  # being written by a benchmark
    return [one for one in held if isinstance(one, dict)]


def _same(record: Mapping[str, Any], row: Row) -> bool:
    """Is this a record of exactly this recipe? Unnamed settings are the method's defaults in both."""
    teacher = record.get("teacher")
    teacher = teacher.get("name", teacher.get("network")) if isinstance(teacher, dict) else teacher
    if row.text:
        return False  # records do not say which embeddings were used
    who = (record.get("method"), record.get("data"), teacher, record.get("student"))
    if who != (row.method, row.data, row.teacher, row.student) or record.get("accuracy") is None:
        return False
    from dfkd.methods import METHODS

    method = METHODS[row.method]
    defaults = {item.name: item.default for item in fields(method)}  # type: ignore[arg-type]
    plan = vars(method.default_plan)
    pairs = ((record.get("settings"), {**defaults, **row.settings}), (record.get("plan"), {**plan, **row.plan}))
    return all(isinstance(had, dict) and _plain(had) == _plain(want) for had, want in pairs)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
