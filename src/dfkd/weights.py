"""Read weights that others wrote, and what is told beside them. No file can run code."""

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn, strided

from dfkd.errors import UserError
from dfkd.nets.outputs import OUTPUTS, Output
from dfkd.stored import Extra, kind_in_words, named_parts, open_weights

__all__ = ["Sidecar", "find_weights", "load_weights", "read_sidecar", "read_weights", "without_wrappers"]

NAMES = ("weights.safetensors", "student.safetensors")
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGES = frozenset({"ema", "swa", "shadow", "polyak", "avg", "average", "averaged", "emamodel", "modelema"})
_NO_NETWORK = re.compile(r"optim|sched|scaler|callback|loop|rng|hparam|hyper", re.IGNORECASE)
_DEEPEST = 6  # mappings within mappings
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Sidecar:
    """What the file beside the weights tells; None where it does not say."""

    name: str | None = None
    classes: int | None = None
    names: tuple[str, ...] = ()
    image_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seconds: float | None = None
    projector: Mapping[str, Any] | None = None  # how the student was widened to its teacher's classifier
    bits: str | None = None  # of a quantized student, such as W4A4
    outputs: Output = "logits"  # what the network returns
    mirrored: bool | None = None  # whether its training images were mirrored at random


@dataclass(frozen=True)
class _WeightSet:
    """One set of weights in a file: where (dotted; "" at the top), its tensors, and the names that lie beside it."""

    key: str
    weights: dict[str, Tensor]
    others: frozenset[str] = frozenset()

    @property
    def average(self) -> bool:
        """Whether its name says that it is a running average of the weights."""
        return not _AVERAGES.isdisjoint(re.split(r"[._-]", self.key.lower()))


def find_weights(path: Path, role: str = "network") -> Path:
    """``path`` itself, or the weights inside it where it is a folder of `dfkd teach` or of a finished run.

    Raises:
        UserError: nothing there.
    """
    path = path.expanduser()
    if path.is_dir():
        for name in NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{role} needs {' or '.join(NAMES)} in {path}, got a folder without; {_advice(path, role)}")
    if not path.is_file():
        raise UserError(f"{role} needs a weights file, got {path}, which is not there; check the path")
    return path


def _advice(folder: Path, role: str) -> str:
    runs = sorted(weights.parent for weights in folder.glob("*/student.safetensors"))
    if runs:  # of several seeds, or of a search
        return f"give one of its runs, such as {runs[0]}"
    if (folder / "config.json").is_file():
        return f"of a folder of transformers give --{role}.name hf:{folder} instead"
    return "give the weights file"


def read_weights(path: Path, role: str = "network", key: str | None = None) -> dict[str, Tensor]:
    """The state dict in ``path``: .safetensors, or .pt/.pth opened without running anything it holds.

    A dict within dicts is found, whatever lies beside it; the prefixes of wrapped networks (``module.``,
    ``_orig_mod.``) are dropped. Of weights and their running average (EMA) the former are taken.

    Args:
        path: the file, or a folder that holds one.
        role: for messages.
        key: which of several sets of weights, as a dotted path: ``state_dict_ema``.

    Raises:
        UserError: a file that is truncated, wants to run code, holds no state dict, or several.
    """
    path = find_weights(path, role)
    candidates = _sets_in(path, role, key)
    largest = max(len(candidate.weights) for candidate in candidates)
    return _one_of([candidate for candidate in candidates if len(candidate.weights) == largest], path, role).weights


