"""Options from dataclasses: a nested dataclass is a section, a trailing comment explains its field."""

import inspect
import io
import re
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal

from dfkd.engine.limits import limits_of

__all__ = ["Option", "notes", "options", "parts", "spell"]

_FIELD = re.compile(r"(\w+)\s*:(?!:)")


@dataclass(frozen=True)
class Option:
    """One option: its dotted name, its type, its default (None also stands for "none"), what it means, its limit.

    ``group`` is the comment line above it in its class, and above those that follow; "" before the first.
    """

    name: str
    type: Any
    default: Any
    note: str
    limit: str = ""
    group: str = ""

    @property
    def boolean(self) -> bool:
        """Whether the flag may stand alone."""
        return bool in parts(self.type) and set(parts(self.type)) <= {bool, NoneType}


def options(cls: type, prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass, those of nested dataclasses included, in order."""
    types, comments, limits, groups = typing.get_type_hints(cls), notes(cls), limits_of(cls), _groups(cls)
    for item in fields(cls):
        kind = types[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from options(kind, f"{prefix}{item.name}.")
        else:
            limit = limits[item.name].words if item.name in limits else ""
            name, note, group = prefix + item.name, comments.get(item.name, ""), groups.get(item.name, "")
            yield Option(name, kind, _default(item), note, limit.removeprefix("of ").removeprefix("to be "), group)


def notes(cls: type) -> dict[str, str]:
    """What is said about each field: its trailing comment, else its line under "Attributes:" in the docstring."""
    texts = {name: text for kind in _declaring_classes(cls) for name, text in _attributes(kind.__doc__ or "").items()}
    return {**texts, **{name: text for kind in _declaring_classes(cls) for name, text in _comments(kind).items()}}


def parts(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)


def spell(kind: Any) -> str:
    """A type as people write values of it."""
    return " or ".join(dict.fromkeys(_spell(part) for part in parts(kind)))


def _spell(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"{len(inside)} {_PLURAL.get(inside[0], 'values')}"
    if origin in (tuple, list) and typing.get_origin(inside[0]) is Literal:
        return f"a list of {_spell(inside[0])}"
    if origin in (tuple, list):
        return f"a list of {_PLURAL.get(inside[0], 'values')}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts", bool: "truth values"}


def _default(item: "Field[Any]") -> Any:
    if item.default is not MISSING:
        return item.default
    return None if item.default_factory is MISSING else item.default_factory()


def _comments(cls: type) -> dict[str, str]:
    """Trailing comments of the lines that declare fields."""
    comments: dict[str, str] = {}
    for token in _tokens(cls):
        declared = _FIELD.match(token.line.strip())
        if token.type == tokenize.COMMENT and declared:
            comments[declared[1]] = token.string.lstrip("# ").strip()
    return comments


def _groups(cls: type) -> dict[str, str]:
    """The comment line that stands alone above a field, or above earlier ones of its group."""
    return {name: heading for kind in _declaring_classes(cls) for name, heading in _own_groups(kind).items()}


def _own_groups(cls: type) -> dict[str, str]:
    groups: dict[str, str] = {}
    heading = ""
    for token in _tokens(cls):
        line = token.line.strip()
        if token.type == tokenize.COMMENT and line.startswith("#"):
            heading = line.lstrip("# ")
        elif token.type == tokenize.NAME and (declared := _FIELD.match(line)):
            groups[declared[1]] = heading
        elif token.type == tokenize.NAME and token.string == "def":
            break
    return groups


def _declaring_classes(cls: type) -> list[type]:
    """The classes that declare the fields of a dataclass, base classes first."""
    return [kind for kind in reversed(cls.__mro__) if "__dataclass_fields__" in vars(kind)]


def _tokens(cls: type) -> Iterator[tokenize.TokenInfo]:
    """The source of a class; nothing where it cannot be read."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return
    yield from tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline)


def _attributes(doc: str) -> dict[str, str]:
    """The "Attributes:" part of a docstring; several names may share a line."""
    _, _, text = inspect.cleandoc(doc).partition("Attributes:\n")
    attributes: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith("    "):
            break
        head = re.match(r"    (\w[\w, ]*): (.*)", line)
        if head:
            names = [name.strip() for name in head[1].split(",")]
            attributes.update(dict.fromkeys(names, head[2].strip()))
        elif line.strip():
            attributes.update({name: f"{attributes[name]} {line.strip()}" for name in names})
    return {name: note.replace("``", "").rstrip(".") for name, note in attributes.items()}
