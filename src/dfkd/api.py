"""The front door: plain modules in, a trained student and a record out."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.data.text import TextEmbedding
from dfkd.defaults import DEFAULT_METHOD
from dfkd.deploy.export import Exported, export
from dfkd.deploy.programs import check_onnx
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Method, Need, Task, unmet
from dfkd.engine.driver import Watch, check, run
from dfkd.engine.heldout import Gauge, gauge_on, is_measured, make_gauge
from dfkd.engine.hours import fit_plan
from dfkd.engine.plan import Plan
from dfkd.engine.records import Evaluation, Fitted, Keep, Observer, RoundRecord, RunInfo, RunResult
from dfkd.engine.runtime import Runtime, gradients_on
from dfkd.engine.stopping import Judge
from dfkd.errors import UserError
from dfkd.exam import check_teacher, check_varies
from dfkd.identity import run_info, settings_of
from dfkd.inputs import as_classifier, check_measured, output_folder, runtime_of, threads_of, with_fields
from dfkd.lent import lay_out_contiguously, loan_of, put_back, seeded_devices
from dfkd.methods import METHODS
from dfkd.nets.zoo import Classifier
from dfkd.prepare import Vectors, as_tensor, check_labelled, method_or_default, prepare
from dfkd.report.console import announce
from dfkd.report.conversion import Conversion
from dfkd.report.figures import figures_of
from dfkd.report.files import RUN_FILE
from dfkd.report.gallery import FIGURES_FOLDER, Gallery, write_gallery
from dfkd.report.page import write_page
from dfkd.report.trackers import check_trackers
from dfkd.runs import CHECKPOINT_FOLDER, begun_plan, check_free, note_resume, open_run
from dfkd.settings import Images, Machine, Stopping, Text, Watching
from dfkd.student_files import save_picked, save_student
from dfkd.watchers import earlier_stop, end_with_lost_process, look_for_duplicates, observers_of, recording_end, tell

__all__ = ["Distilled", "distill"]

RHYTHM = ("evaluate_every", "metrics_every", "samples_every", "save_every")


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns: the trained network (hooks removed, eval mode) and the record of the run.

    Attributes:
        student: of the last round.
        record: settings, rounds, result.
        exported: ONNX files, with ``onnx``.
        picked: state dict of the round ``record.picked``, on the CPU, where it was kept (process 0).
    """

    student: nn.Module
    record: RunResult
    exported: Exported | None = None
    picked: dict[str, Tensor] | None = None

    @property
    def accuracy(self) -> float | None:
        """The last round's accuracy on the real test images, in [0, 1], where there were any."""
        return None if self.record.final is None else self.record.final.accuracy


