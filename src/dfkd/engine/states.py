"""What a state is made of: packed into plain containers for a save, and restored, each part with its type.

A module, an optimiser or a pool is restored into the one that ``setup`` made. Everything else (tensors, parameters,
numbers, strings, lists, tuples, named tuples, dicts, nested dataclasses) is made again. What could not be restored is
refused by name (``dfkd.engine.declared``).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.data.pool import Pool
from dfkd.engine.core import Cache
from dfkd.types import Moments

__all__ = ["dataclasses_of", "kinds_of", "pack", "pools_of", "unpack", "unsaved_buffers", "walk"]

PLAIN = (bool, int, float, str, type(None))
FIXED = nn.Module | Optimizer  # what a resume fills, and cannot make
Kinds = Mapping[str, type]
RENAMED = MappingProxyType({"fixed_parameters": "held"})  # fields, by the name that the first checkpoints have


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
        return _fill(saved, into, device, kinds)  # the format before
    if keys == {"dataclass", "fields"}:
        return _fill(saved["fields"], _slot(saved["dataclass"], into, kinds), device, kinds)
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


def _fill(saved: Mapping[str, Any], into: Any, device: torch.device, kinds: Kinds) -> Any:
    for item in fields(into):
        if item.name == "optimizers" and item.name not in saved and into.optimizers == ():
            continue  # newer than the first checkpoints
        name = item.name if item.name in saved else RENAMED.get(item.name, item.name)
        value = unpack(saved[name], getattr(into, item.name, None), device, kinds)
        object.__setattr__(into, item.name, value)  # a frozen dataclass is restored like any other
    return into


def kinds_of(state: Any) -> dict[str, type]:
    """Every named tuple and dataclass that ``state`` declares or holds, by full name."""
    kinds: dict[str, type] = {}
    for owner, _ in dataclasses_of(state, ""):
        _collect(type(owner), kinds)
    for value, _ in walk(state, ""):
        if _is_named_tuple(type(value)):
            _collect(type(value), kinds)
    return kinds


def _collect(hint: Any, kinds: dict[str, type]) -> None:
    """Add the named tuples and dataclasses of a type hint, and those that their fields name."""
    for part in get_args(hint):
        _collect(part, kinds)
    if not isinstance(hint, type) or not (is_dataclass(hint) or _is_named_tuple(hint)) or _tag(hint) in kinds:
        return
    kinds[_tag(hint)] = hint
    for inner in get_type_hints(hint).values():
        _collect(inner, kinds)


def _tag(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def pools_of(state: Any) -> dict[str, Pool]:
    """Every pool of a state, wherever it is kept, by its dotted path; one that is kept twice counts once."""
    pools: dict[str, Pool] = {}
    for value, path in walk(state, "", first=lambda part: isinstance(part, Pool)):
        if isinstance(value, Pool) and not any(value is earlier for earlier in pools.values()):
            pools[path] = value
    return pools


def unsaved_buffers(net: nn.Module) -> dict[str, Tensor]:
    """The buffers that ``state_dict`` leaves out (``persistent=False``), by name."""
    saved = net.state_dict().keys()
    return {name: buffer for name, buffer in net.named_buffers() if name not in saved}


def dataclasses_of(state: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Every dataclass within ``state``, itself included, with its path."""
    for value, at in walk(state, path):
        if is_dataclass(value) and not isinstance(value, type):
            yield value, at


def walk(value: Any, path: str, first: Callable[[Any], bool] = lambda part: False) -> Iterator[tuple[Any, str]]:
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
        yield from walk(parts[key], f"{path}.{key}" if path else key, first)
