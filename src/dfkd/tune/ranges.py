"""Ranges of settings, as people write them: ``0.001:0.1:log``, ``5:20``, ``16:64:16``, ``sgd,adam``.

Names are dotted: ``method.lr``, ``plan.rounds``; of a method made of methods ``method.images_from.lr``. This module
does not import torch.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from dfkd.errors import UserError
from dfkd.tune.kinds import alternatives, kinds_in

__all__ = ["Range", "check_ranges", "parse_range", "settings_with", "value_of"]

FORM = "LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP, or A,B,C"
Value = bool | int | float | str | None
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Values that a setting may take: from ``low`` to ``high``, both included, or one of ``choices``.

    Attributes:
        low, high: ends; of whole numbers both are ``int``.
        log: drawn evenly on a logarithmic scale.
        step: distance of neighbouring values; None: any number, or every whole one.
        choices: values to choose from; with them the rest counts for nothing.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Value, ...] = ()

    @property
    def whole(self) -> bool:
        """Are only whole numbers meant?"""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> int | None:
        """How many values there are; None where there is no end of them."""
        if self.choices:
            return len(self.choices)
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    @property
    def ends(self) -> tuple[Value, ...]:
        """Both ends, or all choices."""
        return self.choices or (self.low, self.high)

    def __contains__(self, value: object) -> bool:
        if self.choices:
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(_spell, self.choices))
        last = ["log"] if self.log else [] if self.step is None else [_spell(self.step)]
        return ":".join([_spell(self.low), _spell(self.high), *last])


def check_ranges(ranges: Mapping[str, "str | Range"], method: Any, plan: Any) -> dict[str, Range]:
    """The ranges, each fit for its setting.

    Args:
        ranges: dotted name to range, as text or as a :class:`Range`.
        method, plan: the settings that are varied; what is not varied keeps their values.

    Raises:
        UserError: no range, a setting that neither has, a range that is empty or of the wrong kind, or an end that the
            setting does not allow.
    """
    if not ranges:
        raise UserError(
            "search needs at least one setting to vary, got none; for example --search.method.lr 0.001:0.1:log"
        )
    kinds = {**kinds_in(method, "method."), **kinds_in(plan, "plan.")}
    checked = {}
    for name, range_given in ranges.items():
        if name not in kinds:
            raise UserError(f"search needs a setting of the method or the plan, got {name}; {_hint(name, kinds)}")
        checked[name] = parse_range(
            name, str(range_given) if isinstance(range_given, Range) else range_given, kinds[name]
        )
        for end in checked[name].ends:
            _check_allowed(method, plan, name, end)
    return checked


def settings_with(method: T, plan: Any, values: Mapping[str, Value]) -> tuple[T, Any]:
    """``method`` and ``plan`` with ``values`` by dotted name put in.

    Raises:
        UserError: values that they do not allow.
    """
    return _replace_fields(method, _below("method.", values)), _replace_fields(plan, _below("plan.", values))


def _below(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def value_of(method: Any, plan: Any, name: str) -> Value:
    """The present value of a setting."""
    value = method if name.startswith("method.") else plan
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def parse_range(name: str, text: object, kind: Any) -> Range:
    """One range, fit for a field of the type ``kind``.

    Raises:
        UserError: another form, an empty range, or values of another kind.
    """
    text = str(text).strip()
    kinds = alternatives(kind)
    if "," in text or ":" not in text:
        words = [word.strip() for word in text.strip("[]").split(",") if word.strip()]
        return _choices(name, text, words, kinds)
    numbers, parts = [part for part in kinds if part in (int, float)], text.split(":")
    if not numbers:
        raise _wrong(name, text, kinds)
    log = len(parts) == 3 and parts[2] == "log"
    if len(parts) > 3:
        raise UserError(f"search needs {name} as {FORM}, got {text!r}; write it so")
    low, high, *rest = (_number(name, text, part, numbers[0]) for part in (parts[:2] if log else parts))
    _check_ends(name, text, low, high, log, rest[0] if rest else None)
    return Range(low, high, log, rest[0] if rest else None)


def _check_ends(name: str, text: str, low: float, high: float, log: bool, step: float | None) -> None:
    if not low < high:
        raise UserError(f"search needs a range of {name} with LOW below HIGH, got {text!r}; it is empty: swap the ends")
    if log and low <= 0:
        raise UserError(f"search needs {name} above 0 on a logarithmic scale, got {text!r}; raise LOW or leave log out")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"search needs a step of {name} above 0 and up to HIGH - LOW, got {text!r}; change STEP")


def _choices(name: str, text: str, words: Sequence[str], kinds: Sequence[Any]) -> Range:
    values = [_choice(word, kinds) for word in words]
    if any(value is _NOTHING for value in values):
        raise _wrong(name, text, kinds)
    if len(set(map(repr, values))) < max(2, len(values)):
        raise UserError(f"search needs at least two different values of {name}, got {text!r}; write {FORM}")
    return Range(choices=tuple(values))


_NOTHING: Any = object()


def _choice(word: str, kinds: Sequence[Any]) -> Any:
    """A word as a value of one of these types, or a mark that it is none."""
    for kind in kinds:
        if kind is NoneType and word in ("null", "none", "None"):
            return None
        if get_origin(kind) is Literal:
            matches = [value for value in get_args(kind) if str(value) == word]
            if matches:
                return matches[0]
        elif kind is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        elif kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
        elif kind is str:
            return word
    return _NOTHING


def _number(name: str, text: str, word: str, kind: type) -> float:
    try:
        value: float = kind(word)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"search needs {name} as {what} in the form {FORM}, got {text!r}; change it") from None
    if not math.isfinite(value):
        raise UserError(f"search needs a finite range of {name}, got {text!r}; change it")
    return value


def _wrong(name: str, text: str, kinds: Sequence[Any]) -> UserError:
    listed = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    words = {int: "whole numbers", float: "numbers", bool: "true,false", str: "texts", NoneType: "null"}
    what = ",".join(listed) or " or ".join(words[kind] for kind in kinds if kind in words)
    if not what:
        return UserError(f"search needs a setting with one value, got {name}; fix it with --{name} instead")
    return UserError(f"search needs {name} to be among {what}, got {text!r}; change it")


def _check_allowed(method: Any, plan: Any, name: str, end: Value) -> None:
    try:
        settings_with(method, plan, {name: end})
    except UserError as error:
        if name == "plan.steps" and plan.steps % plan.turns == 0 and "multiple" in str(error):
            return  # a matter of the single trial: turns may vary too
        raise UserError(f"search needs a range of {name} that is allowed, got {_spell(end)}: {error}") from error


def _replace_fields(value: Any, values: Mapping[str, Value]) -> Any:
    """``value`` with its fields, and those of the dataclasses in it, replaced by dotted name."""
    own = {name: new for name, new in values.items() if "." not in name}
    inner: dict[str, dict[str, Value]] = {}
    for name, new in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = new
    changed = {head: _replace_fields(getattr(value, head), rest) for head, rest in inner.items()}
    return replace(value, **own, **changed) if own or changed else value


def _hint(name: str, names: Iterable[str]) -> str:
    """The nearest settings; also where the section was left out."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if not close:
        tails = {other.rpartition(".")[2]: other for other in reversed(names)}
        close = [
            tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=2, cutoff=0.6)
        ]
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names[:12])}, ..."


def _spell(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
