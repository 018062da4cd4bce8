"""Labels of an image set in the order of a teacher's classes: by name where both have names."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from dfkd.data.readers import ImageSet
from dfkd.data.text import clean, wordnet
from dfkd.errors import UserError
from dfkd.types import Labels

__all__ = ["check_label_range", "in_order"]


def in_order(images: ImageSet, names: Sequence[str], classes: int, role: str) -> ImageSet:
    """``images`` with its labels in the order of ``names``.

    Folders get the label of the class of their name, in whatever order they are and if only some are there; a number
    is the name of a class that has no other. Case does not count, and space, "_" and "-" are one. Folders of which
    none has the name of a class keep their alphabetical order, with a warning. A set whose labels have an order of
    their own (a published one, an array) keeps it unless every name is that of a class.

    Args:
        images: the labelled set.
        names: class names in label order; none where they are not known.
        classes: how many.
        role: for messages.

    Raises:
        UserError: folders of which only some have the name of a class, folders without such names whose number is not
            that of the classes, or labels beyond the classes.
    """
    if images.names:
        check_label_range(images.labels, len(images.names), role)
    wanted_names = tuple(names) or tuple(str(label) for label in range(classes))
    places = _places(images.names, wanted_names)
    labels = set(images.labels.unique().tolist())
    unknown_folders = [name for label, name in enumerate(images.names) if places[label] is None and label in labels]
    if images.names and not unknown_folders:
        table = torch.tensor([-1 if place is None else place for place in places])
        images = replace(images, labels=table[images.labels])
    elif images.folders:
        _check_folders(images, unknown_folders, tuple(names), classes, role)
    check_label_range(images.labels, classes, role)
    return replace(images, names=tuple(names), folders=False)


def check_label_range(labels: Labels, classes: int, role: str) -> None:
    """Every label is that of a class.

    Raises:
        UserError: one is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{role} labels need to be 0 to {classes - 1}, got {low} to {high}; "
            "use the teacher's label order and number of classes"
        )


def _places(names: Sequence[str], expected: Sequence[str]) -> list[int | None]:
    """For each given name the place of the known one that it means, or None; an exact match goes first."""
    exact = {name: place for place, name in enumerate(expected)}
    place_by_plain_name = {_plain(name): place for place, name in enumerate(expected)}
    expected_counts, counts = Counter(map(_plain, expected)), Counter(map(_plain, names))
    place_by_unique_name = {
        key: place for key, place in place_by_plain_name.items() if expected_counts[key] == 1 and counts[key] == 1
    }
    return [exact.get(name, place_by_unique_name.get(_plain(name))) for name in names]


def _plain(name: str) -> str:
    """What of a name counts; zeros before a number do not, and a WordNet id stands for its class."""
    text = clean(wordnet().get(name, name)).casefold()
    return str(int(text)) if text.isdecimal() else text


def _check_folders(
    images: ImageSet, unknown_folders: list[str], names: tuple[str, ...], classes: int, role: str
) -> None:
    """Folders whose names do not tell: refused where their order cannot be meant either."""
    remedy = "--data.classes (classes=) with the folders' names in label order"
    if len(unknown_folders) < len(set(images.labels.tolist())):
        raise UserError(
            f"{role} folders need the names of the teacher's classes, got {_few(unknown_folders)} beside names that it "
            f"has; rename them, or give {remedy}"
        )
    if len(images.names) != classes:
        raise UserError(
            f"{role} folders need names that tell which of the teacher's {classes} classes they are, got "
            f"{len(images.names)} ({_few(images.names)}); give {remedy}"
        )
    against = f"the teacher's are {_few(names)}" if names else "the teacher's names are not known"
    warnings.warn(
        f"no {role} folder has the name of a class ({_few(images.names)}; {against}): in alphabetical order they count "
        f"as classes 0 to {classes - 1}; to tell otherwise, give {remedy}",
        stacklevel=2,
    )


def _few(names: Sequence[str]) -> str:
    listing = ", ".join(names[:3])
    return listing if len(names) <= 3 else f"{listing} and {len(names) - 3} more"
