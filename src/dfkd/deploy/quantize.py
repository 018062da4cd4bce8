"""A network in few bits without its training data: calibrated on synthetic images, then trained.

The protocol of NAYER's Table 3 as far as it is published, with ZAQ's quantizers (:mod:`dfkd.nets.quantized`): the
network is the teacher of its own quantized copy, and any method that makes images makes them.
"""

import copy
import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.api import distill
from dfkd.data.text import TextEmbedding
from dfkd.defaults import DEFAULT_METHOD
from dfkd.deploy.stages import Stage, StageMeter, check_enough
from dfkd.engine.checkpoint import pools_of, write_aside
from dfkd.engine.core import Method
from dfkd.engine.driver import Watch
from dfkd.engine.driver import run as drive
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RunResult
from dfkd.errors import UserError
from dfkd.inputs import as_classifier, output_folder, runtime_of, with_fields
from dfkd.lent import loan_of, put_back
from dfkd.methods import METHODS
from dfkd.nets.quantized import Bits, with_quantizers
from dfkd.nets.ranges import check_ranges, freeze_ranges
from dfkd.nets.zoo import Classifier
from dfkd.prepare import build_task, method_or_default
from dfkd.report.files import plain, write_whole
from dfkd.settings import Images, Machine, Text, Watching
from dfkd.types import Bytes

__all__ = ["IMAGES_FILE", "QUANTIZE_FILE", "Quantized", "quantize"]

QUANTIZE_FILE = "quantize.json"
IMAGES_FILE = "quantize-images.safetensors"  # while the run is under way


@dataclass(frozen=True)
class Quantized:
    """What :func:`quantize` returns: the student in eval mode with frozen ranges, its stages, its record."""

    student: nn.Module
    bits: Bits
    stages: tuple[Stage, ...]
    record: RunResult


def quantize(
    network: nn.Module | Classifier,
    bits: str,
    method: Method[Any] | None = None,
    *,
    images: Bytes | None = None,
    calibration: int = 256,
    data: Images | None = None,
    text: Text | TextEmbedding | Tensor | str = "auto",
    plan: Plan | None = None,
    runtime: Machine | None = None,
    watch: Watching | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: bool = True,
    **values: Any,
) -> Quantized:
    """Quantize a copy of ``network`` to ``bits`` and train it, both without training data.

    Args:
        network: trained, with Conv2d, Linear and ReLU or ReLU6 modules; it is not changed.
        bits: such as "W4A8": of weights and activations, 2 to 8.
        method: what makes images and trains; default :data:`~dfkd.defaults.DEFAULT_METHOD`.
        images: uint8 (n, c, h, w) to calibrate on; default: those of the method's warm-up (at least one round of it).
        calibration: images for the ranges, at least 64; as many others tell the agreement at every stage.
        resume: go on with the run in ``out``, whose images it keeps; ``images`` are not looked at then.
        data, text, plan, runtime, watch, out, observers, progress, values: as :func:`dfkd.distill` takes them.

    Raises:
        UserError: brevitas is missing; a layer without a quantizer; too few images; a scale that is not finite; and
            what :func:`dfkd.distill` refuses.
    """
    sections: dict[str, Any] = {"data": data or Images(), "text": Text(text) if isinstance(text, str) else text}  # type: ignore[arg-type]
    sections |= {"runtime": runtime or Machine(), "watch": watch or Watching()}
    folder, sections = output_folder(out, "quantize"), with_fields("quantize", sections, values)
    teacher, method = as_classifier(network), method_or_default(method, METHODS[DEFAULT_METHOD]())
    plan = method.budget() if plan is None else plan
    parsed_bits = Bits.parse(bits)
    student = _student(teacher, parsed_bits)
    look = StageMeter(teacher, student, sections, parsed_bits)
    begun = Begun.read(folder) if resume else None
    if begun is None:
        if images is None:
            images = _synthesise(teacher, method, plan, sections)
        check_enough(images, calibration)
        images = images[: 2 * calibration]
        begun = Begun(parsed_bits, look.first_stages(images), images)
    result = distill(
        teacher, student, method, plan=plan, out=out, resume=resume,
        observers=[*observers, _Start(folder, begun)], progress=progress, **sections,
    )  # fmt: skip
    freeze_ranges(result.student)
    check_ranges(result.student)
    stages = (*begun.stages, begun.trained or look.last_stage(begun.images))
    _write(folder, parsed_bits, stages)
    if folder is not None:
        (folder / IMAGES_FILE).unlink(missing_ok=True)
    _warn_of_loss(stages)
    return Quantized(result.student, parsed_bits, stages, result.record)


