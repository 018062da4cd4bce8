"""`dfkd inspect`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from dfkd.cli.config import Inspect
from dfkd.cli.names import check_name
from dfkd.cli.setup import Loaded, load, name_and_sidecar, wide_console, with_weights_path
from dfkd.engine.anatomy import Anatomy
from dfkd.engine.core import Need, unmet
from dfkd.engine.runtime import Runtime
from dfkd.inputs import Facts, facts_of
from dfkd.methods import METHODS
from dfkd.nets.count import count_parameters
from dfkd.nets.zoo import ZOO, build
from dfkd.prepare import Prepared, prepare
from dfkd.report.summary import count, operations
from dfkd.settings import Network

__all__ = ["run"]

CLASSES = 10


def run(settings: Inspect) -> int:
    """Say what the teacher (and the student) is, and which methods fit the pair; without a name, which there are."""
    if settings.teacher == settings.student == Network():
        return _list(settings.json)
    settings = replace(
        settings, teacher=with_weights_path(settings.teacher), student=with_weights_path(settings.student)
    )
    check_name(settings.teacher, "teacher")
    check_name(settings.student, "student")
    _, sidecar = name_and_sidecar(settings.teacher, "teacher")
    facts = facts_of(settings.data, sidecar, spared=("mean", "std"))
    nets = [load(settings.teacher, facts, "teacher")]
    if settings.student.name or settings.student.weights:
        nets.append(load(settings.student, facts, "student"))
    pair = _prepare_pair(settings, facts, nets)
    anatomies = pair.surveys[: len(nets)]
    missing = {name: unmet(pair.task, kind()) for name, kind in METHODS.items()}  # with their default settings
    if settings.json:
        print(json.dumps(_plain(facts, nets, anatomies, missing), indent=1))
    else:
        _show(facts, nets, anatomies, missing)
    return 0


def _list(plain: bool) -> int:
    """The networks of the zoo, with their parameters for ten classes of colour images."""
    with torch.device("meta"):  # parameters are counted, not made
        sizes = {name: count_parameters(build(name, CLASSES).net) for name in ZOO}
    if plain:
        about = [{"name": name, "parameters": sizes[name], "summary": ZOO[name].summary} for name in ZOO]
        print(json.dumps(about, indent=1))
        return 0
    from rich.table import Table

    console = wide_console()
    sheet = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    sheet.add_column("network", no_wrap=True, min_width=17)
    sheet.add_column("parameters", justify="right", no_wrap=True)
    sheet.add_column(f"for {CLASSES} classes and 3 channels", overflow="fold")
    for name, entry in ZOO.items():
        side = "" if entry.fixed_side is None else f"; {entry.fixed_side} pixels only"
        sheet.add_row(name, count(sizes[name]), f"{entry.summary}{side}")
    with console.capture() as table:
        console.print(sheet)
    print("\n".join(line.rstrip() for line in table.get().splitlines()))  # in a pipe no spaces at the ends
    console.print(
        "\nOther wide ResNets likewise, such as wrn28-10. From elsewhere: timm:NAME, torchvision:NAME, hf:REPO, "
        "package.module:callable.\n`dfkd inspect NAME --data cifar10` says more of one.",
        markup=False,
    )
    return 0


def _prepare_pair(settings: Inspect, facts: Facts, nets: Sequence[Loaded]) -> Prepared:
    """The pair as a run would take it. A teacher alone is its own student."""
    teacher, student = nets[0].classifier, nets[-1].classifier
    channels = facts.image_size[0]
    data = replace(
        settings.data,
        image_size=facts.image_size,
        mean=facts.mean or [0.0] * channels,  # needs do not depend on it
        std=facts.std or [1.0] * channels,
        classes=facts.class_names,
    )
    if len(nets) == 1:
        student = load(settings.teacher, facts, "teacher").classifier  # a copy: not every network can be copied
    return prepare(teacher, student, Runtime(device="cpu").launch(), data, settings.text)


def _plain(
    facts: Facts, nets: Sequence[Loaded], anatomies: Sequence[Anatomy], missing: dict[str, list[Need]]
) -> dict[str, Any]:
    about: dict[str, Any] = {
        role: {"name": net.name, **asdict(anatomy)}
        for role, net, anatomy in zip(("teacher", "student"), nets, anatomies, strict=False)
    }
    return {
        **about,
        "image_size": list(facts.image_size),
        "classes": facts.classes,
        "names": list(facts.names),
        "methods": {name: [need.what for need in needs] for name, needs in missing.items()},
    }


def _show(facts: Facts, nets: Sequence[Loaded], anatomies: Sequence[Anatomy], missing: dict[str, list[Need]]) -> None:
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    sheet.add_column("")
    for role, net in zip(("teacher", "student"), nets, strict=False):
        sheet.add_column(f"{role} {net.name}", overflow="fold")
    for title, cells in zip(_TITLES, zip(*(_cells(anatomy) for anatomy in anatomies), strict=True), strict=True):
        sheet.add_row(title, *cells)
    console = wide_console()
    shape = " x ".join(map(str, facts.image_size))
    console.print(f"Images {shape} in [0, 1], mean {_numbers(facts.mean)}, std {_numbers(facts.std)}", highlight=False)
    console.print(sheet)
    console.print("\nMethods, with their default settings", style="bold")
    for name, needs in missing.items():
        verdict = "fits" if not needs else f"needs {'; '.join(need.what for need in needs)}"
        console.print(f"  {name:<14}{verdict}", highlight=False, style="" if not needs else "dim")
    if len(nets) == 1:
        console.print("\nFor a pair add --student NAME.", highlight=False)


_TITLES = ("class", "parameters", "FLOPs per image", "BatchNorm layers", "classifier", "stages", "classes")


def _cells(anatomy: Anatomy) -> tuple[str, ...]:
    head = f"{anatomy.head} ({anatomy.features} features)" if anatomy.head else "no linear layer makes the logits"
    pairs = zip(anatomy.stages, anatomy.sides, strict=False)
    stages = ", ".join(f"{name} ({'x'.join(map(str, side))})" for name, side in pairs)
    sizes = count(anatomy.parameters), operations(None if anatomy.macs is None else 2 * anatomy.macs)
    return anatomy.kind, *sizes, _norms(anatomy), head, stages or "none", str(anatomy.classes)


def _norms(anatomy: Anatomy) -> str:
    """How many BatchNorm layers are read, which of them run more than once, and which never run."""
    text = f"{anatomy.norms} with {count(anatomy.norm_channels)} channels" if anatomy.norms else "none"
    if anatomy.repeated_norms:
        text += f"; run more than once: {', '.join(anatomy.repeated_norms)}"
    return f"{text}; never run, not read: {', '.join(anatomy.idle_norms)}" if anatomy.idle_norms else text


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values) or "not given"
