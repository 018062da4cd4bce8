"""A student as files for deployment, each compared with PyTorch on images of its run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfkd.data.readers import Labelled
from dfkd.deploy.folders import EXPORT_FILE, FEWEST, check_replaceable, images_for, replacing
from dfkd.deploy.int8 import write_int8
from dfkd.deploy.latency import time_in_turns
from dfkd.deploy.loading import Opened, open_network
from dfkd.deploy.predictor import LogitsOf, Predictor
from dfkd.deploy.programs import check_onnx, metadata_of, session, write_onnx, write_program
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.identity import network_bytes, provenance
from dfkd.inputs import output_folder
from dfkd.ops.pixels import as_images
from dfkd.prepare import labelled_tensors
from dfkd.report.files import plain, write_whole
from dfkd.types import Bytes, Images, Labels

__all__ = ["EXPORT_FILE", "EXPORT_FOLDER", "Artefact", "Exported", "Format", "Normalisation", "export"]

EXPORT_FOLDER = "export"
BATCHES = (1, 32)  # images a call, where latency is measured

Format = Literal["pt2", "onnx", "int8"]
Normalisation = Literal["inside", "outside"]
FORMATS: tuple[Format, ...] = ("pt2", "onnx", "int8")
FILES = {"pt2": "student.pt2", "onnx": "student.onnx", "int8": "student-int8.onnx"}


@dataclass(frozen=True)
class Artefact:
    """One file, compared with the network in PyTorch.

    Attributes:
        format: "pytorch" (the network itself), "pt2", "onnx" or "int8".
        file: its name, or "" for the network itself.
        bytes: of the file; of weights and buffers for the network itself.
        difference: largest absolute difference of a logit.
        agreement: share of images to which both give the same class.
        milliseconds: median of one call, by the number of images in it.
        speedup: times as fast as PyTorch, likewise.
        over_onnx: times as fast as the fp32 ONNX file, likewise; empty without that.
        in_float: layers with weights that an INT8 file leaves in float.
        accuracy: share of the labelled test images it gets right; None without any.
    """

    format: str
    file: str
    bytes: int
    difference: float
    agreement: float
    milliseconds: dict[int, float]
    speedup: dict[int, float]
    over_onnx: dict[int, float]
    in_float: tuple[str, ...] = ()
    accuracy: float | None = None


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        folder: where.
        artefacts: a row for every file, PyTorch first.
        images: compared.
        calibration: images that INT8 was calibrated on.
        skipped: formats that were left out, and why.
        tested: labelled images that accuracies are of; 0 without any.
    """

    folder: Path
    artefacts: tuple[Artefact, ...]
    images: int
    calibration: int
    skipped: dict[str, str]
    tested: int = 0


def export(
    source: str | Path,
    *,
    formats: Sequence[Format] | None = None,
    normalisation: Normalisation = "inside",
    images: Bytes | str | Path | None = None,
    calibration: int = 256,
    batch: int | None = None,
    network: str | None = None,
    out: str | Path | None = None,
    test: Labelled | None = None,
) -> Exported:
    """Write the student of a run for deployment, and compare every file with PyTorch.

    Half of the images calibrate the INT8 file, the other half are compared; with a fixed ``batch``, the full batches of
    each half. A folder that was exported before is replaced when everything has been written.

    Args:
        source: run folder, or what else :func:`~dfkd.deploy.loading.load` takes.
        formats: ``pt2`` (torch.export), ``onnx``, ``int8`` (ONNX, static quantization); default: all that can be.
        normalisation: whether the files take images in [0, 1] (inside) or normalised ones.
        images: uint8 (n, c, h, w), or a folder of image files; default: synthetic images of the run.
        calibration: images for the ranges of INT8, at least 64, or a larger ``batch``; as many are compared.
        batch: images of every call; default any number.
        network: see :func:`~dfkd.deploy.loading.load`.
        out: folder; default ``export`` in the run folder.
        test: labelled images, as :func:`~dfkd.data.readers.read_images` takes them: the accuracy of every file.

    Raises:
        UserError: nothing to export, a package that is missing, too few images, a layer that cannot be converted.
            Nothing has been written then.
    """
    chosen = _formats_to_write(formats, normalisation, calibration, batch)
    asked_folder = output_folder(out, "export")
    student = open_network(source, network, "export")
    if normalisation == "outside" and not student.rebuilt:
        raise UserError(
            f"normalisation outside needs the network itself, got an exported program in {student.folder}; give what "
            "builds it as --network package.module:callable"
        )
    folder = asked_folder or student.folder / EXPORT_FOLDER
    check_replaceable(folder)
    skipped: dict[str, str] = {}
    if formats is None:
        chosen = _without_missing(chosen, skipped)
    samples = images_for(student, 2 * max(calibration, batch or 1), images)
    _check_enough(len(samples), chosen, batch)
    of_network = student.predictor.image_size, student.predictor.names, len(student.predictor.names)
    labelled = None if test is None else labelled_tensors(test, *of_network, "test")
    calibrating, compared = (as_images(_full_batches(half, batch)) for half in (samples[0::2], samples[1::2]))
    with replacing(folder) as aside:
        module = _bare(student.predictor) if normalisation == "outside" else student.predictor
        normalise = _normalise(student.predictor) if normalisation == "outside" else _same
        in_float = _write(student, module, chosen, normalise(calibrating), normalisation, batch, aside)
        runners = _runners(module, chosen, aside)
        artefacts = _compare(student, runners, chosen, normalise(compared), batch, aside, in_float)
        if labelled is not None:
            artefacts = tuple(
                replace(row, accuracy=_accuracy(runners[row.format], labelled, normalise, batch)) for row in artefacts
            )
        exported = Exported(
            folder,
            artefacts,
            len(compared),
            len(calibrating) if "int8" in chosen else 0,
            skipped,
            0 if labelled is None else len(labelled[0]),
        )
        _record(exported, student, normalisation, batch, aside)
    return exported


