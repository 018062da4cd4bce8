"""BatchNorm estimated anew on a few real, unlabelled images: kept only where it helps. This is not data-free."""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.deploy.folders import check_replaceable, images_for, replacing
from dfkd.deploy.loading import Opened, open_network
from dfkd.deploy.predictor import Predictor
from dfkd.engine.aside import write_aside
from dfkd.engine.records import RunInfo
from dfkd.errors import UserError
from dfkd.inputs import output_folder
from dfkd.ops.pixels import as_images
from dfkd.report.files import RUN_FILE, plain, read_run, write_whole
from dfkd.types import Bytes, Images
from dfkd.weights import find_weights

__all__ = ["ADAPTED_FOLDER", "Adapted", "adapt", "with_statistics_of"]

ADAPTED_FOLDER = "adapted"
FEWEST = 4  # images: two to estimate on, two to compare on
WEIGHTS_FILE, ABOUT_FILE = "student.safetensors", "student.json"


@dataclass(frozen=True)
class Adapted:
    """What :func:`adapt` found.

    Attributes:
        images: how many were used.
        before: share of them to which student and teacher give the same class.
        after: the same with statistics from the other half of the images, both halves together.
        kept: whether that is more than chance would have it, and the new student was written.
        folder: where, or None.
        student: the better one.
    """

    images: int
    before: float
    after: float
    kept: bool
    folder: Path | None
    student: Predictor


def adapt(
    source: str | Path,
    images: Bytes | str | Path,
    teacher: nn.Module | str | Path,
    *,
    count: int = 64,
    network: str | None = None,
    out: str | Path | None = None,
) -> Adapted:
    """Estimate the student's BatchNorm statistics anew on real images, and keep them only if they help.

    Whether they help is told without labels: each half of the images is classified with the statistics of the other
    half, and the share to which the teacher gives the same class is compared with that of the student as it is. It has
    to grow by more than one standard error. Statistics that are kept come from all images. The run is not changed.

    Args:
        source: run folder, or what else :func:`~dfkd.deploy.loading.load` takes.
        images: uint8 (n, c, h, w), or a folder of image files; no labels are needed.
        teacher: its module from images in [0, 1] to logits, such as :func:`dfkd.load` returns, or its folder.
        count: images at most.
        network: see :func:`~dfkd.deploy.loading.load`.
        out: folder for the new student; default ``adapted`` in the run folder. What an earlier call wrote there for the
            same run is replaced, as a whole.

    Raises:
        UserError: too few images, a student without BatchNorm, one that is an exported program, or a folder that holds
            something else.
    """
    asked_folder = output_folder(out, "adapt")
    original = open_network(source, network, "adapt")
    about = _read_description(source, original)
    folder = asked_folder or original.folder / ADAPTED_FOLDER
    check_replaceable(folder, "adapt", lambda earlier: _is_result_for(original.info, about, earlier))
    pixels = as_images(images_for(original, count, images, "adapt"))
    if len(pixels) < FEWEST:
        raise UserError(f"adapt needs at least {FEWEST} images, got {len(pixels)}; give more with --images")
    if not _norms(original.predictor):
        raise UserError(f"adapt needs a student with BatchNorm layers, got {original.name} without; use it as it is")
    oracle = open_network(teacher, who="adapt").predictor if isinstance(teacher, str | Path) else teacher
    with _in_eval_mode(oracle):
        answers = _classes(oracle, pixels)
    right = _classes(original.predictor, pixels) == answers
    mended = torch.zeros_like(right)
    for own, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        mended[own] = _classes(with_statistics_of(original.predictor, pixels[other]), pixels[own]) == answers[own]
    before, after = float(right.double().mean()), float(mended.double().mean())
    gained, lost = int((mended & ~right).sum()), int((right & ~mended).sum())
    if gained - lost <= (gained + lost) ** 0.5:  # within one standard error of no difference
        return Adapted(len(pixels), before, after, False, None, original.predictor)
    student = with_statistics_of(original.predictor, pixels)
    about["adapted"] = {"images": len(pixels), "before": before, "after": after}
    with replacing(folder, "adapt") as aside:
        _write(original.folder, aside, student, about)
    return Adapted(len(pixels), before, after, True, folder, student)


@torch.no_grad()
def with_statistics_of(predictor: Predictor, images: Images) -> Predictor:
    """A copy with the BatchNorm statistics of ``images``, all in one batch; weights stay."""
    student = copy.deepcopy(predictor).eval()
    norms = _norms(student)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the batch alone
        norm.train()
    student(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return student.eval()


def _norms(net: nn.Module) -> list[_BatchNorm]:
    return [norm for norm in net.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]


@torch.no_grad()
def _classes(net: nn.Module, images: Images) -> torch.Tensor:
    return torch.cat([net(part).argmax(dim=1) for part in images.split(64)])


@contextmanager
def _in_eval_mode(net: nn.Module) -> Iterator[None]:
    """The user's network in eval mode; every layer gets its own mode back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read_description(source: str | Path, original: Opened) -> dict[str, Any]:
    """What stands beside the weights of ``original``, which was opened from ``source``."""
    path = Path(source).expanduser()
    weights = path if path.is_file() else find_weights(original.folder, "adapt")
    about: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text("utf-8"))
    return about


def _is_result_for(info: RunInfo | None, about: Mapping[str, Any], folder: Path) -> bool:
    """Whether ``folder`` holds what :func:`adapt` wrote for this student, or one of its run, and nothing else."""
    if not {path.name for path in folder.iterdir()} <= {RUN_FILE, ABOUT_FILE, WEIGHTS_FILE}:
        return False
    try:
        earlier = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        earlier_info = read_run(folder).info if (folder / RUN_FILE).is_file() else None
    except (OSError, ValueError):  # not there, or damaged
        return False
    return isinstance(earlier, dict) and "adapted" in earlier and _origin(earlier_info, earlier) == _origin(info, about)


def _origin(info: RunInfo | None, about: Mapping[str, Any]) -> object:
    """What a student comes from: its run, by what no resume changes, or, without one, its description."""
    if info is None:
        return {key: value for key, value in about.items() if key != "adapted"}
    networks = info.teacher.get("sha256"), info.student.get("name"), info.image_shape, info.classes
    return info.method, info.settings, info.plan, networks, info.inputs, info.provenance.get("seed")


def _write(run: Path, folder: Path, student: Predictor, about: Mapping[str, Any]) -> None:
    """Weights, description (which says that real images were read) and the record of the run."""
    from safetensors.torch import save_file

    weights = {name: t.detach().contiguous().clone() for name, t in student.net.state_dict().items()}
    if (run / RUN_FILE).is_file():
        shutil.copyfile(run / RUN_FILE, folder / RUN_FILE)
    write_whole(folder / ABOUT_FILE, json.dumps(plain(about), indent=1).encode())
    write_aside(folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
