"""From plain modules to a task: both networks surveyed and wrapped, their stages matched, every input checked."""

import operator
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dfkd.data.classes import in_order
from dfkd.data.readers import ImageSet, Labelled, read_images
from dfkd.data.rows import Converted, Rows, Unlabelled, open_rows
from dfkd.data.text import TextEmbedding, embed
from dfkd.defaults import DEFAULT_METHOD
from dfkd.engine.anatomy import Anatomy, survey
from dfkd.engine.core import Method, Task
from dfkd.engine.runtime import Runtime
from dfkd.engine.sharing import widening_of
from dfkd.engine.verify import Verified, verify
from dfkd.errors import UserError
from dfkd.inputs import as_classifier, facts_of, with_fields
from dfkd.nets.zoo import Classifier
from dfkd.ops.pixels import as_bytes
from dfkd.settings import Images, Text

__all__ = [
    "Prepared",
    "Vectors",
    "as_tensor",
    "build_task",
    "check_labelled",
    "check_labels",
    "embedding_of",
    "fit_student",
    "labelled_tensors",
    "method_or_default",
    "prepare",
]

TOLERANCE = 1e-3  # of floats in [0, 1]: what resizing may leave

Vectors = Tensor | npt.NDArray[Any]
"""Class embeddings as callers give them: numbers (k, d), one row for each class."""


class Prepared(NamedTuple):
    """A checked task; both networks as the task reads them; where the class embeddings came from; all their stages.

    ``surveys`` hold every stage that was found, ``anatomies`` those that both networks have at the same size.
    """

    task: Task
    anatomies: tuple[Anatomy, Anatomy]
    text_source: dict[str, str]
    surveys: tuple[Anatomy, Anatomy]


def build_task(
    teacher: nn.Module | Classifier,
    student: nn.Module | Classifier,
    *,
    data: Images | None = None,
    text: Text | TextEmbedding | Vectors | str | None = "auto",
    runtime: Runtime | None = None,
    watch: Converted | None = None,
    **values: Any,
) -> Task:
    """A :class:`~dfkd.engine.core.Task` from plain modules, for use with :func:`dfkd.engine.driver.run`.

    Takes what :func:`dfkd.distill` takes, checks it, moves both networks to the device, and freezes the teacher.
    Fields of ``data`` may be given by their own names. ``watch`` hears how many web images are converted, of how many
    (:func:`~dfkd.data.rows.open_rows`).
    """
    sections = with_fields("build_task", {"data": data}, values)
    pair = as_classifier(teacher), as_classifier(student)
    return prepare(*pair, runtime or Runtime().launch(), sections["data"], text, watch).task


def prepare(
    teacher: Classifier,
    student: Classifier,
    runtime: Runtime,
    data: Images,
    text: Text | TextEmbedding | Vectors | str | None,
    watch: Converted | None = None,
    method: Method[Any] | None = None,
) -> Prepared:
    """Check the pair and its data, and build the task: the one place where tasks are made.

    ``watch`` hears how far the conversion of web images is; ``text=None`` leaves the embeddings out; ``method`` is
    the one that the student has to fit.
    """
    facts = facts_of(data, who="distill", spared=("classes",))
    shape = _shape(facts.image_size)
    mean, std = _per_channel("mean", facts.mean, shape[0]), _per_channel("std", facts.std, shape[0])
    old = survey(teacher.net, shape, facts.classes or None, "teacher", **teacher.layers)
    _check_apart(teacher.net, student.net)
    student = student if method is None else fit_student(method, teacher, student, shape)
    new = survey(student.net, shape, old.classes, "student", **student.layers)
    surveys, (old, new) = (old, new), _match_stages(old, new)
    k, names = old.classes, facts.names
    embedding = None if text is None else embedding_of(text, names, k)
    # Whatever can be refused comes before the probes, which hook the networks.
    pool = _web_rows(data.web, shape, watch)
    if pool is not None and pool.skipped and runtime.rank == 0:
        total = pool.skipped + len(pool)
        warnings.warn(f"{pool.skipped:,} of {total:,} web images cannot be read and are left out", stacklevel=3)
    training = None if data.real is None else labelled_tensors(data.real, shape, names, k, "real")
    probes: list[Verified] = []
    with ExitStack() as stack:
        for role, net, anatomy in (("teacher", teacher.net, old), ("student", student.net, new)):
            network = verify(
                net,
                runtime,
                image_shape=shape,
                mean=mean,
                std=std,
                role=role,
                trains=role == "student",
                head=anatomy.head,
                stages=anatomy.stages,
                norms=anatomy.norm_names,
                outputs=anatomy.outputs,
            )
            stack.callback(network.probe.release)
            probes.append(network)
        stack.pop_all()  # both are sound: their hooks stay
    if not all(network.compiles for network in probes):
        runtime = runtime.without_compiler()
    old, new = (replace(a, notes=(*a.notes, *network.notes)) for a, network in zip((old, new), probes, strict=True))
    task = Task(
        probes[0].probe.freeze(),
        probes[1].probe,
        shape,
        k,
        runtime,
        names,
        text=None if embedding is None else embedding.vectors.to(runtime.device),
        web=pool,
        real=None if training is None else (training[0].to(runtime.device), training[1].to(runtime.device)),
    )
    return Prepared(task, (old, new), {} if embedding is None else embedding.source, surveys)