def _warn_of_loss(stages: Sequence[Stage]) -> None:
    """Say where training took away what calibrating had reached."""
    calibrated, trained = (next(stage for stage in stages if stage.name == name) for name in ("calibrated", "trained"))
    if trained.synthetic_agreement < calibrated.synthetic_agreement:
        warnings.warn(
            f"trained, it agrees with fp32 on {trained.synthetic_agreement:.1%} of the synthetic images, after "
            f"calibrating alone on {calibrated.synthetic_agreement:.1%}: train it longer, or with a lower rate "
            "(plan.rounds, plan.lr)",
            stacklevel=3,
        )


def _student(teacher: Classifier, bits: Bits) -> Classifier:
    spec = {**teacher.spec, "bits": str(bits)} if teacher.spec else {}
    name = f"{teacher.name or type(teacher.net).__name__} {bits}"
    return replace(teacher, net=with_quantizers(teacher.net, bits), spec=spec, name=name)


def _synthesise(teacher: Classifier, method: Method[Any], plan: Plan, sections: dict[str, Any]) -> Bytes:
    """Images of the method's warm-up, with the network as its own student."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(put_back, loan_of(teacher.net))
        runtime = runtime_of(sections["runtime"]).launch()
        pair = teacher, replace(teacher, net=copy.deepcopy(teacher.net).requires_grad_(True))
        task = build_task(*pair, data=sections["data"], text=sections["text"], runtime=runtime)
        stack.callback(task.teacher.release)
        state = drive(task, method, replace(plan, rounds=1, warmup=max(1, plan.warmup), steps=1), Watch())
    pool = pools_of(state).get("pool")
    if pool is None or "images" not in pool.columns:
        raise UserError(
            f"quantize needs a method that stores the images it makes, got {type(method).__name__}; give images, or "
            "another method"
        )
    return pool.newest(len(pool))["images"].cpu()


@dataclass(frozen=True)
class Begun:
    """What is known before training: the stages so far, and the images (uint8) that they were measured on.

    ``trained`` is the last stage of a run that had finished, whose images are gone.
    """

    bits: Bits
    stages: tuple[Stage, ...]
    images: Bytes
    trained: Stage | None = None

    @classmethod
    def read(cls, folder: Path | None) -> "Begun":
        """That of the run in ``folder``, which goes on.

        Raises:
            UserError: no such run.
        """
        if folder is None:
            raise UserError("resume needs the run's folder, got no out; give the folder the run was started with")
        try:
            content = json.loads((folder / QUANTIZE_FILE).read_text("utf-8"))
            stages = {row["name"]: Stage(**row) for row in content["stages"]}
            trained = stages.pop("trained", None)
            return cls(Bits.parse(content["bits"]), tuple(stages.values()), _stored_images(folder), trained)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"resume needs {QUANTIZE_FILE} of a run of `dfkd quantize`, got {folder} ({type(error).__name__}); "
                "start in a new folder"
            ) from error


class _Start(Observer):
    """Writes what is known before training when the run begins, so that a resume knows it."""

    def __init__(self, folder: Path | None, begun: Begun) -> None:
        self.folder, self.begun = folder, begun

    def started(self, info: Any) -> None:
        """The folder is the run's now."""
        from safetensors.torch import save_file

        _write(self.folder, self.begun.bits, self.begun.stages)
        if self.folder is not None:
            images = {"images": self.begun.images.contiguous()}
            write_aside(self.folder / IMAGES_FILE, lambda path: save_file(images, path))


def _stored_images(folder: Path) -> Bytes:
    """The images of a run that goes on; none, where an earlier version kept none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / IMAGES_FILE).is_file():
        return torch.zeros(0, dtype=torch.uint8)
    try:
        return load_file(folder / IMAGES_FILE)["images"]
    except SafetensorError as error:
        raise ValueError("images") from error


def _write(folder: Path | None, bits: Bits, stages: tuple[Stage, ...]) -> None:
    if folder is not None:
        text = json.dumps(plain({"bits": str(bits), "stages": list(stages)}), indent=1, allow_nan=False)
        write_whole(folder / QUANTIZE_FILE, text.encode() + b"\n")
