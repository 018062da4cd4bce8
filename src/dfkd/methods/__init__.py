"""One file per paper. ``METHODS`` lists them all, explicitly."""

from collections.abc import Mapping
from typing import Any

from dfkd.engine.core import Method
from dfkd.methods.kd3 import KD3
from dfkd.methods.nayer import NAYER
from dfkd.methods.noise import NoiseInput
from dfkd.methods.stts import STTS
from dfkd.methods.vanilla import VanillaKD

__all__ = ["KD3", "METHODS", "NAYER", "STTS", "NoiseInput", "VanillaKD"]

METHODS: Mapping[str, type[Method[Any]]] = {
    "KD3": KD3,
    "NAYER": NAYER,
    "NoiseInput": NoiseInput,
    "STTS": STTS,
    "VanillaKD": VanillaKD,
}
