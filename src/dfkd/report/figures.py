"""The figures of a run, drawn from what it left behind.

Nothing here changes what was trained: random numbers come from streams of its own, modes are put back, and a figure
that cannot be drawn is left out with one line that says why.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from dfkd.data.overlap import NearDuplicates
from dfkd.engine.core import Method, State, Task
from dfkd.engine.measures import RUN_MEASURES, Measure
from dfkd.engine.plan import Plan
from dfkd.engine.records import RoundRecord, RunResult
from dfkd.engine.views import View
from dfkd.errors import UserError
from dfkd.report.canvas import Format
from dfkd.report.curves import Panel, accuracy_panel, chart, loss_panels, measure_panels
from dfkd.report.drawers import DRAWERS, drawn_view
from dfkd.report.gallery import CURVES, Figure, Gallery
from dfkd.report.scene import Examples, Scene, newest_images

__all__ = ["curves_of", "figures_of"]

T = TypeVar("T")

SEED = 0


def figures_of(
    task: Task,
    method: Method[Any],
    plan: Plan,
    state: State | None,
    test: Examples | None = None,
    form: Format = "svg",
    overlap: NearDuplicates | None = None,
) -> Gallery:
    """Draw the figures of :data:`~dfkd.report.drawers.DRAWERS` and the method's views. Never fails.

    Args:
        task, method, plan: what ran.
        state: what :func:`dfkd.engine.driver.run` returned, or None.
        test: labelled real images (uint8, int64).
        form: of figures made of lines; images are always PNG.
        overlap: what ``RunInfo.overlap`` says.
    """
    runtime = copy.copy(task.runtime)
    runtime.generator = torch.Generator(runtime.device).manual_seed(SEED)
    task = replace(task, runtime=runtime)
    figures: list[Figure] = []
    skipped: dict[str, str] = {}
    with _in_eval_mode(task, state):
        examples = _try("images", skipped, lambda: newest_images(task, method, plan, state))
        examples = newest_images(task, method, plan, None) if examples is None else examples
        scene = Scene(task, method, state, examples, test, form, SEED, overlap)
        for name, draw in {**_standard_figures(scene), **_method_figures(scene, skipped)}.items():
            runtime.generator.manual_seed(SEED)  # no figure depends on which others are drawn
            figure = _try(name, skipped, draw)
            if figure is not None:
                figures.append(figure)
    return Gallery(figures, skipped)


def _standard_figures(scene: Scene) -> dict[str, Callable[[], Figure | None]]:
    """The figures that every method has."""
    return {name: partial(draw, scene) for name, draw in DRAWERS.items()}


def _method_figures(scene: Scene, skipped: dict[str, str]) -> dict[str, Callable[[], Figure]]:
    """The views of the method."""
    real = None if scene.test is None else scene.test[0]
    views = _try("views", skipped, lambda: scene.method.views(scene.task, scene.state, real)) or {}

    def draw(name: str, view: Callable[[], View]) -> Figure:
        return drawn_view(name, view(), scene.form)

    return {name: partial(draw, name, view) for name, view in views.items()}


def curves_of(
    records: Sequence[RoundRecord],
    result: RunResult | None,
    form: Format = "svg",
    measures: Mapping[str, Measure] = RUN_MEASURES,
) -> list[Figure]:
    """Accuracy, losses and other measures (``measures`` by name) over rounds, as far as there are any."""
    teacher = None if result is None else result.teacher_evaluation
    quality, losses, measured = (
        [accuracy_panel(records, teacher)],
        loss_panels(records),
        measure_panels(records, measures),
    )
    groups: list[tuple[Sequence[Panel], str, tuple[float, float]]] = [
        (quality, "Accuracy of the student and agreement with the teacher over rounds.", (6.4, 3.4)),
        (losses, "Losses over rounds, each on its own scale.", (3.0, 2.2)),
        (measured, "What else was measured, over rounds, each on its own scale.", (3.0, 2.2)),
    ]
    return [
        Figure(name, caption, chart(panels, form, size), caption)
        for name, (panels, caption, size) in zip(CURVES, groups, strict=True)
        if panels and not panels[0].empty
    ]


def _try(name: str, skipped: dict[str, str], draw: Callable[[], T]) -> T | None:
    """What ``draw`` returns; where it fails, None, and the reason in ``skipped``."""
    try:
        return draw()
    except UserError as error:
        skipped[name] = str(error)
    except Exception as error:  # a finished run is not to fail because of a picture, whatever the reason
        lines = str(error).strip().splitlines()
        skipped[name] = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return None


def _modules(value: object) -> Iterator[nn.Module]:
    """Every network that a method remembers: generators make images in eval mode, also when just read from a file."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, State) and is_dataclass(value):
        for item in fields(value):
            yield from _modules(getattr(value, item.name))
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _modules(item)


@contextmanager
def _in_eval_mode(task: Task, state: State | None) -> Iterator[None]:
    """Everything in eval mode for a while; then modes and torch's default streams are as before."""
    modules: list[nn.Module] = [task.teacher, task.student, *_modules(state)]
    modes = [(module, module.training) for part in modules for module in part.modules()]
    device = task.runtime.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        for part in modules:
            part.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
