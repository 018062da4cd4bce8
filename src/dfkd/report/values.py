"""Values of settings as text, and what a run was given beside its method, plan and networks."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from dfkd.engine.records import RunInfo
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import plain

__all__ = ["has_comparable_layers", "input_settings", "value_text"]

MOST_NAMES = 20  # class names that are listed; of more, their number and a fingerprint


def value_text(value: object) -> str:
    """A value as recipes write it: ``0.1``, ``true``, ``null``. Numbers that differ in 12 digits stay apart."""
    simple = plain(value)
    if isinstance(simple, str):
        return simple
    return f"{simple:.12g}" if isinstance(simple, float) else json.dumps(simple, ensure_ascii=False)


def input_settings(info: RunInfo) -> dict[str, object]:
    """Image shape, classes and their names, fingerprints of inputs, label text and planned hours, by dotted name."""
    parts = {
        "data": {"image_shape": list(info.image_shape), "classes": info.classes, "names": _names_in_short(info.names)},
        "inputs": info.inputs,
        "text": info.text,
        "stop": {} if info.fitted is None else {"hours": info.fitted.hours},
    }
    return dotted_settings({name: values for name, values in parts.items() if values})


def has_comparable_layers(infos: Iterable[RunInfo]) -> bool:
    """Do all runs hold the hashes of their layers, made by one version of torch? Another may print layers otherwise."""
    runs = list(infos)
    versions = {info.provenance.get("torch") for info in runs}
    return len(versions) == 1 and all("layers" in net for info in runs for net in (info.teacher, info.student))


def _names_in_short(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)}, {hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]}"
