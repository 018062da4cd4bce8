"""What images a student learnt from: made from its teacher, unlabelled ones from elsewhere, or real training images."""

from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.engine.records import RunInfo

__all__ = ["REAL", "SYNTHETIC", "WEB", "ImageKind", "image_kind", "subject_of"]


@dataclass(frozen=True)
class ImageKind:
    """What pages call images of one kind, and a distillation with them."""

    noun: str
    distillation: str


SYNTHETIC = ImageKind("synthetic images", "distillation without training data")
WEB = ImageKind("web images", "distillation with unlabelled images from elsewhere")
REAL = ImageKind("real training images", "distillation with training images")


def image_kind(info: RunInfo) -> ImageKind:
    """The kind of images that the student of a run learnt from.

    ``info.inputs`` has an entry for whatever the method needs and was given (``dfkd.engine.fingerprint.inputs_of``).
    """
    if "real images" in info.inputs:
        return REAL
    return WEB if "web images" in info.inputs else SYNTHETIC


def subject_of(infos: Sequence[RunInfo]) -> str:
    """What runs have in common: ``distillation without training data``, or merely that they distil."""
    kinds = {image_kind(info) for info in infos}
    return kinds.pop().distillation if len(kinds) == 1 else "distillation"
