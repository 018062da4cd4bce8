"""From settings to what runs: which method and plan, what the data are, the networks with their weights."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

import torch

from dfkd.cli.parse import SHORT, Tree, fill, merge, read_yaml, unknown
from dfkd.cli.trust import refuse_code
from dfkd.datasets import DATASETS
from dfkd.defaults import DEFAULT_METHOD
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.engine.sharing import widen
from dfkd.errors import UserError
from dfkd.imports import own_module, working_folder_importable
from dfkd.inputs import Facts
from dfkd.methods import COMBINATIONS, METHODS, load_offered, offered_methods
from dfkd.nets.quantized import frozen_copy
from dfkd.nets.zoo import ZOO, Classifier, build, check_image_shape
from dfkd.recipes import recipe
from dfkd.settings import Network
from dfkd.stored import open_weights
from dfkd.weights import Sidecar, find_weights, load_weights, read_sidecar

__all__ = [
    "Loaded",
    "find_method",
    "name_and_sidecar",
    "load",
    "with_weights_path",
    "inner_method_fields",
    "method_settings",
    "plain_settings",
    "seed_everything",
    "resolve",
    "wide_console",
    "with_projector",
    "with_recipe",
]

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and what stands beside these."""

    classifier: Classifier
    sidecar: Sidecar = field(default_factory=Sidecar)

    @property
    def name(self) -> str:
        """What it was asked for by."""
        return self.classifier.name or type(self.classifier.net).__name__


def with_recipe(tree: Tree) -> Tree:
    """The recipe that ``tree`` names (a file or a packaged one), with ``tree`` put over it.

    Raises:
        UserError: no such recipe, or one that is damaged.
    """
    name = tree.get("recipe")
    if name is None:
        return tree
    file = Path(name)
    looks = file.suffix in (".yaml", ".yml")
    base = read_yaml(file) if looks or file.is_file() else recipe(name)
    base.pop("expected", None)  # what the run should reach, for the reader
    rest = {key: value for key, value in tree.items() if key != "recipe"}
    refuse_code(base, rest, file)
    base = _long(base)
    if "method" in rest:
        base = _without_other_method(base, rest["method"])
        rest["method"] = _without_repeats(rest["method"], base.get("method"))
    return merge(base, rest)


def _without_other_method(base: Tree, words: Any) -> Tree:
    """A recipe without its method's settings, where ``words``, which are put over it, name another method."""
    section = base.get("method")
    name = words.get("name") if isinstance(words, Mapping) else words
    if not isinstance(section, Mapping) or name is None:
        return base
    own_name = section.get("name", DEFAULT_METHOD)
    if str(_plain_name(name)).lower() == str(_plain_name(own_name)).lower():
        return base
    if set(section) - {"name"}:
        warnings.warn(f"the recipe's settings of {own_name} are left out, for the method is {name}", stacklevel=3)
    return {key: value for key, value in base.items() if key != "method"}


def _without_repeats(words: Any, section: Any) -> Any:
    """Flags of a method, in which a word that only repeats the name of a part keeps that part's settings."""
    if not isinstance(words, Mapping) or not isinstance(section, Mapping):
        return words
    parts = {key: part for key, part in section.items() if isinstance(part, Mapping)}
    doubled = [key for key, part in parts.items() if _plain_name(words.get(key)) == _plain_name(part.get("name"))]
    return {key: {"name": word} if key in doubled and isinstance(word, str) else word for key, word in words.items()}


def _plain_name(name: Any) -> Any:
    return name.replace(":", ".") if isinstance(name, str) else name


def resolve(cls: type[T], tree: Tree) -> tuple[T, Method[Any], Plan]:
    """Resolve a settings tree into the settings of a command, the method and the plan (default: the method's).

    Raises:
        UserError: an unknown setting or method, or a wrong value.
    """
    tree = _long(tree)
    if "stop" not in {item.name for item in fields(cls)}:  # type: ignore[arg-type]
        tree.pop("stop", None)  # a recipe's rules, to a command that does not follow them
    if "bits" in tree:
        raise UserError(f"recipe needs to be one that distils, got one for {tree['bits']}; give it to `dfkd quantize`")
    chosen = tree.get("method", {})
    chosen = {"name": DEFAULT_METHOD, **chosen} if isinstance(chosen, Mapping) else chosen
    method = _method(chosen, "method", tree.get("data"), _is_upright(tree))
    plan_tree = tree.get("plan", {})
    if not isinstance(plan_tree, Mapping):
        raise UserError(f"plan needs settings of its own (name: value), got {plan_tree!r}; indent them below it")
    plan = fill(Plan, merge(asdict(method.budget()), plan_tree), "plan.")
    settings = fill(cls, {**tree, "method": {"name": str(chosen["name"])}, "plan": asdict(plan)})
    return settings, method, plan


