"""Read weights that others wrote, and what is told beside them. No file can run code."""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import UserError

__all__ = ["Sidecar", "find_weights", "load_weights", "read_sidecar", "read_weights"]

WRAPPERS = ("state_dict", "model", "net")
NAMES = ("weights.safetensors", "student.safetensors")


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


def find_weights(path: Path, role: str = "network") -> Path:
    """``path`` itself, or the weights inside it where it is a folder of `dfkd teach` or of a finished run.

    Raises:
        UserError: nothing there.
    """
    if path.is_dir():
        for name in NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{role} needs {' or '.join(NAMES)} in {path}, got a folder without; give the weights file")
    if not path.is_file():
        raise UserError(f"{role} needs a weights file, got {path}, which is not there; check the path")
    return path


def read_weights(path: Path, role: str = "network") -> dict[str, Tensor]:
    """The state dict in ``path``: .safetensors, or .pt/.pth opened without running anything it holds.

    A dict under "state_dict", "model" or "net" is found; the prefix "module." of wrapped networks is dropped.

    Raises:
        UserError: a file that is truncated, wants to run code, or holds no state dict.
    """
    path = find_weights(path, role)
    held = _safetensors(path, role) if path.suffix == ".safetensors" else _torch(path, role)
    for key in WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not held or not all(isinstance(t, Tensor) for t in held.values()):
        raise UserError(
            f"{role} needs a state dict (names to tensors), got {path} with {_describe(held)}; save net.state_dict()"
        )
    wrapped = all(str(name).startswith("module.") for name in held)
    return {str(name).removeprefix("module.") if wrapped else str(name): tensor for name, tensor in held.items()}


def load_weights(net: nn.Module, path: Path, role: str = "network") -> None:
    """Load ``path`` into ``net``, every name and shape checked before anything is changed.

    Counters of BatchNorm layers (``num_batches_tracked``) may be missing: old files lack them.

    Raises:
        UserError: what :func:`read_weights` refuses, or weights of another network; the first names are given.
    """
    given, own = read_weights(path, role), net.state_dict()
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    extra = [name for name in given if name not in own]
    if missing or extra:
        told = [f"without {_few(missing)}"] if missing else []
        told += [f"with the unknown {_few(extra)}"] if extra else []
        raise UserError(
            f"{role} needs the weights of {type(net).__name__}, got {path} {' and '.join(told)}; "
            "name the network these weights belong to"
        )
    wrong = [name for name in given if given[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{role} needs {name} of shape {tuple(own[name].shape)}, got {tuple(given[name].shape)} in {path}"
            f"{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}; check network, classes and channels"
        )
    net.load_state_dict(given, strict=False)


def read_sidecar(path: Path) -> Sidecar:
    """What stands in the .json beside the weights, as `dfkd teach` and finished runs write it; empty without one.

    Raises:
        UserError: the file is there but damaged.
    """
    file = path.with_suffix(".json")
    if not file.is_file():
        return Sidecar()
    try:
        row = json.loads(file.read_text("utf-8"))
        network, shape = row.get("network") or {}, row.get("image_shape")
        return Sidecar(
            name=network.get("name"),
            classes=None if row.get("classes") is None else int(row["classes"]),
            names=tuple(str(name) for name in row.get("names") or ()),
            image_size=None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2])),
            mean=None if row.get("mean") is None else tuple(float(value) for value in row["mean"]),
            std=None if row.get("std") is None else tuple(float(value) for value in row["std"]),
            seconds=None if row.get("seconds") is None else float(row["seconds"]),
            projector=network.get("projector"),
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path.name} needs a sound description beside it, got {file} ({type(error).__name__}); repair or remove it"
        ) from error


def _safetensors(path: Path, role: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{role} needs a whole .safetensors file, got {path} ({error}); fetch it again") from error


def _torch(path: Path, role: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role} needs a file of tensors only, got {path}, which is no checkpoint or asks to run code; "
            "save net.state_dict() with torch.save or safetensors"
        ) from error
    except Exception as error:  # damaged files make the reader raise almost anything
        raise UserError(
            f"{role} needs a whole checkpoint, got {path} ({type(error).__name__}: it is truncated or no checkpoint); "
            "fetch it again"
        ) from error


def _describe(held: object) -> str:
    if not isinstance(held, Mapping):
        return f"a {type(held).__name__}"
    other = next((key for key, value in held.items() if not isinstance(value, Tensor)), None)
    return "nothing in it" if other is None else f"something else under {other!r}"


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
