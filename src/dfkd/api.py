"""The front door: plain modules in, a trained student and a record out."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.data.text import TextEmbedding
from dfkd.engine.anatomy import Anatomy
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Method, Need, Task, unmet
from dfkd.engine.driver import Watch, check, run
from dfkd.engine.evaluate import evaluate, predictions
from dfkd.engine.plan import Plan
from dfkd.engine.records import Evaluation, Keep, Observer, RoundRecord, RunInfo, RunResult
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.methods import METHODS, NAYER
from dfkd.prepare import Real, Web, instance, labelled, prepare
from dfkd.report.conversion import Conversion
from dfkd.report.figures import figures_of
from dfkd.report.files import read_run
from dfkd.report.gallery import FIGURES_FOLDER, Gallery, write_gallery
from dfkd.report.page import write_page
from dfkd.runs import (
    CHECKPOINT_FOLDER,
    forget_run,
    network_bytes,
    open_run,
    provenance,
    save_student,
    settings_of,
    weights_hash,
)
from dfkd.watchers import earlier_stop, look_for_duplicates, observers_of, tell

__all__ = ["Distilled", "distill"]


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns: the trained network (hooks removed, eval mode) and the record of the run."""

    student: nn.Module
    record: RunResult

    @property
    def accuracy(self) -> float | None:
        """The last round's accuracy on the real test images, in [0, 1], where there were any."""
        return None if self.record.final is None else self.record.final.accuracy


