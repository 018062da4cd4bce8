"""One file per paper. ``METHODS`` lists them all, explicitly."""

from collections.abc import Mapping
from typing import Any

from dfkd.engine.core import Method
from dfkd.methods.nayer import NAYER
from dfkd.methods.noise import NoiseInput
from dfkd.methods.vanilla import VanillaKD

__all__ = ["METHODS", "NAYER", "NoiseInput", "VanillaKD"]

METHODS: Mapping[str, type[Method[Any]]] = {
    "NAYER": NAYER,
    "NoiseInput": NoiseInput,
    "VanillaKD": VanillaKD,
}