def load_weights(net: nn.Module, path: Path, role: str = "network", key: str | None = None) -> None:
    """Load ``path`` into ``net``, every name and shape checked before anything is changed.

    The set of weights whose names fit is taken, wherever it lies in the file and whatever prefix its names share
    (``module.``, ``model.``, ``net.``, ``_orig_mod.``). Where both weights and their running average (EMA) fit, the
    weights are taken, with a warning that says so; ``key`` chooses. Counters of BatchNorm layers
    (``num_batches_tracked``) may be missing: old files lack them.

    Args:
        net: whose weights they are.
        path: the file, or a folder that holds one.
        role: for messages.
        key: which of several sets of weights, as a dotted path: ``state_dict_ema``.

    Raises:
        UserError: what :func:`read_weights` refuses, or weights of another network; the first names are given.
    """
    path, state = find_weights(path, role), {name: t for name, t in net.state_dict().items() if isinstance(t, Tensor)}
    candidates = _sets_in(path, role, None)
    fitting = [fit for candidate in candidates for fit in _fits(state, candidate) if _is_chosen(fit.key, key)]
    fitting = [fit for fit in fitting if not _mismatched_names(state, fit.weights)] or fitting
    if not fitting:
        candidates = [candidate for candidate in candidates if _is_chosen(candidate.key, key)] or _refuse_key(
            candidates, path, role, key
        )
        raise _unlike(
            net, state, max(candidates, key=lambda candidate: len(state.keys() & candidate.weights.keys())), path, role
        )
    chosen_set = _one_of(fitting, path, role)
    if wrong := _mismatched_names(state, chosen_set.weights):
        raise _wrong_shape(state, chosen_set.weights, wrong, path, role)
    if unused := sorted(frozenset.intersection(*(fit.others for fit in fitting))):
        warnings.warn(f"{role}: {_few(unused)} in {path} belong to no layer and were left out", stacklevel=2)
    net.load_state_dict(chosen_set.weights, strict=False)


def _sets_in(path: Path, role: str, key: str | None) -> list[_WeightSet]:
    """Every set of weights in the file that ``key`` does not exclude, in its order."""
    content = open_weights(path, role)
    candidates = [_WeightSet(where, _unwrap(weights)) for where, weights in _walk(content, "", 0)]
    if not candidates:
        raise UserError(
            f"{role} needs a state dict (names to tensors), got {path} with {_describe(content)}; save net.state_dict()"
        )
    candidates = [candidate for candidate in candidates if not _NO_NETWORK.search(candidate.key)] or candidates
    for candidate in candidates:
        _check_dense(candidate, path, role)
    return [candidate for candidate in candidates if _is_chosen(candidate.key, key)] or _refuse_key(
        candidates, path, role, key
    )


