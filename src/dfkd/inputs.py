"""From what a caller gives to checked sections: fields under their own names, facts about the images, the runtime."""

import difflib
import operator
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfkd.data.text import TextEmbedding, class_list
from dfkd.datasets import DATASETS
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.nets.zoo import Classifier
from dfkd.settings import Images, Machine, Stopping, TeachImages, Text, Watching
from dfkd.weights import Sidecar

__all__ = [
    "Facts",
    "as_classifier",
    "check_measured",
    "check_weights",
    "facts_of",
    "output_folder",
    "runtime_of",
    "threads_of",
    "with_fields",
]

# What each section may be; the first stands for None.
KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "data": (Images,),
        "text": (Text, TextEmbedding, Tensor, np.ndarray),
        "runtime": (Machine, Runtime),
        "watch": (Watching,),
        "stop": (Stopping,),
    }
)


@dataclass(frozen=True)
class Facts:
    """What the teacher was trained on; ``classes`` is 0 where the teacher's outputs are to say it."""

    image_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...] | int | None:
        """The names of the classes, or their number."""
        return self.names or self.classes or None


def as_classifier(network: nn.Module | Classifier) -> Classifier:
    """A plain module as a classifier of which nothing else is known.

    Raises:
        UserError: something else, or weights that cannot be run.
    """
    if not isinstance(network, nn.Module | Classifier):
        raise UserError(
            f"teacher and student need to be modules, got {type(network).__name__}; give torch modules, or what "
            "dfkd.build returns"
        )
    classifier = network if isinstance(network, Classifier) else Classifier(network)
    check_weights(classifier.net)
    return classifier


def check_weights(net: nn.Module) -> None:
    """Refuse weights that have no values (the meta device), or that autograd cannot use (``torch.inference_mode``).

    Lazy layers need none yet.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            continue
        if tensor.is_meta:
            raise UserError(
                f"{type(net).__name__} needs weights with values, got {name} on the meta device; make the network on "
                "the CPU and load its state dict"
            )
        if tensor.is_inference():
            raise UserError(
                f"{type(net).__name__} needs weights that can pass gradients, got {name}, which was made in "
                "torch.inference_mode; make the network and load its weights outside of it"
            )


def with_fields(who: str, sections: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with ``values`` put over their fields: every field may be given by its own name.

    Args:
        who: for messages.
        sections: dataclasses by name (:data:`KINDS`), None for its defaults; one that is something else (a ready
            object) takes no fields.
        values: field name to value.

    Raises:
        UserError: a section of another kind, a name that no section has, with the nearest one, or the field of a
            section that is a ready object.
    """
    sections = {name: _section(who, name, section) for name, section in sections.items()}
    owners = {item.name: name for name, section in sections.items() for item in _fields(section)}
    merged = dict(sections)
    for key, value in values.items():
        if key not in owners:
            near = difflib.get_close_matches(key, owners, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(owners))}"
            raise UserError(f"{who} needs settings it knows, got {key!r}; {hint}")
        merged[owners[key]] = replace(merged[owners[key]], **{key: value})
    return merged


def _section(who: str, name: str, section: Any) -> Any:
    """A section of its kind: as it is, the default for None; a text is the name of an encoder."""
    if section is None:
        return KINDS[name][0]()
    if name == "text" and isinstance(section, str):
        return Text(section)  # type: ignore[arg-type]
    if not isinstance(section, KINDS[name]):
        kind = KINDS[name][0].__name__
        raise UserError(
            f"{who} needs {name} as a dfkd.{kind}, got {type(section).__name__}; write dfkd.{kind}(...), or give its "
            "fields by their own names"
        )
    return section


def _fields(section: Any) -> tuple[Any, ...]:
    return fields(section) if is_dataclass(section) and not isinstance(section, type) else ()