def distill(
    teacher: nn.Module | Classifier,
    student: nn.Module | Classifier,
    method: Method[Any] | None = None,
    *,
    data: Images | None = None,
    text: Text | TextEmbedding | Vectors | str = "auto",
    plan: Plan | None = None,
    runtime: Machine | Runtime | None = None,
    watch: Watching | None = None,
    stop: Stopping | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: bool = True,
    **values: Any,
) -> Distilled:
    """Distil ``teacher`` into ``student`` without the teacher's training data.

    ``student`` is trained in place and returned; the last round is the result, or the one after which a rule of
    ``stop`` or an observer ended the run (``record.stopped`` says why). Test images, if given, only report.

    Every field of ``data``, ``text``, ``runtime``, ``watch`` and ``stop`` may also be given by its own name:
    ``distill(teacher, student, image_size=(3, 32, 32), mean=mean, std=std, test="cifar10", seed=1)``.

    Args:
        teacher: maps normalised images (n, c, h, w) to logits (n, k). It is not changed. What is known beside the
            network (its head, its stages, its name) comes with a :class:`~dfkd.nets.zoo.Classifier`.
        student: the same for the network to train; the ``spec`` of a classifier is kept beside its weights.
        method: how; default :data:`~dfkd.defaults.DEFAULT_METHOD` with its paper's settings.
        data: what the teacher was trained on (``image_size`` (c, h, w), ``mean``, ``std`` of pixels in [0, 1],
            ``classes``: names in label order or their number, default the teacher's outputs), and images: ``test``
            (only reports), ``web`` (unlabelled, for methods that select), ``real`` (the yardstick with data only).
        text: class embeddings, the encoder that makes them, or a :class:`~dfkd.settings.Text` section.
        plan: how long; default: the method's published budget.
        runtime: device, precision, processes, seed.
        watch: evaluations, samples, saves, figures, export; nothing in it changes the student.
        stop: rules that end the run earlier, by agreement with the teacher on held-out images, and the hours that the
            plan is shortened to fit, as measured before the first round; off by default.
        out: run folder, new or empty; without it nothing is written. It may begin with ``~``.
        resume: continue the run in ``out`` where it stopped.
        observers: told about every round, beside the built-in ones; one may end the run
            (:meth:`~dfkd.engine.records.Observer.rounded`).
        progress: show a progress display.
        values: fields of the sections by their own names.

    Raises:
        UserError: anything that does not fit together, in one sentence, before any work.
    """
    raw_sections: dict[str, Any] = {"data": data, "text": text, "runtime": runtime, "watch": watch, "stop": stop}
    sections = with_fields("distill", raw_sections, values)
    folder = output_folder(out, "distill")
    _check_kinds(plan, observers)
    sections["watch"] = replace(sections["watch"], estimate=_held_out_choice(sections["watch"].estimate))
    machine = runtime_of(sections["runtime"])
    with threads_of(sections["runtime"]), gradients_on(), end_with_lost_process(machine, folder):
        return _distill(
            as_classifier(teacher),
            as_classifier(student),
            method_or_default(method, METHODS[DEFAULT_METHOD]()),
            plan,
            folder,
            resume,
            observers,
            progress,
            data=sections["data"],
            text=sections["text"],
            runtime=machine,
            settings=sections["watch"],
            stop=sections["stop"],
        )


def _distill(
    teacher: Classifier,
    student: Classifier,
    method: Method[Any],
    plan: Plan | None,
    folder: Path | None,
    resume: bool,
    observers: Sequence[Observer],
    progress: bool,
    data: Images,
    text: Text | TextEmbedding | Vectors,
    runtime: Runtime,
    settings: Watching,
    stop: Stopping,
) -> Distilled:
    """:func:`distill` with every argument in its final form."""
    plan = method.budget() if plan is None else plan
    quiet = settings.quiet or not progress
    if resume and folder is None:
        raise UserError("resume needs the run's folder, got no out; give the folder the run was started with")
    _check_outputs(settings, folder)
    check_measured(stop, settings)
    watch = Watch(**{name: getattr(settings, name) for name in RHYTHM})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=seeded_devices(runtime)))
        stack.callback(put_back, loan_of(teacher.net))
        stack.callback(lay_out_contiguously, student.net)
        runtime.launch()
        source = None if isinstance(text, Text) and Need.TEXT not in method.needs() else text
        with Conversion(quiet=quiet or runtime.rank > 0) as conversion:
            task, facts, embedding, _ = prepare(teacher, student, runtime, data, source, conversion, method)
        stack.callback(task.teacher.release)
        stack.callback(task.student.release)
        check_varies(facts[0])
        check(task, method, _usable_methods(task))
        exam = check_labelled(data.test, task, "test")
        look = replace(watch, test=exam, samples_every=settings.samples_every if folder or observers else 0)
        plan, fitted = _plan_to_run(task, method, plan, look, stop.hours, folder, resume, quiet)
        info = run_info(method, plan, task, facts, embedding, (teacher.name, student.name))
        info = replace(info, fitted=fitted, test_images=0 if exam is None else len(exam[0]))
        earlier = None
        if folder is not None and runtime.rank == 0:
            earlier = stack.enter_context(open_run(folder, info, resume, settings.save_every))
        again = resume if runtime.rank else earlier is not None
        runtime.barrier()
        first = check_teacher(task, exam)
        keep = Keep()
        saves = _checkpoint(folder, runtime)
        finished_rounds = saves.rounds() if saves is not None and again else 0
        watchers = observers_of(
            folder, earlier, finished_rounds, runtime, stack, not quiet, keep, settings.tensorboard, settings.track
        )
        if earlier is not None and saves is not None:
            info = note_resume(info, earlier, finished_rounds, saves.notes)
            info = replace(info, continues=earlier_stop(earlier))
            info = replace(info, overlap=earlier.info.overlap, fitted=earlier.info.fitted)
        info = look_for_duplicates(task, exam, info, watchers) if settings.overlap else info
        watchers = [keep, *watchers, *([] if runtime.rank else observers)]
        gauge = _gauge(task, method, plan, settings, stop, exam is None)
        watch = replace(
            look,
            observers=watchers,
            checkpoint=saves,
            gauge=gauge,
            judge=_judge(stop, gauge, runtime),
            ready=partial(tell, watchers, info, runtime),
        )
        with recording_end(watchers, keep, again, runtime, folder):
            state = run(task, method, plan, watch, resume=again)
            if settings.figures and folder is not None and runtime.rank == 0:  # export takes the hooks off
                _draw(folder, figures_of(task, method, plan, state, exam, overlap=info.overlap))
            files = _keep_student(task, info, folder, student.spec, settings.export, watch.judge)
            result = _result(info, keep.records, first, watch, files)
            _close(task, result, folder, watchers)
    weights = None if watch.judge is None else watch.judge.weights
    return Distilled(student.net.eval(), result, _export(folder, runtime, settings.onnx), weights)