def _web_rows(web: Unlabelled | None, shape: tuple[int, int, int], watch: Converted | None) -> Rows | None:
    """The unlabelled images as rows of the task's shape."""
    if web is None or not isinstance(web, Rows):
        return None if web is None else open_rows(web, shape, _cache(), watch)
    if web.shape != shape:
        raise UserError(f"web images need the shape {shape} of the task, got {web.shape}; resize them")
    return web


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a student that shares layers with its teacher, which would be trained with it."""
    tensors = {id(t) for t in (*teacher.parameters(), *teacher.buffers())}
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        if id(tensor) in tensors:
            raise UserError(
                f"student needs layers of its own, got {name}, which the teacher uses too; give a copy.deepcopy"
            )


def fit_student(
    method: Method[Any], teacher: Classifier, student: Classifier, image_size: tuple[int, int, int]
) -> Classifier:
    """The student as ``method`` can train it, changed in place; of one that was widened the layers are looked for anew.

    Raises:
        UserError: a pair that cannot be made to fit.
    """
    before = widening_of(student.net)
    net = method.fit(teacher.net, student.net, image_size)
    unchanged = widening_of(net) == before
    return replace(student, net=net) if unchanged else Classifier(net, spec=student.spec, name=student.name)


def _match_stages(old: Anatomy, new: Anatomy) -> tuple[Anatomy, Anatomy]:
    """Keep, in order, the stages both networks have at the same size; the last map stays where the sizes agree.

    Where one of them has more stages of a size than the other, its deepest ones stay.
    """
    shared = Counter(side[1:] for side in old.sides) & Counter(side[1:] for side in new.sides)
    return _deepest(old, shared), _deepest(new, shared)


def _deepest(facts: Anatomy, targets: Counter[tuple[int, int]]) -> Anatomy:
    """``facts`` with as many stages of every size as are wanted."""
    remaining, layers = Counter(targets), []
    for name, side in reversed(list(zip(facts.stages, facts.sides, strict=True))):
        if remaining[side[1:]]:
            remaining[side[1:]] -= 1
            layers.append((name, side))
    return replace(facts, stages=tuple(name for name, _ in layers[::-1]), sides=tuple(side for _, side in layers[::-1]))


def method_or_default(method: Method[Any] | None, default: Method[Any]) -> Method[Any]:
    """The method, or the default where there is none.

    Raises:
        UserError: something else, such as the class.
    """
    if method is None:
        return default
    if not isinstance(method, Method):
        value = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise UserError(
            f"distill needs a method with its settings, got {value}; give an instance, such as dfkd.{DEFAULT_METHOD}()"
        )
    return method


def _shape(image_size: Any) -> tuple[int, int, int]:
    try:
        size = tuple(operator.index(side) for side in image_size)
    except TypeError:
        size = ()
    if len(size) != 3 or min(size) < 1:
        sizes = tuple(image_size) if isinstance(image_size, Sequence) else image_size
        raise UserError(f"distill needs image_size as (channels, height, width), got {sizes}; give all three")
    return size


def _per_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """One number per channel."""
    try:
        numbers = tuple(float(number) for number in values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"distill needs {name} as a list with one number per channel, got {values!r}; give {channels} in a list"
        ) from error
    if len(numbers) != channels:
        raise UserError(
            f"distill needs one mean and std per channel, got {len(numbers)} for {channels} channels; give as many"
        )
    return numbers


def embedding_of(text: Text | TextEmbedding | Vectors | str, names: tuple[str, ...], k: int) -> TextEmbedding:
    """One vector (k, d) for each class: as given, or as an encoder makes them.

    Raises:
        UserError: vectors that are not finite numbers, one row for each class.
    """
    if isinstance(text, TextEmbedding):
        embedding = text
    elif isinstance(text, Tensor | np.ndarray):
        vectors = as_tensor(text, "distill", "text")
        embedding = TextEmbedding(vectors.detach().float(), {"encoder": "given as a tensor"})
    else:
        source = Text(text) if isinstance(text, str) else text  # type: ignore[arg-type]
        file = None if source.file is None else Path(source.file).expanduser()
        embedding = embed(names or None, k, source.encoder, source.prompt, file)
    _check_vectors(embedding.vectors, k)
    return embedding


def _check_vectors(vectors: Tensor, k: int) -> None:
    if vectors.dim() != 2 or vectors.shape[1] == 0:
        raise UserError(f"distill needs class embeddings ({k}, d), got shape {tuple(vectors.shape)}; give {k} rows")
    if vectors.shape[0] != k:
        raise UserError(f"distill needs one embedding for each of {k} classes, got {vectors.shape[0]}; give {k} rows")
    if not bool(torch.isfinite(vectors).all()):
        raise UserError("distill needs finite numbers as class embeddings, got NaN or infinity; make them anew")


def check_labelled(dataset: Labelled | None, task: Task, role: str) -> tuple[Tensor, Tensor] | None:
    """Labelled images as uint8 and int64, checked against the task, labels in the order of its classes.

    Raises:
        UserError: images or labels of another kind, shape or range.
    """
    return None if dataset is None else labelled_tensors(dataset, task.image_shape, task.names, task.classes, role)


def labelled_tensors(
    dataset: Labelled, shape: tuple[int, int, int], names: tuple[str, ...], classes: int, role: str
) -> tuple[Tensor, Tensor]:
    """Labelled images as uint8 (n, c, h, w) of this shape and int64 (n,), labels in the order of the class names.

    Raises:
        UserError: images or labels of another kind, shape or range.
    """
    if isinstance(dataset, str | Path):
        split = "test" if role == "test" else "train"
        dataset = read_images(dataset, split, side=shape[1:], channels=shape[0])
    image_set = dataset if isinstance(dataset, ImageSet) else ImageSet(*_pair(dataset, role), (), role)
    images, labels = as_tensor(image_set.images, role, "images"), as_tensor(image_set.labels, role, "labels")
    if tuple(images.shape[1:]) != shape:
        raise UserError(f"{role} images need the shape {shape} of the task, got {tuple(images.shape[1:])}; resize them")
    check_labels(labels, len(images), role)
    ordered = in_order(replace(image_set, images=_pixels(images, role), labels=labels.long()), names, classes, role)
    return ordered.images, ordered.labels


def check_labels(labels: Tensor, images: int, role: str) -> None:
    """Refuse what is not one class index for each of so many images.

    Raises:
        UserError: labels of another type or shape, of another number, or none at all.
    """
    if labels.dim() != 1 or labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"{role} labels need to be one integer for each image, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; give class indices"
        )
    if images != len(labels) or not images:
        raise UserError(
            f"{role} images need one label each, got {images} images and {len(labels)} labels; give as many"
        )


def _pair(dataset: Any, role: str) -> tuple[Any, Any]:
    if not isinstance(dataset, tuple | list) or len(dataset) != 2:
        raise UserError(
            f"{role} needs images with labels, got {type(dataset).__name__}; give (images, labels), an ImageSet, or a "
            "source that read_images knows"
        )
    return dataset[0], dataset[1]


def as_tensor(values: Any, role: str, name: str) -> Tensor:
    """A tensor as it is, an array as a tensor.

    Raises:
        UserError: what no tensor can be made of; ``role`` needs it as its ``name``.
    """
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.array(values, order="C"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{role} needs {name} as a tensor or an array of numbers, got {type(values).__name__}; convert it"
        ) from error


def _pixels(images: Tensor, role: str) -> Tensor:
    """As uint8. What lies outside [0, 1] by more than rounding is in another scale, or normalised."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(
            f"{role} images need to be uint8, or floats in [0, 1], got {images.dtype}; convert them to torch.uint8"
        )
    low, high = (float(end) for end in images.aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise UserError(
            f"{role} images need to be in [0, 1] as floats, got {low:.3g} to {high:.3g}; give pixels that are not "
            "normalised, or uint8"
        )
    return as_bytes(images)


def _cache() -> Path:
    folder = os.environ.get("DFKD_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "dfkd"
