"""States that no resume could restore are refused by the name of the field: at setup, or before they are saved."""

from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn
from torch.optim import Optimizer

from dfkd.data.pool import Pool
from dfkd.engine.core import Cache, State
from dfkd.engine.states import FIXED, dataclasses_of, pack, walk
from dfkd.errors import UserError

__all__ = ["Parts", "check_declared", "check_grown", "parts_of"]

Parts = dict[str, tuple[str, object]]


def check_declared(state: State) -> None:
    """Refuse a state with a field that no resume could restore, as its declaration or its value after setup shows.

    Raises:
        UserError: naming the field, and how to declare it.
    """
    for owner, path in dataclasses_of(state, type(state).__name__):
        hints = get_type_hints(type(owner))
        for item in fields(owner):
            value, hint = getattr(owner, item.name), hints.get(item.name, Any)
            late = _late(hint, value)
            if late:
                raise UserError(
                    f"{path}.{item.name} needs its modules and optimisers at setup, got {late}, which a resume could "
                    "not make; make them in setup (an nn.ModuleList of fixed length, a tuple), or declare a Cache for "
                    "what can be computed again"
                )
    try:
        pack(state, type(state).__name__)
    except TypeError as error:
        raise UserError(
            f"{type(state).__name__} needs fields of tensors, modules, optimisers, pools, numbers, strings, and "
            f"lists, tuples, dicts and dataclasses of those, got {str(error).partition(', got ')[2]}; declare it "
            "otherwise, or as a Cache"
        ) from error


def _late(hint: Any, value: Any) -> str:
    """What a field of this type may hold later and does not hold now; empty where all is there."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (list, dict) and any(_holds_fixed(part) for part in inner):
        return f"a {origin.__name__} of them, which may grow"
    if origin in (Union, UnionType) and value is None:
        missing = [part for part in inner if _is_fixed(part)]
        return f"None in the place of {missing[0].__name__}" if missing else ""
    if origin in (Union, UnionType):
        return next((path for part in inner if (path := _late(part, value))), "")
    return ""


def _is_fixed(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, nn.Module | Optimizer)


def _holds_fixed(hint: Any) -> bool:
    return get_origin(hint) is not Cache and (_is_fixed(hint) or any(_holds_fixed(part) for part in get_args(hint)))


def parts_of(state: State) -> Parts:
    """Modules, optimisers and pools by path, each with what has to stay as setup made it."""
    return {path: _shape(value) for value, path in walk(state, type(state).__name__) if isinstance(value, FIXED | Pool)}


def _shape(part: Any) -> tuple[str, object]:
    if isinstance(part, Pool):
        return "pool", tuple(sorted(part.columns))
    if isinstance(part, Optimizer):
        return "optimiser", tuple(len(group["params"]) for group in part.param_groups)
    return "module", tuple(part.state_dict().keys())


def check_grown(before: Parts, state: State) -> None:
    """Refuse to save a state whose modules, optimisers or pools are not those of setup: no resume could restore it.

    Raises:
        UserError: naming the first one.
    """
    now = parts_of(state)
    for path in [*now, *before]:
        if before.get(path) != now.get(path):
            kind = (now.get(path) or before[path])[0]
            what = "grew" if path in before and path in now else "came" if path in now else "went"
            raise UserError(
                f"{path} needs to be the {kind} that setup made, got one that {what} since, which a resume could not "
                "make; make it whole in setup, or declare a Cache for what can be computed again"
            )