def distill(
    teacher: nn.Module,
    student: nn.Module,
    method: Method[Any] | None = None,
    *,
    image_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | int | None = None,
    plan: Plan | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    test: Real = None,
    text: TextEmbedding | Tensor | str = "auto",
    prompt: str = "P2",
    web: Web = None,
    real: Real = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    observers: Sequence[Observer] = (),
    progress: bool = True,
    evaluate_every: int = 1,
    samples_every: int = 10,
    save_every: float = 30.0,
    teacher_layers: Mapping[str, Any] | None = None,
    student_layers: Mapping[str, Any] | None = None,
    names: tuple[str, str] | None = None,
    spec: Mapping[str, object] | None = None,
    export: bool = True,
    figures: bool = True,
    metrics_every: int = 1,
    overlap: bool = True,
) -> Distilled:
    """Distil ``teacher`` into ``student`` without the teacher's training data.

    ``student`` is trained in place and returned; the last round is the result, or the one after which an observer
    stopped the run (``record.stopped`` says why). Test images, if given, only report.

    Args:
        teacher: maps normalised images (n, c, h, w) to logits (n, k). It is not changed.
        student: the same for the network to train.
        method: how; default :class:`~dfkd.methods.nayer.NAYER` with its paper's settings.
        image_size: (c, h, w) of the images the teacher was trained on.
        mean, std: per channel, of pixels in [0, 1], that the teacher was trained with.
        classes: class names in label order, or their number; default: the teacher's outputs.
        plan: how long; default: the method's published budget.
        out: run folder, new or empty; without it nothing is written.
        resume: continue the run in ``out`` where it stopped.
        test: labelled images (an ``ImageSet``, a pair of tensors, or a source that
            :func:`~dfkd.data.readers.read_images` knows).
        text: class embeddings, or the encoder that makes them (see :func:`~dfkd.data.text.embed`).
        prompt: P1, P2 or P3, for that encoder.
        web: unlabelled images, for methods that select from them.
        real: labelled training images, for the yardstick with data only.
        runtime: device, precision, processes; default: one process on the best device, with ``seed``.
        seed: of the run, where ``runtime`` is not given.
        observers: told about every round, beside the built-in ones; one may end the run
            (:meth:`~dfkd.engine.records.Observer.rounded`).
        progress: show a progress display.
        evaluate_every, samples_every: in rounds.
        save_every: least seconds between checkpoints.
        teacher_layers, student_layers: ``{"head": path, "stages": [paths]}`` where the search should not decide.
        names: what teacher and student are called in the record.
        spec: how to rebuild the student, kept beside its weights.
        export: also write the student as a ``torch.export`` program.
        figures: draw figures into the run folder at the end (images by class, activation maps, t-SNE and so on).
        metrics_every: rounds between readings of the losses from the device.
        overlap: where there are web and test images, look once, before the rounds, for near-duplicates of the test
            images among the web images (:func:`~dfkd.data.overlap.find_duplicates`). They are told, not removed.

    Raises:
        UserError: anything that does not fit together, in one sentence, before any work.
    """
    method = instance(method, NAYER())
    plan = method.budget() if plan is None else plan
    runtime = runtime or Runtime(seed=seed)
    if resume and out is None:
        raise UserError("resume needs the run's folder, got no out; give the folder the run was started with")
    watch = Watch((), None, evaluate_every, samples_every, save_every=save_every, metrics_every=metrics_every)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_seeded(runtime)))
        stack.callback(_put_back, teacher, _flags(teacher))
        runtime.launch()
        wanted = None if isinstance(text, str) and Need.TEXT not in method.needs() else text
        layers = (teacher_layers or {}, student_layers or {})
        with Conversion(quiet=not progress or runtime.rank > 0) as said:
            task, facts, embedding = prepare(
                teacher, student, runtime, image_size, mean, std, classes, wanted, prompt, web, real, layers, said
            )
        stack.callback(task.teacher.release)
        stack.callback(task.student.release)
        check(task, method, _fitting(task))
        info = _info(method, plan, task, facts, embedding, names)
        exam = labelled(test, task, "test")
        folder = None if out is None else Path(out)
        again = resume
        if folder is not None and runtime.rank == 0:
            again = stack.enter_context(open_run(folder, info, resume, save_every))
        runtime.barrier()
        first = _check_teacher(task, exam)
        keep = Keep()
        saves = _checkpoint(folder, runtime)
        done = saves.rounds() if saves is not None and again else 0
        watchers = observers_of(folder, done, runtime, stack, progress, keep)
        earlier = read_run(folder) if folder is not None and again and runtime.rank == 0 else None
        info = replace(info, continues=earlier_stop(earlier), overlap=None if earlier is None else earlier.info.overlap)
        info = look_for_duplicates(task, exam, info, watchers) if overlap else info
        watchers = [keep, *watchers, *([] if runtime.rank else observers)]
        watch = replace(
            watch,
            observers=watchers,
            test=exam,
            samples_every=samples_every if folder or observers else 0,
            checkpoint=saves,
            ready=partial(tell, watchers, info, runtime),
        )
        try:
            state = run(task, method, plan, watch, resume=again)
        except Exception:  # whatever it is, and it goes on: a run that failed before it began must not block its folder
            if folder is not None and runtime.rank == 0 and not again and not keep.records:
                forget_run(folder)
            elif watch.stopped is not None:  # the student is lost: the record is closed, the last save stays
                _close(task, _result(info, keep.records, first, watch, {}), folder, watchers)
            raise
        if figures and folder is not None and runtime.rank == 0:  # before the export takes the student's hooks off
            _draw(folder, figures_of(task, method, plan, state, exam, overlap=info.overlap))
        files = _keep_student(task, info, folder, spec, export)
        result = _result(info, keep.records, first, watch, files)
        _close(task, result, folder, watchers)
    return Distilled(student.eval(), result)


def _fitting(task: Task) -> list[str]:
    """The methods this pair would do for; text can always be had, if only as class indices."""
    return [name for name, method in METHODS.items() if not {*unmet(task, method())} - {Need.TEXT}]


def _seeded(runtime: Runtime) -> list[int]:
    """CUDA devices whose default streams a run touches: seeding touches all, once CUDA is in use."""
    in_use = torch.cuda.is_initialized() or runtime.device.type == "cuda"
    return list(range(torch.cuda.device_count())) if in_use else []


