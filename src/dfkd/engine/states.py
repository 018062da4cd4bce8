"""What a state is made of: packed into plain containers for a save, and restored, each part with its type.

A module, an optimiser or a pool is restored into the one that ``setup`` made. Everything else (tensors, parameters,
numbers, strings, lists, tuples, named tuples, dicts, nested dataclasses) is made again. What could not be restored is
refused by name: at setup where the declaration shows it, else at the first save.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.data.pool import Pool
from dfkd.engine.core import Cache, State
from dfkd.errors import UserError
from dfkd.types import Moments

__all__ = ["Parts", "check_declared", "check_grown", "kinds_of", "pack", "parts_of", "pools_of", "unpack"]

PLAIN = (bool, int, float, str, type(None))
FIXED = nn.Module | Optimizer  # what a resume fills, and cannot make
Kinds = Mapping[str, type]
Parts = dict[str, tuple[str, object]]


def pack(value: Any, path: str = "state") -> Any:
    """``value`` as plain containers, numbers and tensors.

    Pools are left out, as they are saved in segments, and so are caches, which can be computed again.

    Raises:
        TypeError: a kind of value that cannot be saved, with its ``path``.
    """
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return {"parameter": copy, "grad": value.requires_grad} if isinstance(value, nn.Parameter) else copy
    if isinstance(value, FIXED):
        return value.state_dict()
    if isinstance(value, Pool | Cache):
        return None
    if type(value) in PLAIN:
        return value
    return _packed_container(value, path)


def _packed_container(value: Any, path: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        inner = {item.name: pack(getattr(value, item.name), f"{path}.{item.name}") for item in fields(value)}
        return {"dataclass": _tag(type(value)), "fields": inner}
    if _is_named_tuple(type(value)):
        return {"named": _tag(type(value)), "items": [pack(part, f"{path}.{i}") for i, part in enumerate(value)]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(part, f"{path}.{i}") for i, part in enumerate(value)]}
    if type(value) is dict and all(type(key) in PLAIN for key in value):
        return {"dict": {key: pack(part, f"{path}.{key}") for key, part in value.items()}}
    raise TypeError(f"a state needs fields that can be saved, got {type(value).__name__} in {path}")


def unpack(saved: Any, into: Any, device: torch.device, kinds: Kinds | None = None) -> Any:
    """The inverse of :func:`pack`: modules, optimisers and dataclasses are filled in place, the rest is returned.

    Args:
        saved: what :func:`pack` returned.
        into: what ``setup`` made in its place.
        device: of tensors that have no place yet.
        kinds: named tuples and dataclasses that may have to be made, by their full name (those of ``into``).
    """
    kinds = kinds_of(into) if kinds is None else kinds
    if isinstance(into, FIXED):
        into.load_state_dict(saved)
        return into
    if isinstance(into, Pool | Cache):
        return into
    if isinstance(saved, Tensor):
        return _restored_tensor(saved, into, device)
    if isinstance(saved, dict):
        return _unpack_container(saved, into, device, kinds)
    return saved


def _restored_tensor(saved: Tensor, into: Any, device: torch.device) -> Tensor:
    if isinstance(into, Tensor) and into.requires_grad and into.shape == saved.shape:
        with torch.no_grad():  # an optimiser may hold it
            return into.copy_(saved)
    return saved.to(into.device if isinstance(into, Tensor) else device)


def _unpack_container(saved: dict[Any, Any], into: Any, device: torch.device, kinds: Kinds) -> Any:
    keys = saved.keys()
    if keys == {"parameter", "grad"}:
        value = _restored_tensor(saved["parameter"], into, device)
        return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=saved["grad"])
    if is_dataclass(into) and not isinstance(into, type) and keys != {"dataclass", "fields"}:
        return _filled(saved, into, device, kinds)  # the format before
    if keys == {"dataclass", "fields"}:
        return _filled(saved["fields"], _slot(saved["dataclass"], into, kinds), device, kinds)
    if keys == {"named", "items"}:
        kind = kinds[saved["named"]] if type(into).__name__ != saved["named"] else type(into)
        return kind(*_unpacked_items(saved["items"], into, device, kinds))
    if keys == {"moments"}:  # the format before
        return Moments(*(unpack(part, None, device, kinds) for part in saved["moments"]))
    if keys == {"list"}:
        return _unpacked_items(saved["list"], into, device, kinds)
    if keys == {"tuple"}:
        items = _unpacked_items(saved["tuple"], into, device, kinds)
        return type(into)(*items) if _is_named_tuple(type(into)) else tuple(items)
    slots = into if isinstance(into, Mapping) else {}
    return {key: unpack(part, slots.get(key), device, kinds) for key, part in saved["dict"].items()}


def _unpacked_items(saved: list[Any], into: Any, device: torch.device, kinds: Kinds) -> list[Any]:
    slots = list(into) if isinstance(into, list | tuple) else []
    slots += [None] * (len(saved) - len(slots))
    return [unpack(part, slot, device, kinds) for part, slot in zip(saved, slots, strict=False)]


def _slot(tag: str, into: Any, kinds: Kinds) -> Any:
    """The dataclass to fill: the one in place, or an empty one of the saved kind."""
    if is_dataclass(into) and not isinstance(into, type) and _tag(type(into)) == tag:
        return into
    return object.__new__(kinds[tag])


def _filled(saved: Mapping[str, Any], into: Any, device: torch.device, kinds: Kinds) -> Any:
    for item in fields(into):
        if item.name == "optimizers" and item.name not in saved and into.optimizers == ():
            continue  # newer than the first checkpoints
        value = unpack(saved[item.name], getattr(into, item.name, None), device, kinds)
        object.__setattr__(into, item.name, value)  # a frozen dataclass is restored like any other
    return into


# ---- declarations ---------------------------------------------------------------------------------------------------


def check_declared(state: State) -> None:
    """Refuse a state with a field that no resume could restore, as its declaration or its value after setup shows.

    Raises:
        UserError: naming the field, and how to declare it.
    """
    for owner, path in _dataclasses(state, type(state).__name__):
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
        return next((said for part in inner if (said := _late(part, value))), "")
    return ""


def _is_fixed(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, nn.Module | Optimizer)


def _holds_fixed(hint: Any) -> bool:
    return get_origin(hint) is not Cache and (_is_fixed(hint) or any(_holds_fixed(part) for part in get_args(hint)))


def kinds_of(state: Any) -> dict[str, type]:
    """Every named tuple and dataclass that ``state`` declares or holds, by full name."""
    found: dict[str, type] = {}
    for owner, _ in _dataclasses(state, ""):
        _collect(type(owner), found)
    for value, _ in _walk(state, ""):
        if _is_named_tuple(type(value)):
            _collect(type(value), found)
    return found


def _collect(hint: Any, found: dict[str, type]) -> None:
    """Add the named tuples and dataclasses of a type hint, and those that their fields name."""
    for part in get_args(hint):
        _collect(part, found)
    if not isinstance(hint, type) or not (is_dataclass(hint) or _is_named_tuple(hint)) or _tag(hint) in found:
        return
    found[_tag(hint)] = hint
    for inner in get_type_hints(hint).values():
        _collect(inner, found)


def _tag(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


# ---- what a resume fills -------------------------------------------------------------------------------------------


def parts_of(state: State) -> Parts:
    """Modules, optimisers and pools by path, each with what has to stay as setup made it."""
    return {
        path: _shape(value) for value, path in _walk(state, type(state).__name__) if isinstance(value, FIXED | Pool)
    }


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


def pools_of(state: Any) -> dict[str, Pool]:
    """Every pool of a state, wherever it is kept, by its dotted path; one that is kept twice counts once."""
    found: dict[str, Pool] = {}
    for value, path in _walk(state, "", first=lambda part: isinstance(part, Pool)):
        if isinstance(value, Pool) and not any(value is other for other in found.values()):
            found[path] = value
    return found


def _dataclasses(state: Any, path: str) -> Iterator[tuple[Any, str]]:
    for value, at in _walk(state, path):
        if is_dataclass(value) and not isinstance(value, type):
            yield value, at


def _walk(value: Any, path: str, first: Callable[[Any], bool] = lambda part: False) -> Iterator[tuple[Any, str]]:
    """``value`` and all parts of dataclasses, lists, tuples and dicts, those that come ``first`` before the others."""
    yield value, path
    if isinstance(value, FIXED | Pool | Cache | Tensor):
        return
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: getattr(value, item.name) for item in fields(value)}
    elif isinstance(value, Mapping):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {str(i): part for i, part in enumerate(value)}
    else:
        return
    for key in sorted(parts, key=lambda key: not first(parts[key])):
        yield from _walk(parts[key], f"{path}.{key}" if path else key, first)
