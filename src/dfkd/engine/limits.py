"""Limits that stand with a field: ``steps: Count``, ``lr: Positive``. The check and the help read them.

This module does not import torch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dfkd.errors import UserError

__all__ = [
    "Betas",
    "Count",
    "Limit",
    "NotNegative",
    "Positive",
    "PositiveShare",
    "Seed",
    "Several",
    "Share",
    "Whole",
    "check",
    "limits_of",
]


@dataclass(frozen=True)
class Limit:
    """What a value of a field must be, in words that follow "<who> needs <field>", and as a test."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Limit("of at least 1", lambda value: value >= 1)]
Several = Annotated[int, Limit("of at least 2 (BatchNorm in train mode needs several)", lambda value: value >= 2)]
Whole = Annotated[int, Limit("of at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Limit("above 0 and finite", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Limit("of at least 0", lambda value: value >= 0)]
Share = Annotated[float, Limit("from 0 to 1", lambda value: 0 <= value <= 1)]
PositiveShare = Annotated[float, Limit("above 0 and up to 1", lambda value: 0 < value <= 1)]
Seed = Annotated[int, Limit("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)]
Betas = Annotated[
    tuple[float, float],
    Limit("to be two numbers, each at least 0 and below 1", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v)),
]
"""Adam's."""


def limits_of(cls: type) -> dict[str, Limit]:
    """The limits of a dataclass's fields, by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: limit for name, hint in hints.items() for limit in _limits(hint)}


def check(values: Any, who: str | None = None) -> None:
    """Refuse what is no number where one is due, is not among a field's choices (``Literal``), breaks its limit or is
    not finite; None passes.

    Args:
        values: a dataclass instance.
        who: for messages; default: its class.

    Raises:
        UserError: naming the field.
    """
    who = who or type(values).__name__
    for name, hint in get_type_hints(type(values), include_extras=True).items():
        value = getattr(values, name)
        types = _types(hint)
        if types <= {int, float, type(None)} and not _is_number(value, types):
            due = "a number" if float in types else "a whole number"
            raise UserError(f"{who} needs {name} to be {due}, got {value!r}; change {name}")
        choices = _choices(hint)
        if choices and value is not None and value not in choices:
            listed = ", ".join(map(str, choices))
            raise UserError(f"{who} needs {name} to be one of {listed}, got {value!r}; choose one of them")
        for limit in _limits(hint):
            if value is not None and not limit.holds(value):
                raise UserError(f"{who} needs {name} {limit.words}, got {value}; change {name}")
        numbers = value if isinstance(value, tuple | list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{who} needs finite settings, got {name}={value}; change {name}")


def _types(hint: Any) -> set[Any]:
    """Those that a plain value of the field may have: of ``Annotated[int, ...] | None`` int and None."""
    if get_origin(hint) is Annotated:
        return _types(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return {kind for part in get_args(hint) for kind in _types(part)}
    return {hint}


def _is_number(value: Any, types: set[Any]) -> bool:
    """Is it one of those kinds: int, float, None?"""
    if value is None or isinstance(value, bool):
        return type(value) in types
    return isinstance(value, Real if float in types else Integral)


def _limits(hint: Any) -> Iterator[Limit]:
    """Those of a type, also where it may be None."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Annotated:
            yield from (note for note in get_args(part)[1:] if isinstance(note, Limit))


def _choices(hint: Any) -> list[Any]:
    return [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