def _flags(net: nn.Module) -> tuple[list[bool], list[bool]]:
    return [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]


def _put_back(net: nn.Module, flags: tuple[list[bool], list[bool]]) -> None:
    """The user's network asks for gradients, and is in the modes, that it was given with."""
    for parameter, wanted in zip(net.parameters(), flags[0], strict=True):
        parameter.requires_grad_(wanted)
    for module, mode in zip(net.modules(), flags[1], strict=True):
        module.training = mode


def _check_teacher(task: Task, test: tuple[Tensor, Tensor] | None) -> Evaluation | None:
    """The teacher on the test images; a teacher at chance means wrong normalisation, label order or weights."""
    if test is None:
        return None
    guess = predictions(task.teacher, test[0], task.runtime)
    first = evaluate(task.teacher, *test, task.classes, task.runtime, guess)
    chance = 1 / task.classes
    luck = 3 * (chance * (1 - chance) / first.images) ** 0.5
    if first.accuracy < chance + luck and task.classes > 1 and first.images >= 100:
        raise UserError(
            f"teacher needs to do better than chance on the test images, got {first.accuracy:.1%} with {task.classes} "
            "classes; check mean and std, the label order and the weights"
        )
    return first


def _info(
    method: Method[Any],
    plan: Plan,
    task: Task,
    facts: tuple[Anatomy, Anatomy],
    text: dict[str, str],
    names: tuple[str, str] | None,
) -> RunInfo:
    about = []
    for i, (probe, anatomy) in enumerate(zip((task.teacher, task.student), facts, strict=True)):
        about.append(
            {
                "name": names[i] if names else anatomy.kind,
                "kind": anatomy.kind,
                "parameters": anatomy.parameters,
                "macs": anatomy.macs,
                "bytes": network_bytes(probe.net),
                "head": anatomy.head,
                "stages": list(anatomy.stages),
                "norms": anatomy.norms,
                "mean": probe.mean.flatten().tolist(),
                "std": (1 / probe.scale).flatten().tolist(),
            }
        )
    about[0]["sha256"] = weights_hash(task.teacher.net)
    uses_text = Need.TEXT in method.needs()
    return RunInfo(
        type(method).__name__,
        settings_of(method),
        settings_of(plan),
        about[0],
        about[1],
        task.image_shape,
        task.classes,
        task.names,
        text if uses_text else None,
        provenance(task.runtime),
    )


def _checkpoint(folder: Path | None, runtime: Runtime) -> Checkpoint | None:
    if folder is None:
        return None
    return Checkpoint(folder / CHECKPOINT_FOLDER, runtime.rank, runtime.world, runtime.barrier)


def _keep_student(
    task: Task, info: RunInfo, folder: Path | None, spec: Mapping[str, object] | None, export: bool
) -> dict[str, str]:
    """Write the student; the files of the run by role."""
    if folder is None or task.runtime.rank > 0:
        return {}
    return {**save_student(folder, task.student, spec, info, export), "report": "report.html"}


def _result(
    info: RunInfo, records: list[RoundRecord], first: Evaluation | None, watch: Watch, files: dict[str, str]
) -> RunResult:
    """What the run came to; the final evaluation is the last there was."""
    known = next((r.evaluation for r in reversed(records) if r.evaluation is not None), None)
    spent = sum(r.seconds for r in records)
    return RunResult(info, records, watch.final or known, first, spent, files, watch.stopped)


def _close(task: Task, result: RunResult, folder: Path | None, observers: Sequence[Observer]) -> None:
    """Tell the observers that the run is over, and write its page."""
    for observer in observers:
        observer.finished(result)
    if folder is not None and task.runtime.rank == 0:
        write_page(folder)


def _draw(folder: Path, gallery: Gallery) -> None:
    """Write the figures; a run that has come this far does not fail because of them."""
    try:
        write_gallery(folder / FIGURES_FOLDER, gallery)
    except UserError as error:
        warnings.warn(f"the figures were not written: {error}", stacklevel=3)
