"""One file per paper. ``METHODS`` lists them all, explicitly; ``COMBINATIONS`` are made of other methods."""

from collections.abc import Mapping
from typing import Any

from dfkd.engine.core import Method
from dfkd.engine.exchange import Exchange
from dfkd.engine.recombine import Recombine
from dfkd.methods.cmi import CMI
from dfkd.methods.d3k import D3K
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
    "DFND",
    "KD3",
    "METHODS",
    "NAYER",
    "STTS",
    "NoiseInput",
    "SpaceshipNet",
    "VanillaKD",
]

METHODS: Mapping[str, type[Method[Any]]] = {
    "CMI": CMI,
    "D3K": D3K,
    "DFND": DFND,
    "KD3": KD3,
    "NAYER": NAYER,
    "NoiseInput": NoiseInput,
    "STTS": STTS,
    "SpaceshipNet": SpaceshipNet,
    "VanillaKD": VanillaKD,
}

COMBINATIONS: Mapping[str, type[Method[Any]]] = {"Exchange": Exchange, "Recombine": Recombine}