def _formats_to_write(
    formats: Sequence[Format] | None, normalisation: str, calibration: int, batch: int | None
) -> tuple[Format, ...]:
    for format in formats or ():
        if format not in FORMATS:
            raise UserError(f"export needs formats among {', '.join(FORMATS)}, got {format!r}; choose among them")
    if formats is not None and not formats:
        raise UserError("export needs at least one format, got none; choose among pt2, onnx and int8")
    if normalisation not in ("inside", "outside"):
        raise UserError(f"export needs normalisation inside or outside, got {normalisation!r}; choose one of them")
    if calibration < FEWEST:
        raise UserError(f"INT8 needs at least {FEWEST} images to calibrate on, got {calibration}; raise calibration")
    if batch is not None and batch < 1:
        raise UserError(f"export needs a batch of at least 1 image, got {batch}; raise it, or leave it out for any")
    asked_formats = tuple(FORMATS) if formats is None else tuple(name for name in FORMATS if name in formats)
    if formats is not None and set(asked_formats) & {"onnx", "int8"}:
        check_onnx()
    return asked_formats


def _without_missing(formats: tuple[Format, ...], skipped: dict[str, str]) -> tuple[Format, ...]:
    """Formats whose packages are there; why the others are left out goes to ``skipped``."""
    try:
        check_onnx()
    except UserError as error:
        skipped.update({name: str(error) for name in formats if name != "pt2"})
        return ("pt2",)
    return formats


def _check_enough(count: int, formats: Sequence[Format], batch: int | None) -> None:
    """Each half of ``count`` images needs an image, a batch where its size is fixed, and what INT8 calibrates on."""
    if count < 2:
        raise UserError(
            f"export needs at least 2 images, one of them to compare on, got {count}; give more with --images"
        )
    if batch is not None and count < 2 * batch:
        raise UserError(
            f"export with a batch of {batch} needs at least {2 * batch} images, half of them to compare on, "
            f"got {count}; give more with --images, or a smaller --batch"
        )
    calibrating = (count + 1) // 2
    if "int8" in formats and calibrating < FEWEST:
        raise UserError(
            f"INT8 needs at least {FEWEST} images to calibrate on, got {calibrating}; give more with --images"
        )


def _full_batches(images: Bytes, batch: int | None) -> Bytes:
    """``images`` without the last ones that fill no batch; all of them where a call takes any number."""
    return images[: len(images) - len(images) % (batch or 1)]


def _repeat_to(images: Tensor, count: int) -> Tensor:
    """``count`` of ``images`` (n, c, h, w), from the first again where there are fewer."""
    return images[torch.arange(count) % len(images)]


def _same(images: Images) -> Tensor:
    return images


def _normalise(predictor: Predictor) -> Callable[[Images], Tensor]:
    return lambda images: (images - predictor.mean) * predictor.scale


def _bare(predictor: Predictor) -> nn.Module:
    return LogitsOf(predictor.net, predictor.outputs).eval()


