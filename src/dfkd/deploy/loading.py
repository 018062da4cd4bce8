"""A trained network back from its folder: as a plain module that classifies pictures."""

import json
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.deploy.hub import fetch, is_repository
from dfkd.deploy.predictor import Predictor, Program
from dfkd.engine.records import RunInfo
from dfkd.engine.sharing import widen
from dfkd.errors import UserError
from dfkd.nets.adapters import own_code
from dfkd.nets.quantized import frozen_copy
from dfkd.nets.zoo import build
from dfkd.report.files import RUN_FILE, read_run
from dfkd.weights import Sidecar, find_weights, load_weights, read_sidecar

__all__ = ["Opened", "load", "open_network"]

PROGRAM = "student.pt2"
_HOW = "in Python network=..., in the shell --network ..."


@dataclass(frozen=True)
class Opened:
    """A trained network and what is known of it.

    Attributes:
        predictor: in eval mode, on the CPU.
        folder: where it lies.
        sidecar: what stands beside the weights.
        info: of the run it comes from, or None.
        name: of the network.
        rebuilt: the network was built by name; otherwise it is the exported program, which normalises itself.
    """

    predictor: Predictor
    folder: Path
    sidecar: Sidecar
    info: RunInfo | None
    name: str
    rebuilt: bool


def load(source: str | Path, network: str | None = None) -> Predictor:
    """The student of a run as a plain module in eval mode, on the CPU: call it, or its ``predict``.

    Args:
        source: run folder, folder of `dfkd teach`, weights file with a description beside it, or ``owner/name`` of a
            student that `dfkd push` published.
        network: ``package.module:callable`` or another name, where the description does not name the network, or names
            code: what only a file names is not run. "student.pt2" takes the exported program, which is code, too.

    Raises:
        UserError: nothing there, or nothing from which the network can be built.
    """
    return open_network(source, network).predictor


def open_network(source: str | Path, network: str | None = None, who: str = "load") -> Opened:
    """What :func:`load` does, with what is known of the network; ``who`` asks for it, in messages.

    Raises:
        UserError: nothing there, or nothing from which the network can be built.
    """
    place = Path(source).expanduser()
    if not place.exists() and is_repository(str(source)) and not place.parent.is_dir():
        place = fetch(str(source))
    if not place.exists():
        raise UserError(f"{who} needs a run folder or a weights file, got {source}, which is not there; check the path")
    folder = place if place.is_dir() else place.parent
    if (folder / RUN_FILE).is_file() and place.is_dir() and not (folder / "student.safetensors").is_file():
        raise UserError(
            f"{who} needs a finished run, got {folder} without a student; go on with `dfkd distill --resume "
            f"{shlex.quote(str(folder))}`"
        )
    weights = find_weights(place, who)
    sidecar = read_sidecar(weights)
    for what, value in (("image_shape", sidecar.image_size), ("mean", sidecar.mean), ("std", sidecar.std)):
        if value is None:
            raise UserError(
                f"{who} needs {what} in the description beside the weights, got none in "
                f"{weights.with_suffix('.json')}; give the folder of a run or of `dfkd teach`"
            )
    info = read_run(folder).info if (folder / RUN_FILE).is_file() else None
    net: nn.Module
    normalisation: dict[str, Any] = {}
    if network == PROGRAM:
        net = _program(folder / PROGRAM, who)
    else:
        net, normalisation = _rebuilt(weights, sidecar, network, who), {"mean": sidecar.mean, "std": sidecar.std}
    names = sidecar.names or tuple(str(k) for k in range(sidecar.classes or 0))
    size = sidecar.image_size or (1, 1, 1)
    predictor = Predictor(net, size, names, outputs=sidecar.outputs, **normalisation).requires_grad_(False)
    name = network or sidecar.name or _class_name(weights.with_suffix(".json")) or type(net).__name__
    return Opened(predictor, folder, sidecar, info, name, bool(normalisation))


def _rebuilt(weights: Path, sidecar: Sidecar, network: str | None, who: str) -> nn.Module:
    name, size = network or sidecar.name, sidecar.image_size or (1, 1, 1)
    if name is None or sidecar.classes is None:
        raise UserError(
            f"{who} needs the name of the network, got {weights} without; name what builds it as "
            f"package.module:callable, or {PROGRAM} for the program beside it where you trust that ({_HOW})"
        )
    if network is None and own_code(name):
        raise UserError(
            f"{who} needs code to be named by you, got {name} only from the description beside {weights}; name it if "
            f"you trust it ({_HOW})"
        )
    net = build(name, sidecar.classes, size[0]).net
    if sidecar.projector is not None:
        widen(net, size, **sidecar.projector)
    if sidecar.bits is not None:
        net = frozen_copy(net, sidecar.bits)
    load_weights(net, weights, who)
    return net


def _program(path: Path, who: str) -> Program:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Program(torch.export.load(path).module())
    except Exception as error:  # a damaged archive makes the reader raise almost anything
        raise UserError(
            f"{who} needs a whole exported program, got {path} ({type(error).__name__}); name what builds the network "
            "as package.module:callable"
        ) from error


def _class_name(description: Path) -> str | None:
    """The class of a network from Python, whose description names no way to build it."""
    try:
        network: Any = json.loads(description.read_text("utf-8")).get("network")
    except (OSError, ValueError):
        return None
    name = network.get("class") if isinstance(network, Mapping) else None
    return None if name is None else str(name).rpartition(".")[2]
