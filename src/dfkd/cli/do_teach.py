"""`dfkd teach`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dfkd.cli.config import Teach
from dfkd.cli.names import check_name
from dfkd.cli.setup import load, seed_everything
from dfkd.cli.teach_progress import epoch_progress
from dfkd.data.classes import in_order
from dfkd.data.readers import ImageSet, read_images
from dfkd.datasets import DATASETS
from dfkd.engine.silent import Silent
from dfkd.errors import UserError
from dfkd.inputs import facts_of, runtime_of
from dfkd.ops.pixels import as_images
from dfkd.teacher import TeachResult, save_teacher, teach
from dfkd.weights import Sidecar

__all__ = ["run"]


def run(settings: Teach) -> int:
    """Train, measure once, save."""
    data, plan = settings.data, settings.plan
    if settings.network.name is None:
        raise UserError("teach needs a network, got no name; for example `dfkd teach resnet18 --data cifar10`")
    check_name(settings.network, "network")
    out = _free(Path(settings.out or f"teachers/{settings.network.name.replace(':', '-').replace('/', '-')}"))
    train, test = _read_images(settings)
    images = replace(
        data,
        image_size=data.image_size or _shape(train),
        classes=_classes(settings, train),
    )
    if data.preset is None and data.mean is None and data.std is None:
        images.mean, images.std = _statistics(train)
    facts = facts_of(images, Sidecar(), "teach")
    train = in_order(train, facts.names, facts.classes, "train")
    test = None if test is None else in_order(test, facts.names, facts.classes, "test")
    if data.preset and DATASETS[data.preset].upright:
        plan = replace(plan, flip=False)
    seed_everything(settings.runtime.seed, settings.runtime.threads)
    built = load(settings.network, facts, "network")
    with epoch_progress(plan.epochs, settings.quiet) as watch:
        result = teach(
            built.classifier.net,
            train.images,
            train.labels,
            plan,
            mean=facts.mean,
            std=facts.std,
            test=None if test is None else (test.images, test.labels),
            runtime=runtime_of(settings.runtime),
            watch=watch,
        )
    path = save_teacher(
        out,
        result,
        spec=built.classifier.spec,
        image_shape=facts.image_size,
        names=facts.names,
        classes=facts.classes,
        mean=facts.mean,
        std=facts.std,
        plan=plan,
        seed=settings.runtime.seed,
    )
    print(f"{_sentence(result)}\nweights {path}")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    _warn_of_silence(result.silent)
    return 0


def _warn_of_silence(layers: Sequence[Silent]) -> None:
    """A teacher with dead filters classifies well and teaches badly: its accuracy does not show it."""
    worst = max(layers, key=lambda layer: layer.silent / layer.units, default=None)
    if worst is not None and worst.silent >= worst.units / 2:
        print(
            f"warning: {worst.silent} of {worst.units} channels of {worst.layer!r} hardly ever fire; without "
            "training data a student learns less from such a teacher. Networks without BatchNorm want a lower "
            "--plan.lr, such as 0.01",
            file=sys.stderr,
        )


def _read_images(settings: Teach) -> tuple[ImageSet, ImageSet | None]:
    """Training and test images; the preset's own files where no source is given."""
    data = settings.data
    source = data.train or data.preset
    if source is None:
        raise UserError("teach needs training images, got none; give --data.train folder:DIR or --data cifar10")
    size = data.image_size
    side, channels = (size[1:], size[0]) if size else _preset_size(settings)
    train = read_images(source, "train", side=side, channels=channels)
    test = data.test or (data.preset if data.train is None else None)
    if test is None:
        return train, None
    channels, height, width = _shape(train)
    return train, read_images(test, "test", side=(height, width), channels=channels)


def _classes(settings: Teach, train: ImageSet) -> Sequence[str] | int | str:
    """Class names from the options, else from the training set."""
    classes = settings.data.classes
    if classes is None or classes == len(train.names):
        return list(train.names) or int(train.labels.max()) + 1
    return classes


def _preset_size(settings: Teach) -> tuple[tuple[int, int] | None, int | None]:
    preset = settings.data.preset
    return (DATASETS[preset].image_size[1:], DATASETS[preset].image_size[0]) if preset else (None, None)


def _shape(train: ImageSet) -> tuple[int, int, int]:
    _, c, h, w = train.images.shape
    return c, h, w


def _statistics(train: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and std per channel, over at most 20,000 images."""
    pixels = as_images(train.images[:20_000]).to(torch.float64)
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3))
    return [round(x, 4) for x in mean.tolist()], [max(round(x, 4), 1e-3) for x in std.tolist()]


def _free(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = f"{out} with files in it" if out.is_dir() else f"the file {out}"
        raise UserError(f"out needs a new or empty folder, got {what}; choose another with --out")
    return out


def _sentence(result: TeachResult) -> str:
    last = result.epochs[-1]
    if result.evaluation is None:
        return f"{last.accuracy:.2%} of the training images right after {last.epochs} epochs, {result.seconds:.0f} s"
    n = result.evaluation.images
    accuracy, seconds = f"{result.evaluation.accuracy:.2%}", f"{result.seconds:.0f} s"
    return f"{accuracy} of {n:,} test images right after {last.epochs} epochs, {seconds}"
