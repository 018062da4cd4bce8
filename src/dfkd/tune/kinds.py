"""The types of settings, by dotted name. Imports no torch."""

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

__all__ = ["alternatives", "kinds_in"]


def kinds_in(value: Any, at: str) -> dict[str, Any]:
    """Type by dotted name of every setting, those of a method within a method included."""
    types = get_type_hints(type(value))
    kinds: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        if is_dataclass(inner):
            kinds |= kinds_in(inner, f"{at}{item.name}.")
        else:
            kinds[at + item.name] = types[item.name]
    return kinds


def alternatives(kind: Any) -> list[Any]:
    """The alternatives of a type, whatever limits stand with them; None last."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        parts = [part for inner in get_args(kind) for part in alternatives(inner)]
        return sorted(parts, key=lambda part: part is not NoneType and part is not None, reverse=True)
    return [kind]