def _method(setting: Any, at: str, data: Any, upright: bool) -> Method[Any]:
    """A method with its settings; methods it is made of first, each from settings of its own.

    ``data`` are the settings of the images, from which some defaults follow; ``upright``: a mirrored one is another.
    """
    if not isinstance(setting, Mapping) or "name" not in setting:
        actual, last = setting if setting is not None else "none", at.rpartition(".")[2]
        raise UserError(
            f"{at} needs the name of a method, got {actual}; give --{at} {DEFAULT_METHOD}, or {last}: {{name: "
            f"{DEFAULT_METHOD}}}"
        )
    kind = find_method(str(setting["name"]))
    inner = inner_method_fields(kind)
    ready = {part: _method(setting.get(part), f"{at}.{part}", data, upright) for part in inner}
    values = {key: value for key, value in setting.items() if key not in ("name", *inner)}
    return fill(kind, {**_augmentation(kind, data, upright), **values}, f"{at}.", ready)


def _preset(data: Any) -> str | None:
    """The known data set that the images are of."""
    preset = data.get("preset") if isinstance(data, Mapping) else None
    return preset if isinstance(preset, str) and preset in DATASETS else None


def _is_upright(tree: Tree) -> bool:
    """Is a mirrored image another one? So it is in some known data sets, and where the teacher was taught so."""
    preset, teacher = _preset(tree.get("data")), tree.get("teacher")
    if preset is not None:
        return DATASETS[preset].upright
    place = (teacher.get("weights") or teacher.get("name")) if isinstance(teacher, Mapping) else None
    if not isinstance(place, str) or not Path(place).expanduser().exists():
        return False
    try:
        return read_sidecar(find_weights(Path(place))).mirrored is False
    except UserError:  # told with its remedy when the teacher is loaded
        return False