def _check_kinds(plan: object, observers: object) -> None:
    """Refuse what Python passes as a plan or as observers and is none."""
    if not isinstance(plan, Plan | None):
        raise UserError(f"distill needs plan as a dfkd.Plan, got {type(plan).__name__}; write dfkd.Plan(rounds=...)")
    if not isinstance(observers, list | tuple):
        raise UserError(f"distill needs observers in a list, got {type(observers).__name__}; write observers=[...]")
    for observer in observers:  # an object that is no Observer may have its hooks
        if isinstance(observer, type) or not hasattr(observer, "rounded"):
            value = f"the class {observer.__name__}" if isinstance(observer, type) else type(observer).__name__
            raise UserError(f"distill needs observers that are objects of a dfkd.Observer, got {value}; give an object")


def _held_out_choice(estimate: Any) -> bool | Tensor | None:
    """``watch.estimate``: whether there are held-out images, or the images themselves, as a tensor."""
    if not isinstance(estimate, bool | Tensor | np.ndarray | None):
        raise UserError(
            f"distill needs estimate as True, False or held-out images, got {type(estimate).__name__}; give one of them"
        )
    return as_tensor(estimate, "distill", "estimate") if isinstance(estimate, np.ndarray) else estimate


def _plan_to_run(
    task: Task,
    method: Method[Any],
    plan: Plan,
    watch: Watch,
    hours: float | None,
    folder: Path | None,
    resume: bool,
    quiet: bool,
) -> tuple[Plan, Fitted | None]:
    """The plan that runs: as it was asked for, or made to fit ``hours``, once for a run and all its resumes."""
    if resume and folder is not None and (folder / RUN_FILE).exists():
        return begun_plan(folder, plan, hours)
    if hours is None:
        return plan, None
    if folder is not None:
        check_free(folder)
    announce(f"measuring the first rounds, to plan for {hours:g} hours", quiet or task.runtime.rank > 0)
    fit = fit_plan(task, method, plan, watch, hours, folder if folder is not None and folder.is_dir() else None)
    return fit.plan, Fitted(hours, fit.estimate.total, settings_of(plan))


