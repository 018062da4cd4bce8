"""Limits of the hyper-parameters that mean the same in every method, by their names."""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from dfkd.errors import UserError

__all__ = ["check_shared"]


def _positive(value: float) -> bool:
    return 0 < value < math.inf


LIMITS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("above 0 and finite", _positive),
    "temperature": ("above 0 and finite", _positive),
    "momentum": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "pad": ("of at least 0", lambda value: value >= 0),
}


def check_shared(method: Any) -> None:
    """Refuse a rate, temperature, momentum, padding or Adam's betas (``tuple[float, float]``) that cannot be.

    Raises:
        UserError: naming the hyper-parameter.
    """
    who = type(method).__name__
    for name, (limit, holds) in LIMITS.items():
        value = getattr(method, name, None)
        if isinstance(value, int | float) and not holds(value):
            raise UserError(f"{who} needs {name} {limit}, got {value}; change {name}")
    if get_type_hints(type(method)).get("betas") == tuple[float, float]:
        betas = method.betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(
                f"{who} needs two betas, each at least 0 and below 1, got {betas}; for example (0.9, 0.999)"
            )