def _walk(value: object, where: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(dotted path, tensors) of every mapping that holds some, and of every pickled network."""
    if isinstance(value, Extra) and isinstance(vars(value).get("_modules"), Mapping):
        yield where, dict(_tensors_of_module(value, "", 0))
        return
    parts = list(named_parts(value))
    tensors = {name: part for name, part in parts if isinstance(part, Tensor)}
    if tensors:
        yield where, tensors
    for name, part in parts if depth < _DEEPEST else ():
        yield from _walk(part, f"{where}.{name}" if where else name, depth + 1)


def _tensors_of_module(module: Extra, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """What ``state_dict`` would return of a pickled network."""
    state = vars(module)
    passing = state.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers"):
        for name, part in named_parts(state.get(group)):
            if isinstance(part, Tensor) and not (isinstance(passing, set) and name in passing):
                yield f"{prefix}{name}", part.detach()
    for name, part in named_parts(state.get("_modules")) if depth < 100 else ():
        if isinstance(part, Extra):
            yield from _tensors_of_module(part, f"{prefix}{name}.", depth + 1)


def _unwrap(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix ``module.`` of all names, and without the names of wrappers among prefixes."""
    tensors = {without_wrappers(name): tensor for name, tensor in weights.items()}
    inner = [name for name in tensors if name != "n_averaged"]  # what AveragedModel counts
    while inner and all(name.startswith("module.") for name in inner):
        tensors = {name.removeprefix("module."): tensors[name] for name in inner}
        inner = list(tensors)
    return tensors


def without_wrappers(name: str) -> str:
    """The name of a tensor without those of wrappers (``torch.compile``, FSDP, activation checkpoints) on its path."""
    return _WRAPPERS.sub("", name)


def _fits(state: Mapping[str, Tensor], candidate: _WeightSet) -> Iterator[_WeightSet]:
    """The weights under the network's own names, once for each prefix under which all of them are there."""
    required = [name for name in state if not name.endswith(_COUNTER)]
    plain = {without_wrappers(name): name for name in state}
    shared = _shared_prefix(plain)
    for own_prefix in [shared[:end] for end in range(len(shared) + 1) if end == 0 or shared[end - 1] == "."]:
        first = next((name.removeprefix(own_prefix) for name in plain if not name.endswith(_COUNTER)), None)
        prefixes = {name[: -len(first)] for name in candidate.weights if first and f".{name}".endswith(f".{first}")}
        for prefix in sorted(prefixes, key=len)[:64]:
            inside = {
                name: own_prefix + name.removeprefix(prefix) for name in candidate.weights if name.startswith(prefix)
            }
            fitting = {
                plain[own_name]: candidate.weights[name] for name, own_name in inside.items() if own_name in plain
            }
            if len(fitting) == len(inside) and all(name in fitting for name in required):
                where = ".".join(filter(None, (candidate.key, prefix.rstrip("."))))
                yield _WeightSet(where, fitting, frozenset(candidate.weights.keys() - inside.keys()))


def _shared_prefix(names: Iterable[str]) -> str:
    """The dotted prefix that all names have: ``model.`` of ``model.a.weight`` and ``model.b.weight``."""
    parts = [name.split(".")[:-1] for name in names]
    if not parts:
        return ""
    low, high = min(parts), max(parts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return "".join(f"{part}." for part in low[:length])


def _one_of(candidates: list[_WeightSet], path: Path, role: str) -> _WeightSet:
    """The only one; of weights and their average the weights, and that is said."""
    plain = [candidate for candidate in candidates if not candidate.average] or candidates
    if len(plain) > 1 and not all(_same(plain[0].weights, candidate.weights) for candidate in plain[1:]):
        keys = ", ".join(repr(candidate.key) for candidate in plain)
        raise UserError(
            f"{role} needs one set of weights, got {len(plain)} that fit in {path}: {keys}; choose by --{role}.key "
            f"{plain[0].key or '...'} (in Python key={plain[0].key!r})"
        )
    averages = [candidate.key for candidate in candidates if candidate.average and candidate is not plain[0]]
    if averages and not plain[0].average:
        warnings.warn(
            f"{role}: took {plain[0].key!r} of {path}; it also holds the running average {averages[0]!r}, which "
            f"--{role}.key {averages[0]} (in Python key={averages[0]!r}) takes",
            stacklevel=3,
        )
    return plain[0]


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and bool((first[name] == second[name]).all()) for name in first
    )


def _is_chosen(where: str, key: str | None) -> bool:
    return key is None or where == key or where.startswith(f"{key}.")


def _refuse_key(candidates: list[_WeightSet], path: Path, role: str, key: str | None) -> list[_WeightSet]:
    keys = ", ".join(dict.fromkeys(repr(candidate.key) for candidate in candidates))
    raise UserError(f"{role} needs a key of {path}, got {key!r}; weights are under {keys}")


def _check_dense(candidate: _WeightSet, path: Path, role: str) -> None:
    for name, tensor in candidate.weights.items():
        kind = "no values" if tensor.is_meta else "quantized values" if tensor.is_quantized else ""
        kind = kind or ("sparse values" if tensor.layout is not strided else "")
        if kind:
            raise UserError(f"{role} needs plain tensors, got {path} with {kind} in {name}; save plain ones")


def _mismatched_names(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors of another shape, or of another kind of numbers: integers are no weights."""
    return [
        name
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
        or tensor.is_complex() != state[name].is_complex()
        or (state[name].is_floating_point() and not tensor.is_floating_point())
    ]


def _wrong_shape(
    state: Mapping[str, Tensor], weights: Mapping[str, Tensor], wrong: list[str], path: Path, role: str
) -> UserError:
    name = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    expected, actual = (str(tuple(tensors[name].shape)) for tensors in (state, weights))
    if expected == actual:
        expected, actual = (
            f"{dims} of {tensors[name].dtype}" for dims, tensors in ((expected, state), (actual, weights))
        )
    return UserError(
        f"{role} needs {name} of shape {expected}, got {actual} in {path}{more}; check network, classes and channels"
    )


def _unlike(net: nn.Module, state: Mapping[str, Tensor], candidate: _WeightSet, path: Path, role: str) -> UserError:
    missing = [name for name in state if name not in candidate.weights and not name.endswith(_COUNTER)]
    extra = [name for name in candidate.weights if name not in state]
    differences = [f"without {_few(missing)}"] if missing else []
    differences += [f"with the unknown {_few(extra)}"] if extra else []
    return UserError(
        f"{role} needs the weights of {type(net).__name__}, got {path} {' and '.join(differences)}; "
        "name the network these weights belong to"
    )


def read_sidecar(path: Path) -> Sidecar:
    """What stands in the .json beside the weights, as `dfkd teach` and finished runs write it; empty without one.

    Raises:
        UserError: the file is there but damaged.
    """
    file = path.expanduser().with_suffix(".json")
    if not file.is_file():
        return Sidecar()
    try:
        return _sidecar(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as e:
        raise UserError(
            f"{path.name} needs a sound description beside it, got {file} ({type(e).__name__}); repair or remove it"
        ) from e


def _sidecar(row: Any) -> Sidecar:
    network, shape, names = row.get("network") or {}, row.get("image_shape"), row.get("names") or []
    name, projector = network.get("name"), network.get("projector")
    if not isinstance(names, list) or not isinstance(name, str | None) or not isinstance(projector, dict | None):
        raise TypeError("names")
    if row.get("outputs", "logits") not in OUTPUTS:
        raise ValueError("a kind of outputs")
    mirrored = (row.get("plan") or {}).get("flip")
    if not isinstance(mirrored, bool | None):
        raise TypeError("flip")
    return Sidecar(
        name=name,
        classes=None if row.get("classes") is None else _count(row["classes"]),
        names=tuple(str(name) for name in names),
        image_size=None if shape is None else (_count(shape[0]), _count(shape[1]), _count(shape[2])),
        mean=None if row.get("mean") is None else tuple(_finite(value) for value in row["mean"]),
        std=None if row.get("std") is None else tuple(_finite(value) for value in row["std"]),
        seconds=None if row.get("seconds") is None else _finite(row["seconds"]),
        projector=None if projector is None else _projector(projector),
        bits=None if network.get("bits") is None else str(network["bits"]),
        outputs=row.get("outputs", "logits"),
        mirrored=mirrored,
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or not 1 <= value <= 2**24:
        raise ValueError("a number of things")
    return int(value)


def _finite(value: Any) -> float:
    if not math.isfinite(float(value)):
        raise ValueError("a finite number")
    return float(value)


def _projector(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`dfkd.engine.sharing.widen`."""
    if not row.keys() <= {"features", "side", "bias", "relu"}:
        raise KeyError("projector")
    side = row.get("side")
    return {
        "features": _count(row["features"]),
        "side": None if side is None else (_count(side[0]), _count(side[1])),
        "bias": bool(row.get("bias", True)),
        "relu": bool(row.get("relu", True)),
    }


def _describe(content: object) -> str:
    if not isinstance(content, Mapping):
        return kind_in_words(content)
    return next((f"something else under {str(key)!r}" for key in content), "nothing in it")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    listing = ", ".join(names[:3])
    return listing if len(names) <= 3 else f"{listing} and {len(names) - 3} more"
