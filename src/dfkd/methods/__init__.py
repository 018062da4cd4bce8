"""One file per paper. ``METHODS`` lists them all, explicitly; ``COMBINATIONS`` are made of other methods.

Other packages offer theirs by an entry point of the group ``dfkd.methods``: :func:`offered_methods`.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dfkd.engine.core import Method
from dfkd.engine.exchange import Exchange
from dfkd.engine.recombine import Recombine
from dfkd.errors import UserError
from dfkd.methods.cmi import CMI
from dfkd.methods.d3k import D3K
from dfkd.methods.dafl import DAFL
from dfkd.methods.dfnd import DFND
from dfkd.methods.kd3 import KD3
from dfkd.methods.nayer import NAYER
from dfkd.methods.noise import NoiseInput
from dfkd.methods.spaceship import SpaceshipNet
from dfkd.methods.stts import STTS
from dfkd.methods.vanilla import VanillaKD

__all__ = [
    "CMI",
    "COMBINATIONS",
    "D3K",
    "DAFL",
    "DFND",
    "KD3",
    "METHODS",
    "NAYER",
    "STTS",
    "NoiseInput",
    "SpaceshipNet",
    "VanillaKD",
    "load_offered",
    "offered_methods",
]

METHODS: Mapping[str, type[Method[Any]]] = {
    "CMI": CMI,
    "D3K": D3K,
    "DAFL": DAFL,
    "DFND": DFND,
    "KD3": KD3,
    "NAYER": NAYER,
    "NoiseInput": NoiseInput,
    "STTS": STTS,
    "SpaceshipNet": SpaceshipNet,
    "VanillaKD": VanillaKD,
}

COMBINATIONS: Mapping[str, type[Method[Any]]] = {"Exchange": Exchange, "Recombine": Recombine}


def offered_methods() -> dict[str, EntryPoint]:
    """Methods of other installed packages by name, not loaded; a name of this package's own stays its own."""
    entries = entry_points(group="dfkd.methods")
    return {point.name: point for point in entries if point.name not in {**METHODS, **COMBINATIONS}}


def load_offered(point: EntryPoint) -> type[Method[Any]]:
    """The class behind an entry point.

    Raises:
        UserError: it cannot be imported, and why, or is no method.
    """
    package = point.dist.name if point.dist is not None else "another package"
    try:
        kind = point.load()
    except Exception as error:  # importing somebody's package may fail in any way
        raise UserError(
            f"method {point.name} needs {point.value} of {package}, got {type(error).__name__}: {error}; update or "
            "remove that package"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(
            f"method {point.name} needs a subclass of dfkd.Method, got {point.value} of {package}; update that package"
        )
    return kind
