"""Networks from elsewhere: ``timm:NAME``, ``torchvision:NAME``, ``hf:REPO``, ``package.module:callable``."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch import nn

from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.imports import first_line, own_module, working_folder_importable
from dfkd.nets.vision import import_torchvision, mend_torchvision
from dfkd.types import Logits, Maps


class LogitsOnly(nn.Module):
    """A transformers image classifier whose forward takes a batch of images and returns the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Maps) -> Logits:
        """Classify images (n, channels, h, w), normalised as the model expects."""
        return self.model(pixel_values=x).logits


def suggest(name: str, names: Iterable[str], otherwise: str) -> str:
    """Say ``try a, b, c`` with the known names nearest to ``name``, or ``otherwise`` where none is near."""
    near = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
    return f"try {', '.join(near)}" if near else otherwise


def own_code(name: str) -> bool:
    """Whether a network's name imports a module of the user's; the prefixes import only installed packages."""
    return ":" in name and name.partition(":")[0] not in ("timm", "torchvision", "hf")


def _import(package: str, extra: str) -> ModuleType:
    """Import an optional package after torchvision has been mended, or name the command that installs it."""
    mend_torchvision()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
    raise UserError(f"{extra}: needs the package {package}, got none installed; run `{install_extra(extra)}`")


def build_timm(name: str, classes: int, channels: int) -> nn.Module:
    """Build a timm model with untrained weights."""
    timm = _import("timm", "timm")
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        hint = suggest(name, timm.list_models(), "timm.list_models() lists them")
        raise UserError(f"timm: needs the name of a timm model, got {name!r}; {hint}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    except Exception as error:  # an unknown tag, a hub that does not answer: timm raises almost any kind of error
        raise UserError(
            f"timm:{name} needs to be a model that timm can build for {classes} classes and {channels} channels, got "
            f"{_first_sentence(error)}; check the name, and the network where it is one of the hub"
        ) from error


def build_torchvision(name: str, classes: int, channels: int) -> nn.Module:
    """Build a torchvision classifier with untrained weights; they all take three channels."""
    models = import_torchvision().models
    names = models.list_models(module=models)
    if name not in names:
        hint = suggest(name, names, "torchvision.models.list_models() lists them")
        raise UserError(f"torchvision: needs the name of a torchvision classifier, got {name!r}; {hint}")
    if channels != 3:
        raise UserError(f"torchvision:{name} needs 3 channels, got {channels}; choose a network of the zoo or of timm")
    return models.get_model(name, weights=None, num_classes=classes)


def build_hf(name: str, classes: int, channels: int) -> nn.Module:
    """Load an image classifier of transformers with its trained weights, from a folder or a repository."""
    transformers = _import("transformers", "hf")
    try:
        model = transformers.AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise UserError(
            f"hf: needs a folder or repository with an image classifier, got {name!r}; check the name and the network"
        ) from error
    except Exception as error:  # a text model, or a type of model that the installed transformers does not know
        raise UserError(
            f"hf: needs a folder or repository with an image classifier, got {name!r} "
            f"({_first_sentence(error)}); choose a model for image classification that transformers knows"
        ) from error
    inputs = getattr(model.config, "num_channels", channels)
    if inputs != channels:
        raise UserError(f"hf:{name} needs {inputs} channels, got {channels}; choose another network or other data")
    if model.config.num_labels != classes:
        raise UserError(
            f"hf:{name} needs {model.config.num_labels} classes, got {classes}; fine-tune it for your classes first"
        )
    return LogitsOnly(model)


def _first_sentence(error: Exception) -> str:
    return first_line(error).partition(". ")[0].rstrip(".")


def _locate(name: str) -> Callable[..., Any]:
    """Import ``package.module:callable``."""
    module_name, _, attribute = name.partition(":")
    module = own_module(name, module_name)
    value = getattr(module, attribute, None)
    if not callable(value):
        hint = suggest(attribute, vars(module), f"define it in {module.__name__}")
        raise UserError(f"{name} needs a callable {attribute!r} in {module_name}, got {value!r}; {hint}")
    return value


def _arguments(name: str, make: Callable[..., Any], values: dict[str, int]) -> dict[str, int]:
    """Those of ``values`` that ``make`` takes.

    Raises:
        UserError: it needs others.
    """
    try:
        accepted = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [
        key
        for key, parameter in accepted.items()
        if parameter.default is parameter.empty and parameter.kind not in variadic
    ]
    lacking = [key for key in required if key not in values or accepted[key].kind is inspect.Parameter.POSITIONAL_ONLY]
    if lacking:
        raise UserError(
            f"{name} needs to be callable without arguments other than classes and channels, got one that asks for "
            f"{', '.join(lacking)}; wrap it in a function"
        )
    return {key: value for key, value in values.items() if key in accepted}


def build_callable(name: str, classes: int, channels: int) -> nn.Module:
    """Call ``package.module:callable``, with ``classes=`` and ``channels=`` where it has such parameters."""
    with working_folder_importable():
        make = _locate(name)
        arguments = _arguments(name, make, {"classes": classes, "channels": channels})
        try:
            net = make(**arguments)
        except UserError:
            raise
        except Exception as error:  # code of the user may fail in any way
            arguments_text = ", ".join(f"{key}={value}" for key, value in arguments.items())
            raise UserError(
                f"{name} needs to return a network when it is called with ({arguments_text}), got {first_line(error)}; "
                "correct it (--debug shows where)"
            ) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{name} needs to return a torch.nn.Module, got {type(net).__name__}; return the network")
    return net


def adapt(name: str, classes: int, channels: int) -> nn.Module:
    """Build a network whose name has a colon; see the module's first line for the forms."""
    prefix, _, rest = name.partition(":")
    if not prefix or not rest:
        raise UserError(
            f"build needs PREFIX:NAME or package.module:callable, got {name!r}; write both sides of the colon"
        )
    if prefix == "timm":
        return build_timm(rest, classes, channels)
    if prefix == "torchvision":
        return build_torchvision(rest, classes, channels)
    if prefix == "hf":
        return build_hf(rest, classes, channels)
    return build_callable(name, classes, channels)