def _gauge(task: Task, method: Method[Any], plan: Plan, settings: Watching, stop: Stopping, untested: bool) -> Gauge:
    """Held-out images, if they are given or asked for, or, where nothing is said, needed and cheap beside the run."""
    if isinstance(settings.estimate, Tensor):
        return gauge_on(task, settings.estimate)
    measured = is_measured(settings.estimate, stop.agreement_field is not None, untested, plan, task.classes)
    if settings.estimate is None and stop.agreement_field is None and not task.teacher.passes_gradients:
        measured = False  # no images can be made from such a teacher
    gauge = make_gauge(task, method, plan) if measured else Gauge({})
    if stop.agreement_field is not None and stop.held_out not in gauge.sets:
        raise UserError(
            f"stop.held_out needs images that the run makes of its own, got {stop.held_out!r} with "
            f"{type(method).__name__}, which makes none; leave it at inverted"
        )
    return gauge


def _judge(stop: Stopping, gauge: Gauge, runtime: Runtime) -> Judge | None:
    """Who follows the agreement: in process 0, where it is measured."""
    if runtime.rank > 0 or stop.held_out not in gauge.sets:
        return None
    return Judge(stop.held_out, stop.patience, stop.until_agreement, keep=stop.picked is not False)


def _check_outputs(settings: Watching, folder: Path | None) -> None:
    """Refuse, before any work, what needs a run folder or a package that is not there."""
    if settings.tensorboard and folder is None:
        raise UserError("tensorboard needs a run folder to write to, got none; give out")
    if settings.track != "none" and folder is None:
        raise UserError("track needs a run folder, got none; give out")
    if settings.track != "none":
        check_trackers([settings.track])
    if settings.onnx != "none" and folder is None:
        raise UserError("onnx needs a run folder to write to, got none; give out")
    if settings.onnx != "none":
        check_onnx()


def _usable_methods(task: Task) -> list[str]:
    """The methods this pair would do for; text can always be had, if only as class indices."""
    return [name for name, method in METHODS.items() if not {*unmet(task, method())} - {Need.TEXT}]


def _checkpoint(folder: Path | None, runtime: Runtime) -> Checkpoint | None:
    if folder is None:
        return None
    return Checkpoint(folder / CHECKPOINT_FOLDER, runtime.rank, runtime.world, runtime.barrier)


def _keep_student(
    task: Task,
    info: RunInfo,
    folder: Path | None,
    spec: Mapping[str, object] | None,
    export: bool,
    judge: Judge | None,
) -> dict[str, str]:
    """Write the student, and that of the picked round beside it; the files of the run by role."""
    if folder is None or task.runtime.rank > 0:
        return {}
    files = save_student(folder, task.student, spec, info, export)
    best = (judge.best_round, judge.weights) if judge is not None else (None, None)
    files |= save_picked(folder, task.student.net, *best)
    return {**files, "report": "report.html"}


def _export(folder: Path | None, runtime: Runtime, onnx: str) -> Exported | None:
    """The student as ONNX, where that is wanted; a run that has finished does not fail because of it."""
    if folder is None or runtime.rank > 0 or onnx == "none":
        return None
    try:
        return export(folder, formats=("onnx", "int8") if onnx == "int8" else ("onnx",))
    except UserError as error:
        warnings.warn(f"the student was not exported to ONNX: {error}", stacklevel=3)
        return None


def _result(
    info: RunInfo, records: list[RoundRecord], first: Evaluation | None, watch: Watch, files: dict[str, str]
) -> RunResult:
    """What the run came to; the final evaluation is the last there was."""
    evaluation = next((r.evaluation for r in reversed(records) if r.evaluation is not None), None)
    seconds = sum(r.seconds for r in records)
    picked = None if watch.judge is None else watch.judge.best_round
    return RunResult(info, records, watch.final or evaluation, first, seconds, files, watch.stopped, picked)


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
