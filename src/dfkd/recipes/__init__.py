"""Packaged recipes: a table of published and own settings, as nested plain values or as YAML."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from dfkd.errors import UserError
from dfkd.recipes.ablations import ABLATIONS
from dfkd.recipes.figures import Reached, expected_block, figures_of
from dfkd.recipes.table import ROWS, Row

__all__ = ["Reached", "Row", "expected_block", "find", "names", "figures_of", "recipe", "rows", "yaml_of"]


# Data sets whose published files are read by name; of others the user gives a folder or an array.
_READABLE = ("digits", "mnist", "cifar10", "cifar100")


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
    by_name = {row.name: row for row in rows()}
    if name not in by_name:
        near = difflib.get_close_matches(name.lower(), list(by_name), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`dfkd recipes` lists them"
        raise UserError(f"recipe needs a YAML file or a packaged name, got {name!r}; {hint}")
    return by_name[name]


def recipe(name: str) -> dict[str, Any]:
    """The settings of a packaged recipe, section by section, as a recipe file holds them.

    One with ``bits`` is for ``dfkd quantize``, and has no student: that is the teacher, quantized.

    Raises:
        UserError: no such recipe, with the nearest.
    """
    row = find(name)
    tests = row.data if row.data in _READABLE else None
    data = {"preset": row.data, **({"test": tests} if tests else {}), **row.inputs}
    stages = {"stages": list(row.stages)} if row.stages else {}
    student = {"bits": row.bits} if row.bits else {"student": {"name": row.student, **stages}}
    return {
        "teacher": {"name": row.teacher, **stages},
        **student,
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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