def facts_of(
    data: Images | TeachImages, sidecar: Sidecar | None = None, who: str = "teacher", spared: Collection[str] = ()
) -> Facts:
    """Put together what is given, what stands beside the weights, and what is known of the data set; in this order.

    Args:
        data: what is given.
        sidecar: what stands beside the weights.
        who: for messages.
        spared: which of ``mean``, ``std`` and ``classes`` may be missing.

    Raises:
        UserError: something is missing, or sizes that do not fit each other.
    """
    beside, dataset = sidecar or Sidecar(), DATASETS[data.preset] if data.preset else None
    size = data.image_size if data.image_size is not None else beside.image_size
    if size is None and dataset is not None:
        size = dataset.image_size
    mean = data.mean if data.mean is not None else beside.mean or (dataset.mean if dataset else None)
    std = data.std if data.std is not None else beside.std or (dataset.std if dataset else None)
    classes = data.classes if data.classes is not None else beside.names or beside.classes or data.preset
    for fact, value in (("image_size", size), ("mean", mean), ("std", std), ("classes", classes)):
        if value is None and fact not in spared:
            raise UserError(
                f"{who} needs data.{fact}, got none; give --data.{fact}, a known data set (--data cifar10), "
                "or weights with a description beside them"
            )
    count, names = _classes(classes, who)
    mean, std = (() if values is None else values for values in (mean, std))
    return Facts((1, 1, 1) if size is None else size, mean, std, count, names)  # type: ignore[arg-type]


def _classes(classes: Any, who: str) -> tuple[int, tuple[str, ...]]:
    """How many classes there are (0 where nothing is said), and their names, if they are known."""
    if classes is None:
        return 0, ()
    if isinstance(classes, str):
        return len(class_list(classes)), class_list(classes)
    with suppress(TypeError):
        return operator.index(classes), ()
    if isinstance(classes, float):
        raise UserError(f"{who} needs classes as names or a whole number, got {classes!r}; write {int(classes)}")
    names: tuple[Any, ...] | None = None
    with suppress(TypeError):
        names = None if isinstance(classes, Mapping | Set) else tuple(classes)
    if names is None or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{who} needs classes as their number or a list of names in label order, got {classes!r}; give a list of "
            "texts, or the number"
        )
    return len(names), tuple(map(str, names))


def check_measured(stop: Stopping, watch: Watching) -> None:
    """Refuse a rule about an agreement that is not to be measured.

    Raises:
        UserError: naming the rule.
    """
    if stop.agreement_field is not None and watch.estimate is False:
        raise UserError(
            f"stop.{stop.agreement_field} needs the agreement on held-out images, got watch.estimate false; leave "
            "one of them out"
        )


@contextmanager
def threads_of(machine: Machine | Runtime) -> Iterator[None]:
    """As many CPU threads as these settings say, for as long as this lasts.

    Raises:
        UserError: fewer than one.
    """
    threads = machine.threads if isinstance(machine, Machine) else None
    if threads is not None and threads < 1:
        raise UserError(f"runtime needs at least one thread, got {threads}; raise --runtime.threads")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output_folder(out: object, who: str) -> Path | None:
    """The folder that ``out`` names, which may begin with ``~``; None for None.

    Args:
        out: a text or a path.
        who: the function that was called, for messages.

    Raises:
        UserError: something else.
    """
    if out is None:
        return None
    if not isinstance(out, str | Path):
        raise UserError(f"{who} needs out as a path, got {type(out).__name__}; give a text or a pathlib.Path")
    return Path(out).expanduser()


def runtime_of(machine: Machine | Runtime) -> Runtime:
    """The runtime that these settings ask for."""
    if isinstance(machine, Runtime):
        return machine
    if machine.devices < 1:
        raise UserError(f"runtime needs at least one process, got {machine.devices}; raise --runtime.devices")
    return Runtime(
        device=machine.device,
        devices=machine.devices,
        precision=machine.precision,
        compile=machine.compile,
        compile_mode=machine.compile_mode,
        sync_bn=machine.sync_bn,
        channels_last=machine.channels_last,
        seed=machine.seed,
    )