def _augmentation(kind: type[Method[Any]], data: Any, upright: bool) -> Tree:
    """What the images make of a method's defaults: upright ones are not mirrored, small known ones are shifted less."""
    preset = _preset(data)
    defaults = {item.name: item.default for item in fields(kind)}  # type: ignore[arg-type]
    flip = {"flip": False} if isinstance(defaults.get("flip"), bool) and upright else {}
    pad = defaults.get("pad")
    if preset is None or not isinstance(pad, int) or data.get("image_size") is not None:
        return flip
    return {**flip, "pad": min(pad, min(DATASETS[preset].image_size[1:]) // 8)}


def inner_method_fields(kind: type[Method[Any]]) -> tuple[str, ...]:
    """The fields of a method that hold other methods."""
    types = get_type_hints(kind)
    classes = {item.name: get_origin(types[item.name]) or types[item.name] for item in fields(kind)}  # type: ignore[arg-type]
    return tuple(name for name, field in classes.items() if isinstance(field, type) and issubclass(field, Method))


def method_settings(method: Method[Any]) -> Tree:
    """A method as a recipe holds it: its name and its hyper-parameters, methods within it likewise."""
    kind = type(method)
    packaged = _all_methods().get(kind.__name__) is kind
    values = {item.name: getattr(method, item.name) for item in fields(method)}  # type: ignore[arg-type]
    settings = {key: method_settings(value) if isinstance(value, Method) else value for key, value in values.items()}
    return {"name": kind.__name__ if packaged else f"{kind.__module__}:{kind.__qualname__}", **settings}


def _all_methods() -> Mapping[str, type[Method[Any]]]:
    return {**METHODS, **COMBINATIONS}


def find_method(name: str) -> type[Method[Any]]:
    """A method by its short name, here or in another package, or the user's own class as ``package.module:Class``.

    Raises:
        UserError: no such method, with the nearest name; or the class cannot be imported, and why.
    """
    by_lower = {short.lower(): kind for short, kind in _all_methods().items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    entries = {short.lower(): point for short, point in offered_methods().items()}
    if name.lower() in entries:
        return load_offered(entries[name.lower()])
    module, separator, attribute = name.partition(":") if ":" in name else _split_name(name)
    if not separator:
        raise unknown(name, {**_all_methods(), **offered_methods()}, "method", "name")
    with working_folder_importable():
        loaded = getattr(own_module(f"method {name}", module), attribute, None)
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise UserError(
            f"method needs a subclass of dfkd.Method, got {name!r}; name one, or one of {', '.join(_all_methods())}"
        )
    return loaded


def name_and_sidecar(network: Network, role: str) -> tuple[str, Sidecar]:
    """The network's name and what stands beside its weights, before anything is built.

    Raises:
        UserError: neither a name nor a description that has one, or weights that are not there.
    """
    sidecar = Sidecar() if network.weights is None else read_sidecar(find_weights(Path(network.weights), role))
    if network.name is None and sidecar.name is not None:
        refuse_code({role: sidecar.name}, {}, f"the description beside {network.weights}")
    name = network.name or sidecar.name
    if name is None:
        raise _nameless(network, role)
    return name, sidecar


def _nameless(network: Network, role: str) -> UserError:
    if network.weights is None:
        return UserError(f"{role} needs a network, got no name; give --{role}.name, for example --{role} resnet18")
    open_weights(find_weights(Path(network.weights), role), role)  # what is no checkpoint is called by its name
    return UserError(
        f"{role} needs the name of the network whose weights these are, got {network.weights} without a description "
        f"beside it; give both: --{role}.name resnet18 --{role}.weights {network.weights}"
    )


def load(network: Network, facts: Facts, role: str, trained: bool = False) -> Loaded:
    """Build a network and load its weights.

    Args:
        network: name, weights, layers.
        facts: image size and classes.
        role: for messages.
        trained: refuse a network of the zoo, timm or torchvision without weights.

    Raises:
        UserError: an unknown network, unfit images, missing or unfit weights.
    """
    name, sidecar = name_and_sidecar(network, role)
    foreign = ":" in name and not name.startswith(("timm:", "torchvision:"))
    if trained and network.weights is None and not foreign:
        raise UserError(
            f"{role} needs trained weights, got the name {name} only; give --{role}.weights, or make them with "
            f"`dfkd teach {name}`"
        )
    check_image_shape(name, facts.image_size)
    classifier = build(name, facts.classes, facts.image_size[0])
    if trained and network.weights is None and _is_random(classifier, name, facts):
        warnings.warn(
            f"{role} {name} has other weights at every call: it is not trained; give --{role}.weights, or load them in "
            "the callable",
            stacklevel=2,
        )
    if sidecar.projector is not None:
        classifier = with_projector(classifier, facts.image_size, sidecar.projector)
    if sidecar.bits is not None:
        classifier = replace(
            classifier, net=frozen_copy(classifier.net, sidecar.bits), spec={**classifier.spec, "bits": sidecar.bits}
        )
    if network.weights is not None:
        load_weights(classifier.net, find_weights(Path(network.weights), role), role, network.key)
    described = replace(
        classifier, head=network.head or classifier.head, stages=network.stages or classifier.stages, name=name
    )
    return Loaded(described, sidecar)


def _is_random(classifier: Classifier, name: str, facts: Facts) -> bool:
    """Does the callable of that name give other weights when it is called again?"""
    with torch.random.fork_rng(devices=[]):
        again = build(name, facts.classes, facts.image_size[0])
    pairs = zip(classifier.net.parameters(), again.net.parameters(), strict=False)
    return any(a.shape == b.shape and not torch.equal(a, b) for a, b in pairs)


def with_projector(network: Classifier, image_size: tuple[int, int, int], projector: Mapping[str, Any]) -> Classifier:
    """The network with a projector to its teacher's classifier, as it was trained; its layers are looked for anew."""
    return Classifier(widen(network.net, image_size, **projector), spec=network.spec, name=network.name)


def with_weights_path(network: Network) -> Network:
    """A name that is the path of weights stands for these weights."""
    name = network.name
    if name is None or network.weights is not None or ":" in name or name in ZOO or not Path(name).exists():
        return network
    return replace(network, name=None, weights=name)


def seed_everything(seed: int, threads: int | None) -> None:
    """Threads and torch's default stream, before networks are made."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"runtime needs at least one thread, got {threads}; raise --runtime.threads")
        torch.set_num_threads(threads)
    torch.manual_seed(seed)


def wide_console() -> "Console":
    """Standard output; 110 columns where that is no terminal and COLUMNS does not say how wide it is."""
    from dfkd.cli.pipes import PipeConsole

    console = PipeConsole(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else PipeConsole(highlight=False, width=110)


def _long(tree: Tree) -> Tree:
    """Short forms written out: ``teacher: wrn16-2``, and a method given by class_path and init_args."""
    tree = {
        key: {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value for key, value in tree.items()
    }
    return {**tree, "method": _long_method(tree["method"])} if "method" in tree else tree


def _long_method(setting: Any) -> Any:
    """A method's settings with its name among them, and those of the methods it is made of likewise."""
    if isinstance(setting, str):
        return {"name": setting}
    if not isinstance(setting, Mapping):
        return setting
    if "class_path" in setting:
        arguments = {key: value for key, value in setting.items() if key not in ("class_path", "init_args")}
        setting = {"name": setting["class_path"], **(setting.get("init_args") or {}), **arguments}
    inner = inner_method_fields(find_method(str(setting["name"]))) if "name" in setting else ()
    return {key: _long_method(value) if key in inner else value for key, value in setting.items()}


def _split_name(name: str) -> tuple[str, str, str]:
    module, dot, attribute = name.rpartition(".")
    return module, dot, attribute


def plain_settings(value: Any) -> dict[str, Any]:
    """A section as plain values, without what is not set."""
    return {item.name: getattr(value, item.name) for item in fields(value) if getattr(value, item.name) is not None}
