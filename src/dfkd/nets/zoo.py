"""Networks by name: what builds them, where classifier and stages are, which image sizes they take."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from dfkd.errors import UserError
from dfkd.nets.adapters import adapt, suggest
from dfkd.nets.alexnet import AlexNet
from dfkd.nets.lenet import LeNet5
from dfkd.nets.mobilenetv2 import MobileNetV2
from dfkd.nets.plain import PlainCNN
from dfkd.nets.resnet import ResNet, thin_resnet
from dfkd.nets.shufflenet import ShuffleNetV1, ShuffleNetV2
from dfkd.nets.vgg import VGG
from dfkd.nets.wrn import WideResNet

_LAYERS = "_zoo_layers"  # an attribute of a network of the zoo: its head and stages


@dataclass(frozen=True)
class Entry:
    """One named network.

    Attributes:
        build: called as ``build(classes=..., channels=...)``.
        head: dotted name of the classifier, an ``nn.Linear``.
        stages: dotted names of the modules whose outputs are the stage maps, shallow to deep. The last one is
            what global pooling (LeNet, AlexNet: flattening) sees.
        multiple: a side of the images must be a multiple of this.
        fixed_side: the only side that works, in pixels, or None.
        summary: one line for people.
    """

    build: Callable[..., nn.Module]
    head: str
    stages: tuple[str, ...]
    multiple: int
    fixed_side: int | None
    summary: str


@dataclass(frozen=True)
class Classifier:
    """A network and what is known about it; only the network has to be.

    Attributes:
        net: maps normalised images (n, c, h, w) to logits (n, k).
        head: path of the linear layer that makes the logits; None: looked for.
        stages: paths of the layers whose outputs are stage maps, shallow to deep; None: looked for.
        spec: plain data from which ``build(**spec)`` makes the same architecture again; kept beside the weights.
        name: what it is called in records; None: its class.
    """

    net: nn.Module
    head: str | None = None
    stages: Sequence[str] | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    @property
    def layers(self) -> dict[str, Any]:
        """The layers that are known, as arguments of :func:`dfkd.engine.anatomy.survey`."""
        named_layers = {"head": self.head, "stages": self.stages}
        return {key: value for key, value in named_layers.items() if value is not None}


def _stage_names(count: int) -> tuple[str, ...]:
    return tuple(f"stages.{index}" for index in range(count))


def _lenet(widths: tuple[int, int, int], hidden: int, summary: str) -> Entry:
    make = partial(LeNet5, widths=widths, hidden=hidden)
    return Entry(make, "head", ("conv1", "conv2", "conv3"), 1, 32, summary)


def _plain(widths: tuple[int, int, int], hidden: int, summary: str) -> Entry:
    stages = tuple(f"convolutions.{index}" for index in (2, 5, 8))  # after each pooling
    return Entry(partial(PlainCNN, widths=widths, hidden=hidden), "head", stages, 1, 28, summary)


def _alexnet(widths: tuple[int, int, int, int, int], hidden: tuple[int, int], summary: str) -> Entry:
    return Entry(partial(AlexNet, widths=widths, hidden=hidden), "head", _stage_names(5), 1, 32, summary)


def _resnet(units: tuple[int, ...], bottleneck: bool, summary: str) -> Entry:
    make = partial(ResNet, units=units, bottleneck=bottleneck)
    return Entry(make, "head", _stage_names(4), 1, None, summary)


def _thin(depth: int, stem: int = 16, width: int = 16) -> Entry:
    summary = f"ResNet-{depth} for small images, widths {width}, {2 * width}, {4 * width}"
    make = partial(thin_resnet, depth=depth, stem=stem, width=width)
    return Entry(make, "head", _stage_names(3), 1, None, summary)


def _wrn(depth: int, width: int) -> Entry:
    # The third map is the one that pooling sees, after the final BatchNorm and ReLU (CAM needs that one); the others
    # are read before any activation.
    stages = (*_stage_names(2), "relu")
    make = partial(WideResNet, depth=depth, width=width)
    return Entry(make, "head", stages, 1, None, f"wide ResNet of depth {depth}, {width} times as wide")


def _vgg(depth: int, *convolutions: int) -> Entry:
    summary = f"VGG-{depth} with BatchNorm and one linear layer"
    return Entry(partial(VGG, convolutions=convolutions), "head", _stage_names(5), 8, None, summary)


def _mobilenet(width: float, stem_stride: int, projections: bool, summary: str) -> Entry:
    stages = ("stages.1", "stages.2", "stages.4", "top")  # the deepest map of every size
    make = partial(MobileNetV2, width=width, stem_stride=stem_stride, projections=projections)
    return Entry(make, "head", stages, 1, None, summary)


ZOO: Mapping[str, Entry] = {
    "lenet5": _lenet((6, 16, 120), 84, "LeNet-5"),
    "lenet5-half": _lenet((3, 8, 60), 84, "LeNet-5, half of the convolution filters"),
    "lenet5-half-dafl": _lenet((3, 8, 60), 42, "LeNet-5, half of everything"),
    "plain-cnn": _plain((32, 64, 128), 256, "three convolutions without BatchNorm, for 28 pixels"),
    "plain-cnn-small": _plain((8, 16, 16), 40, "the same with 8 to 16 channels"),
    "alexnet": _alexnet((48, 128, 192, 192, 128), (512, 256), "AlexNet for 32 pixels (of ZSKD)"),
    "alexnet-half": _alexnet((24, 64, 96, 96, 64), (512, 256), "AlexNet, half of the convolution filters"),
    "alexnet-half-zskd": _alexnet((24, 64, 96, 96, 64), (256, 128), "AlexNet, half of everything (ZSKD)"),
    "resnet18": _resnet((2, 2, 2, 2), False, "ResNet-18 with a stem for small images"),
    "resnet34": _resnet((3, 4, 6, 3), False, "ResNet-34 with a stem for small images"),
    "resnet50": _resnet((3, 4, 6, 3), True, "ResNet-50 with a stem for small images"),
    "resnet8": _thin(8),
    "resnet14": _thin(14),
    "resnet20": _thin(20),
    "resnet32": _thin(32),
    "resnet56": _thin(56),
    "resnet110": _thin(110),
    "resnet116": _thin(116),
    "resnet8x4": _thin(8, stem=32, width=64),
    "resnet32x4": _thin(32, stem=32, width=64),
    "resnet110x2": _thin(110, stem=16, width=32),
    "wrn16-1": _wrn(16, 1),
    "wrn16-2": _wrn(16, 2),
    "wrn40-1": _wrn(40, 1),
    "wrn40-2": _wrn(40, 2),
    "vgg8": _vgg(8, 1, 1, 1, 1, 1),
    "vgg11": _vgg(11, 1, 1, 2, 2, 2),
    "vgg13": _vgg(13, 2, 2, 2, 2, 2),
    "vgg16": _vgg(16, 2, 2, 3, 3, 3),
    "vgg19": _vgg(19, 2, 2, 4, 4, 4),
    "mobilenetv2-half": _mobilenet(0.5, 2, False, "MobileNetV2 x0.5, stem of stride 2"),
    "mobilenetv2": _mobilenet(1.0, 2, False, "MobileNetV2 x1.0, stem of stride 2"),
    "mobilenetv2-cifar": _mobilenet(1.0, 1, True, "MobileNetV2 x1.0, stem of stride 1 (ZAQ)"),
    "shufflenetv1": Entry(ShuffleNetV1, "head", _stage_names(3), 1, None, "ShuffleNetV1 with three groups"),
    "shufflenetv2": Entry(ShuffleNetV2, "head", ("stages.0", "stages.1", "top"), 1, None, "ShuffleNetV2 x1"),
}
WRN = re.compile(r"wrn(\d+)-(\d+)")


def find(name: str) -> Entry | None:
    """Look up a name of the zoo, or any legal ``wrn<depth>-<width>``; None for names with a colon.

    Raises:
        UserError: the name has no colon and is not known, or the depth of a WRN is not 6n + 4.
    """
    if name in ZOO:
        return ZOO[name]
    wide = WRN.fullmatch(name)
    if wide is not None:
        return _parsed_wrn(name, int(wide[1]), int(wide[2]))
    if ":" in name:
        return None
    otherwise = "use a name such as resnet18, timm:NAME, torchvision:NAME, hf:REPO or package.module:callable"
    raise UserError(f"build needs the name of a network, got {name!r}; {suggest(name, ZOO, otherwise)}")


def _parsed_wrn(name: str, depth: int, width: int) -> Entry:
    if width < 1:
        raise UserError(f"{name} needs a width of at least 1, got {width}; write wrn{depth}-1")
    if depth < 10 or (depth - 4) % 6:
        legal = max(10, depth - (depth - 4) % 6)
        raise UserError(f"{name} needs a depth of 6n + 4 with n at least 1, got {depth}; write wrn{legal}-{width}")
    return _wrn(depth, width)


def build(name: str, classes: int, channels: int = 3) -> Classifier:
    """Build a network by name, with fresh weights (``hf:`` alone comes with trained ones).

    Args:
        name: a name of ``ZOO``, ``wrn<depth>-<width>``, ``timm:NAME``, ``torchvision:NAME``, ``hf:REPO`` (an
            image classifier of transformers; a local folder works too), or ``package.module:callable``. The
            callable gets ``classes=`` and ``channels=`` where it has such parameters, and may lie in the
            working folder.
        classes: number of classes.
        channels: image channels.

    Raises:
        UserError: unknown name, a package that is not installed, or numbers the network cannot have.
    """
    for what, value in {"classes": classes, "channels": channels}.items():
        if value < 1:
            raise UserError(f"build needs {what} of at least 1, got {value}; count them in the data")
    spec: dict[str, Any] = {"name": name, "classes": classes, "channels": channels}
    entry = find(name)
    if entry is None:
        return Classifier(adapt(name, classes, channels), spec=spec, name=name)
    net = entry.build(classes=classes, channels=channels)
    setattr(net, _LAYERS, (entry.head, entry.stages))
    return Classifier(net, entry.head, entry.stages, spec, name)


def known_layers(net: nn.Module) -> tuple[str | None, tuple[str, ...] | None]:
    """Head and stages of a network that :func:`build` made from the zoo; None, None of any other.

    They go with the module, so that ``build(name).net`` and the name stand for the same layers everywhere.
    """
    layers: tuple[str, tuple[str, ...]] | tuple[None, None] = getattr(net, _LAYERS, (None, None))
    return layers


def forget_layers(net: nn.Module) -> None:
    """Layers of ``net`` are changed: they have to be looked for anew."""
    if hasattr(net, _LAYERS):
        delattr(net, _LAYERS)


def check_image_shape(name: str, image_shape: tuple[int, int, int]) -> None:
    """Check that a network of the zoo takes images (c, h, w); names with a colon are not checked.

    Raises:
        UserError: a side that the network cannot take, or an unknown name.
    """
    entry = find(name)
    if entry is None:
        return
    _, height, width = image_shape
    actual = f"got {height} by {width}; resize the images or choose another network"
    if entry.fixed_side is not None and (height, width) != (entry.fixed_side, entry.fixed_side):
        raise UserError(f"{name} needs images of {entry.fixed_side} by {entry.fixed_side} pixels, {actual}")
    if min(height, width) < 1 or height % entry.multiple or width % entry.multiple:
        raise UserError(f"{name} needs image sides that are multiples of {entry.multiple}, {actual}")
