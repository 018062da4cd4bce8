"""The one place that imports torchvision.

A torchvision built for another torch (the wheel for CUDA beside a CPU torch, say) cannot load its compiled
operators and then stops while it is being imported, at the first one it wants to describe. Nothing here needs
those operators, so their schemas are declared in its stead. timm and transformers import torchvision
themselves and must come after ``mend_torchvision``.
"""

import functools
import importlib
import sys
from types import ModuleType

import torch

from dfkd.errors import UserError
from dfkd.extras import install_extra

NAMESPACE = "torchvision"
SYMPTOM = "torchvision::nms"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache  # the declarations live as long as this object, and a process can make them only once
def _declare() -> torch.library.Library:
    """Declare the two operators that torchvision's import asks for; they have no implementation."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def _forget() -> None:
    """Drop the half-imported modules, so that the next import starts afresh."""
    for name in [name for name in sys.modules if name.partition(".")[0] == NAMESPACE]:
        del sys.modules[name]


def _import() -> ModuleType:
    """Import torchvision; on the known failure declare the schemas and import again."""
    try:
        return importlib.import_module(NAMESPACE)
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            raise
    _forget()
    _declare()
    return importlib.import_module(NAMESPACE)


def import_torchvision() -> ModuleType:
    """Import torchvision, also one whose compiled operators do not load (a sound one is left as it is).

    Raises:
        UserError: torchvision is not installed.
    """
    try:
        return _import()
    except ModuleNotFoundError as error:
        if error.name != NAMESPACE:
            raise
    raise UserError(
        f"torchvision: needs the package torchvision, got none installed; run `{install_extra('torchvision')}`"
    )


def mend_torchvision() -> None:
    """Make torchvision importable for packages that import it; do nothing where it is not installed."""
    try:
        _import()
    except ModuleNotFoundError as error:
        if error.name != NAMESPACE:
            raise
