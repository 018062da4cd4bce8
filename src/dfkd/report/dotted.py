"""Nested settings under dotted names, the way the command line takes them."""

from collections.abc import Mapping
from typing import Any

__all__ = ["dotted_settings"]


def dotted_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"plan": {"lr": 0.1}}`` as ``{"plan.lr": 0.1}``, in their order; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= dotted_settings(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