def _write(
    network: Opened,
    module: nn.Module,
    formats: Sequence[Format],
    calibrating: Tensor,
    normalisation: Normalisation,
    batch: int | None,
    folder: Path,
) -> tuple[str, ...]:
    """Write the files; returns what INT8 leaves in float."""
    example = _repeat_to(calibrating, batch or 2)
    dynamic = batch is None
    if "pt2" in formats:
        write_program(module, example, folder / FILES["pt2"], dynamic)
    if not {"onnx", "int8"} & set(formats):
        return ()
    about = metadata_of(
        network.predictor.names,
        list(network.sidecar.mean or ()),
        list(network.sidecar.std or ()),
        network.predictor.image_size,
        normalisation == "inside",
    )
    write_onnx(module, example, folder / FILES["onnx"], about, dynamic)
    in_float = (
        write_int8(folder / FILES["onnx"], folder / FILES["int8"], calibrating, batch) if "int8" in formats else []
    )
    return tuple(in_float)


def _compare(
    network: Opened,
    runners: Mapping[str, Callable[[Tensor], Tensor]],
    formats: Sequence[Format],
    images: Tensor,
    batch: int | None,
    folder: Path,
    in_float: tuple[str, ...],
) -> tuple[Artefact, ...]:
    """Every file beside PyTorch, all timed in turns."""
    logits = {name: _logits(run, images, batch) for name, run in runners.items()}
    times = {
        n: time_in_turns({name: partial(run, _repeat_to(images, n)) for name, run in runners.items()}, "pytorch")
        for n in ((batch,) if batch is not None else BATCHES)
    }
    rows = []
    for name in runners:
        same = (logits[name].argmax(dim=1) == logits["pytorch"].argmax(dim=1)).double().mean()
        path = folder / FILES.get(name, "")
        faster = {n: timing[name].speedup / timing["onnx"].speedup for n, timing in times.items() if "onnx" in timing}
        rows.append(
            Artefact(
                name,
                FILES.get(name, ""),
                path.stat().st_size if path.is_file() else network_bytes(network.predictor.net),
                float((logits[name] - logits["pytorch"]).abs().max()),
                float(same),
                {n: 1000 * timing[name].seconds for n, timing in times.items()},
                {n: timing[name].speedup for n, timing in times.items()},
                faster,
                in_float if name == "int8" else (),
            )
        )
    _check_finite(rows)
    if "onnx" not in formats and "int8" in formats:
        (folder / FILES["onnx"]).unlink()
        rows = [row for row in rows if row.format != "onnx"]
    return tuple(rows)


def _runners(module: nn.Module, formats: Sequence[Format], folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    runners: dict[str, Callable[[Tensor], Tensor]] = {"pytorch": module}
    if "pt2" in formats:
        runners["pt2"] = torch.export.load(folder / FILES["pt2"]).module()
    for name in ("onnx", "int8"):
        if (folder / FILES[name]).is_file():
            run = session(folder / FILES[name])
            runners[name] = lambda images, run=run: torch.from_numpy(run(images.numpy()))  # type: ignore[misc]
    return {name: _without_gradient(run) for name, run in runners.items()}


def _without_gradient(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images)

    return call


def _logits(run: Callable[[Tensor], Tensor], images: Tensor, batch: int | None) -> Tensor:
    return torch.cat([run(part.contiguous()).clone() for part in images.split(batch or 64)])


def _accuracy(
    run: Callable[[Tensor], Tensor],
    labelled: tuple[Bytes, Labels],
    normalise: Callable[[Images], Tensor],
    batch: int | None,
) -> float:
    """Share of labelled images that a file gets right; the last call of a fixed batch is filled with repetitions."""
    hits = 0
    for images, labels in zip(*(part.split(batch or 64) for part in labelled), strict=True):
        logits = run(normalise(as_images(_repeat_to(images, batch or len(images)))).contiguous())
        hits += int((logits[: len(labels)].argmax(dim=1) == labels).sum())
    return hits / len(labelled[1])


def _check_finite(rows: Sequence[Artefact]) -> None:
    for row in rows:
        if not row.difference < float("inf"):
            raise UserError(
                f"export needs finite logits, got NaN or infinity from the {row.format} file; leave that format out "
                "with --formats, or give images that resemble those the network will see"
            )


def _record(exported: Exported, network: Opened, normalisation: str, batch: int | None, folder: Path) -> None:
    about: dict[str, Any] = {
        "network": network.name,
        "weights": str(network.folder),
        "normalisation": normalisation,
        "batch": batch or "any",
        "images": exported.images,
        "tested": exported.tested,
        "calibration": exported.calibration,
        "artefacts": list(exported.artefacts),
        "skipped": exported.skipped,
        "provenance": provenance(Runtime("cpu").launch()),
    }
    text = json.dumps(plain(about), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / EXPORT_FILE, text.encode() + b"\n")
