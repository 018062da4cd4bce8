"""From plain modules to a task: both networks surveyed and wrapped, their stages matched, every input checked."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dfkd.data.readers import ImageSet, read_images
from dfkd.data.rows import Rows, open_rows
from dfkd.data.text import TextEmbedding, embed
from dfkd.engine.anatomy import Anatomy, survey
from dfkd.engine.core import Task
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.ops.pixels import as_bytes

__all__ = ["Real", "build_task", "labelled", "prepare"]

Real = ImageSet | tuple[Tensor, Tensor] | str | None


def build_task(
    teacher: nn.Module,
    student: nn.Module,
    *,
    image_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | int | None = None,
    text: TextEmbedding | Tensor | str = "auto",
    prompt: str = "P2",
    web: Rows | Tensor | str | Path | None = None,
    real: Real = None,
    runtime: Runtime | None = None,
    teacher_layers: Mapping[str, Any] | None = None,
    student_layers: Mapping[str, Any] | None = None,
) -> Task:
    """A :class:`~dfkd.engine.core.Task` from plain modules, for use with :func:`dfkd.engine.driver.run`.

    Takes what :func:`dfkd.distill` takes, checks it, moves both networks to the device, and freezes the teacher.
    """
    runtime = runtime or Runtime().launch()
    layers = (teacher_layers or {}, student_layers or {})
    return prepare(teacher, student, runtime, image_size, mean, std, classes, text, prompt, web, real, layers)[0]


def prepare(
    teacher: nn.Module,
    student: nn.Module,
    runtime: Runtime,
    image_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | int | None,
    text: TextEmbedding | Tensor | str | None,
    prompt: str,
    web: Rows | Tensor | str | Path | None,
    real: Real,
    layers: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> tuple[Task, tuple[Anatomy, Anatomy], dict[str, str]]:
    """Check the pair and build the task; also what the networks are and where the embeddings came from."""
    shape = _shape(image_size, mean)
    wanted = None if classes is None else classes if isinstance(classes, int) else len(classes)
    old = survey(teacher, shape, wanted, "teacher", **layers[0])
    new = survey(student, shape, old.classes, "student", **layers[1])
    old, new = _match_stages(old, new)
    k = old.classes
    names = () if classes is None or isinstance(classes, int) else tuple(classes)
    embedding = None if text is None else _embedding(text, names, k, prompt)
    probes = [
        Probe(
            runtime.place(net),
            mean=mean,
            std=std,
            head=facts.head,
            stages=facts.stages,
            precision=runtime.precision,
            channels_last=runtime.channels_last,
            joint=runtime.joint,
        ).to(runtime.device)
        for net, facts in ((teacher, old), (student, new))
    ]
    task = Task(
        probes[0].freeze(),
        probes[1],
        shape,
        k,
        runtime,
        names,
        text=None if embedding is None else embedding.vectors.to(runtime.device),
        web=None if web is None else web if isinstance(web, Rows) else open_rows(web, shape, _cache()),
    )
    training = labelled(real, task, "real")
    training = None if training is None else (training[0].to(runtime.device), training[1].to(runtime.device))
    return replace(task, real=training), (old, new), {} if embedding is None else embedding.source


def _match_stages(old: Anatomy, new: Anatomy) -> tuple[Anatomy, Anatomy]:
    """Keep, in order, the stages both networks have at the same size; the last map stays where the sizes agree.

    Where one of them has more stages of a size than the other, its deepest ones stay.
    """
    shared = Counter(side[1:] for side in old.sides) & Counter(side[1:] for side in new.sides)
    return _deepest(old, shared), _deepest(new, shared)


def _deepest(facts: Anatomy, wanted: Counter[tuple[int, int]]) -> Anatomy:
    """``facts`` with as many stages of every size as are wanted."""
    left, kept = Counter(wanted), []
    for name, side in reversed(list(zip(facts.stages, facts.sides, strict=True))):
        if left[side[1:]]:
            left[side[1:]] -= 1
            kept.append((name, side))
    return replace(facts, stages=tuple(name for name, _ in kept[::-1]), sides=tuple(side for _, side in kept[::-1]))


def _shape(image_size: Sequence[int], mean: Sequence[float]) -> tuple[int, int, int]:
    if len(image_size) != 3 or min(image_size) < 1:
        raise UserError(
            f"distill needs image_size as (channels, height, width), got {tuple(image_size)}; give all three"
        )
    if len(mean) != image_size[0]:
        raise UserError(
            f"distill needs one mean and std per channel, got {len(mean)} for {image_size[0]} channels; give as many"
        )
    return image_size[0], image_size[1], image_size[2]


def _embedding(text: TextEmbedding | Tensor | str, names: tuple[str, ...], k: int, prompt: str) -> TextEmbedding:
    if isinstance(text, TextEmbedding):
        embedding = text
    elif isinstance(text, Tensor):
        embedding = TextEmbedding(text.detach().float(), {"encoder": "given as a tensor"})
    else:
        embedding = embed(names or None, k, encoder=text, prompt=prompt)
    if embedding.vectors.shape[0] != k:
        raise UserError(
            f"distill needs one embedding for each of {k} classes, got {embedding.vectors.shape[0]}; give {k} rows"
        )
    return embedding


def labelled(given: Real, task: Task, role: str) -> tuple[Tensor, Tensor] | None:
    """Labelled images as uint8 and int64, checked against the task."""
    if given is None:
        return None
    if isinstance(given, str):
        split = "test" if role == "test" else "train"
        given = read_images(given, split, side=task.image_shape[1], channels=task.image_shape[0])
    images, labels = (given.images, given.labels) if isinstance(given, ImageSet) else given
    images = as_bytes(images) if images.is_floating_point() else images
    if tuple(images.shape[1:]) != task.image_shape:
        raise UserError(
            f"{role} images need the shape {task.image_shape} of the task, got {tuple(images.shape[1:])}; resize them"
        )
    if len(images) != len(labels) or not len(images):
        raise UserError(
            f"{role} images need one label each, got {len(images)} images and {len(labels)} labels; give as many"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= task.classes:
        raise UserError(
            f"{role} labels need to be 0 to {task.classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
            "use the teacher's label order"
        )
    return images, labels.long()


def _cache() -> Path:
    return Path(os.environ.get("DFKD_CACHE", Path.home() / ".cache" / "dfkd"))
