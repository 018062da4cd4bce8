"""The classifiers against the published sizes, the zoo's metadata against the networks, the adapters."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.nets.alexnet import AlexNet
from dfkd.nets.count import count_macs, count_parameters
from dfkd.nets.initialise import initialise
from dfkd.nets.layers import ChannelShuffle
from dfkd.nets.mobilenetv2 import InvertedResidual
from dfkd.nets.shufflenet import UnitV1, UnitV2
from dfkd.nets.supernet import check_ranges
from dfkd.nets.vgg import VGG
from dfkd.nets.vision import import_torchvision
from dfkd.nets.wrn import WideResNet, WideUnit
from dfkd.nets.zoo import ZOO, Classifier, build, check_image_shape, find

# name: parameters by classes, BatchNorm layers and their channels, multiply-adds (32 px, 10 classes;
# millions, rounded), width before the head. Counted on the published implementations.
SIZES: dict[str, tuple[dict[int, int], int, int, float, int]] = {
    "resnet18": ({10: 11_173_962, 100: 11_220_132, 200: 11_271_432}, 20, 4_800, 555, 512),
    "resnet34": ({10: 21_282_122, 100: 21_328_292, 200: 21_379_592}, 36, 8_512, 1159, 512),
    "resnet50": ({10: 23_520_842, 100: 23_705_252, 200: 23_910_152}, 53, 26_560, 1298, 2048),
    "wrn16-1": ({10: 175_066, 100: 180_916, 200: 187_416}, 13, 464, 26.7, 64),
    "wrn16-2": ({10: 691_674, 100: 703_284, 200: 716_184}, 13, 912, 101, 128),
    "wrn40-1": ({10: 563_930, 100: 569_780, 200: 576_280}, 37, 1_360, 83.3, 64),
    "wrn40-2": ({10: 2_243_546, 100: 2_255_156, 200: 2_268_056}, 37, 2_704, 328, 128),
    "vgg8": ({10: 3_918_858, 100: 3_965_028}, 5, 1_472, 96, 512),
    "vgg11": ({10: 9_231_114, 100: 9_277_284, 200: 9_328_584}, 8, 2_752, 209, 512),
    "vgg13": ({10: 9_416_010, 100: 9_462_180, 200: 9_513_480}, 10, 2_944, 285, 512),
    "vgg16": ({10: 14_728_266, 100: 14_774_436, 200: 14_825_736}, 13, 4_224, 398, 512),
    "vgg19": ({10: 20_040_522, 100: 20_086_692, 200: 20_137_992}, 16, 5_504, 511, 512),
    "resnet20": ({10: 272_474, 100: 278_324}, 21, 784, 40.8, 64),
    "resnet32": ({10: 466_906, 100: 472_756}, 33, 1_232, 69, 64),
    "resnet56": ({10: 855_770, 100: 861_620}, 57, 2_128, 126, 64),
    "resnet110": ({10: 1_730_714, 100: 1_736_564}, 111, 4_144, 253, 64),
    "resnet116": ({10: 1_827_930, 100: 1_833_780}, 117, 4_368, 267, 64),
    "resnet8x4": ({10: 1_210_410, 100: 1_233_540}, 10, 1_376, 177, 256),
    "resnet32x4": ({10: 7_410_730, 100: 7_433_860}, 34, 4_960, 1083, 256),
    "resnet110x2": ({10: 6_899_610, 100: 6_911_220}, 112, 8_304, 1007, 128),
    "shufflenetv1": ({10: 862_768, 100: 949_258}, 49, 11_868, 38.6, 960),
    "shufflenetv2": ({10: 1_263_278, 100: 1_355_528}, 56, 8_090, 44.4, 1024),
    "mobilenetv2-half": ({10: 697_546, 100: 812_836}, 53, 9_184, 6.4, 1280),
    "mobilenetv2": ({10: 2_237_770, 100: 2_353_060}, 53, 17_088, 22.3, 1280),
    "mobilenetv2-cifar": ({10: 2_296_922, 100: 2_412_212}, 57, 17_544, 91, 1280),
}

# name: channels, parameters, BatchNorm layers, multiply-adds (None: not published), width before the head
SMALL: dict[str, tuple[int, int, int, float | None, int]] = {
    "lenet5": (1, 61_706, 0, 0.417, 84),
    "lenet5-half": (1, 18_720, 0, 0.137, 84),
    "lenet5-half-dafl": (1, 15_738, 0, 0.134, 42),
    "plain-cnn": (1, 390_410, 0, None, 256),
    "plain-cnn-small": (1, 9_778, 0, None, 40),
    "alexnet": (3, 1_659_178, 7, None, 256),
    "alexnet-half": (3, 665_626, 7, None, 256),
    "alexnet-half-zskd": (3, 417_434, 7, None, 128),
}

# sides of the stage maps at 32 and at 64 pixels
SIDES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ((32, 16, 8, 4), (64, 32, 16, 8)),
    "resnet50": ((32, 16, 8, 4), (64, 32, 16, 8)),
    "resnet14": ((32, 16, 8), (64, 32, 16)),
    "resnet8x4": ((32, 16, 8), (64, 32, 16)),
    "wrn16-1": ((32, 16, 8), (64, 32, 16)),
    "vgg8": ((32, 16, 8, 4, 4), (64, 32, 16, 8, 4)),
    "vgg11": ((32, 16, 8, 4, 4), (64, 32, 16, 8, 4)),
    "mobilenetv2-half": ((16, 8, 4, 2), (32, 16, 8, 4)),
    "mobilenetv2-cifar": ((32, 16, 8, 4), (64, 32, 16, 8)),
    "shufflenetv1": ((16, 8, 4), (32, 16, 8)),
    "shufflenetv2": ((16, 8, 4), (32, 16, 8)),
}


def sides_of(name: str) -> tuple[int, int]:
    """Image sides that the network takes."""
    side = ZOO[name].fixed_side or 32
    return side, side


FREE = [name for name, entry in ZOO.items() if entry.fixed_side is None]


def shapes_only(name: str, classes: int = 10, channels: int = 3) -> Classifier:
    """Build without memory for the weights: enough for counts and shapes."""
    with torch.device("meta"):
        built = build(name, classes, channels)
    built.net.eval()
    return built


def norms(net: nn.Module) -> list[int]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [module.num_features for module in net.modules() if isinstance(module, kinds)]


def head_of(built: Classifier) -> nn.Linear:
    assert built.head is not None
    head = built.net.get_submodule(built.head)
    assert isinstance(head, nn.Linear)
    return head


def stage_maps(built: Classifier, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs of the stages, input of the first module after the last stage, and the logits."""
    maps: list[Tensor] = []
    pooled: list[Tensor] = []
    assert built.stages is not None
    handles = [
        built.net.get_submodule(stage).register_forward_hook(lambda _m, _i, output: maps.append(output))
        for stage in built.stages
    ]
    gate = built.net.get_submodule("pool" if hasattr(built.net, "pool") else "flatten")
    handles.append(gate.register_forward_pre_hook(lambda _m, inputs: pooled.append(inputs[0])))
    with torch.no_grad():
        logits = built.net(images)
    for handle in handles:
        handle.remove()
    return maps, pooled[0], logits


# --- the published numbers --------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    parameters, layers, channels, macs, width = SIZES[name]
    for classes, expected in parameters.items():
        assert count_parameters(shapes_only(name, classes).net) == expected
    built = shapes_only(name)
    assert (len(norms(built.net)), sum(norms(built.net))) == (layers, channels)
    assert head_of(built).in_features == width
    assert (count_macs(built.net, (3, 32, 32)) or 0) / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_sizes_of_lenet_and_alexnet_are_the_published_ones(name: str) -> None:
    channels, parameters, layers, macs, width = SMALL[name]
    built = shapes_only(name, 10, channels)
    assert count_parameters(built.net) == parameters
    assert len(norms(built.net)) == layers
    assert head_of(built).in_features == width
    if macs is not None:
        assert (count_macs(built.net, (channels, 32, 32)) or 0) / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("resnet34", 4.64), ("resnet18", 2.22), ("vgg16", 1.253), ("vgg13", 0.913), ("resnet32x4", 4.33)],
)
def test_multiply_adds_at_64_pixels(name: str, billions: float) -> None:
    assert (count_macs(shapes_only(name).net, (3, 64, 64)) or 0) / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_name_has_a_size_test() -> None:
    assert set(ZOO) == set(SIZES) | set(SMALL) | {"resnet8", "resnet14"}


@pytest.mark.parametrize("depth", [8, 14])
def test_thin_resnets_follow_the_closed_form(depth: int) -> None:
    count = (depth - 2) // 6
    expected = 3 * 16 * 9 + 32  # stem and its BatchNorm
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        first = 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs
        projection = 0 if inputs == outputs else inputs * outputs + 2 * outputs
        expected += first + projection + (count - 1) * (18 * outputs**2 + 4 * outputs)
    assert count_parameters(shapes_only(f"resnet{depth}").net) == expected + 64 * 10 + 10


# --- shapes and metadata ----------------------------------------------------------------


@pytest.mark.parametrize("name", SIDES)
def test_stage_sides(name: str) -> None:
    built = shapes_only(name)
    for side, expected in zip((32, 64), SIDES[name], strict=True):
        maps, _, logits = stage_maps(built, torch.empty(2, 3, side, side, device="meta"))
        assert tuple(m.shape[-1] for m in maps) == expected
        assert tuple(m.shape[-2] for m in maps) == expected
        assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("side", [8, 16, 24])
def test_free_networks_take_other_sides(name: str, side: int) -> None:
    check_image_shape(name, (3, side, side))
    assert shapes_only(name, 7).net(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ZOO)
def test_the_last_stage_is_what_pooling_sees(name: str) -> None:
    built = build(name, 10)
    built.net.eval()
    maps, pooled, logits = stage_maps(built, torch.rand(1, 3, *sides_of(name)))
    torch.testing.assert_close(maps[-1], pooled, rtol=0, atol=0)
    assert logits.isfinite().all()
    sides = [m.shape[-1] for m in maps]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", ["resnet34", "resnet20", "vgg11", "lenet5", "shufflenetv1", "shufflenetv2"])
def test_stages_are_read_after_the_activation(name: str) -> None:
    built = build(name, 10)
    maps, _, _ = stage_maps(built, torch.rand(2, 3, 32, 32))
    assert all((m >= 0).all() for m in (maps if name != "shufflenetv2" else maps[-1:]))


def test_wrn_stages_are_read_before_the_activation_but_the_last() -> None:
    maps, _, _ = stage_maps(build("wrn16-1", 10), torch.rand(2, 3, 32, 32))
    assert [bool((m >= 0).all()) for m in maps] == [False, False, True]


@pytest.mark.parametrize("name", ZOO)
def test_one_channel(name: str) -> None:
    built = shapes_only(name, 10, 1)
    assert built.net(torch.empty(2, 1, *sides_of(name), device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ZOO)
def test_activations_are_modules_used_once(name: str) -> None:
    net = shapes_only(name).net
    calls: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda m, _i, _o: calls.append(m))
    net(torch.empty(1, 3, *sides_of(name), device="meta"))
    assert calls
    assert len(calls) == len(set(calls)) == sum(isinstance(m, nn.ReLU) for m in net.modules())


@pytest.mark.parametrize("name", ["vgg8", "shufflenetv2", "alexnet-half", "wrn10-1"])
def test_compiles_as_one_graph(name: str) -> None:
    net = build(name, 10).net.eval()
    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))


@pytest.mark.parametrize("name", ["lenet5", "alexnet-half", "resnet8", "mobilenetv2-half"])
def test_every_parameter_learns(name: str) -> None:
    net = build(name, 10).net
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- the arithmetic of the pieces -------------------------------------------------------------


def test_alexnet_normalisation_is_the_published_one() -> None:
    norm = next(m for m in AlexNet(10).modules() if isinstance(m, nn.LocalResponseNorm))
    x = torch.rand(1, 9, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    expected = torch.empty_like(x)
    for c in range(9):
        window = x[:, max(0, c - 2) : c + 3]
        expected[:, c] = x[:, c] / (1 + 1e-4 * window.square().sum(1)) ** 0.75
    torch.testing.assert_close(norm(x), expected)


def test_alexnet_flattens_1152_numbers() -> None:
    net = AlexNet(10)
    assert net.hidden1.in_features == 1152
    assert net.stages(torch.rand(1, 3, 32, 32)).shape == (1, 128, 3, 3)


def test_alexnet_order_of_layers() -> None:
    kinds = [[type(m).__name__ for m in block.children()] for block in AlexNet(10).stages]
    long = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d", "BatchNorm2d"]
    short = ["Conv2d", "ReLU", "BatchNorm2d"]
    assert kinds == [long, long, short, short, ["Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d"]]
    assert [type(m).__name__ for m in AlexNet(10).tail2] == ["ReLU", "Dropout", "BatchNorm1d"]


def test_channel_shuffle_deals_like_cards() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    dealt = ChannelShuffle(3)(x).flatten().tolist()
    assert dealt == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def bn(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    rows = [
        (x[:, c] - layer.running_mean[c]) / (layer.running_var[c] + layer.eps).sqrt() * layer.weight[c] + layer.bias[c]
        for c in range(x.shape[1])
    ]
    return torch.stack(rows, 1)


def scramble(net: nn.Module) -> None:
    """Give BatchNorm layers statistics and affine parameters that show a layer left out."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.3, 1.5, generator=generator)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (4, 8, 1)])
def test_wide_unit_is_pre_activation(inputs: int, outputs: int, stride: int) -> None:
    unit = WideUnit(inputs, outputs, stride).double().eval()
    scramble(unit)
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64)
    weights = dict(unit.named_parameters())
    first, second = weights["body.0.weight"], weights["body.3.weight"]
    active = bn(x, unit.before[0]).clamp_min(0)
    y = torch.conv2d(active, first, stride=stride, padding=1)
    y = torch.conv2d(bn(y, unit.body[1]).clamp_min(0), second, padding=1)
    skip = x if inputs == outputs else torch.conv2d(active, weights["shortcut.weight"], stride=stride)
    torch.testing.assert_close(unit(x), y + skip)


def silence(unit: nn.Module) -> None:
    """Make the last BatchNorm of the unit's body, and so the body, output zero."""
    for parameter in unit.get_submodule("body.2" if isinstance(unit, InvertedResidual) else "body.3").parameters():
        parameter.data.zero_()


def test_inverted_residual_adds_its_input_only_where_it_may() -> None:
    x = torch.randn(2, 4, 6, 6)

    def silent(outputs: int, stride: int, project: bool) -> Tensor:
        unit = InvertedResidual(4, outputs, 6, stride, project).eval()
        silence(unit)
        return unit(x)

    torch.testing.assert_close(silent(4, 1, False), x)
    assert silent(8, 1, True).abs().sum() > 0
    for outputs, stride, project in ((8, 1, False), (4, 2, True), (8, 2, False)):
        assert silent(outputs, stride, project).abs().sum() == 0


def test_shuffle_units_join_their_shortcut() -> None:
    x = torch.rand(2, 240, 6, 6)
    plain, down = UnitV1(240, 240, shrink=False).eval(), UnitV1(240, 480, shrink=True).eval()
    for unit in (plain, down):
        silence(unit)
    torch.testing.assert_close(plain(x), x)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 2, padding=1)
    torch.testing.assert_close(down(x), torch.cat([torch.zeros_like(pooled), pooled], 1))
    kept = UnitV2(8).eval()(x[:, :8])[:, 0::2]  # the shuffle deals the untouched half to the even places
    torch.testing.assert_close(kept, x[:, :4])


def test_vgg_pools_a_fourth_time_from_64_pixels() -> None:
    net = VGG(10, convolutions=(1, 1, 1, 1, 1)).eval()
    calls: list[int] = []
    for index, halving in enumerate(net.halve):
        halving.register_forward_hook(lambda _m, _i, _o, index=index: calls.append(index))
    net(torch.rand(1, 3, 32, 32))
    assert calls == [0, 1, 2]
    calls.clear()
    net(torch.rand(1, 3, 64, 64))
    assert calls == [0, 1, 2, 3]


# --- counting ---------------------------------------------------------------------------


def test_count_macs_matches_the_closed_form_and_leaves_the_network_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 9, 5),
    )
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert count_macs(net, (4, 6, 6)) == 3 * 3 * 8 * (4 // 2) * 9 + 72 * 5
    assert [module.training for module in net] == [True, False, True, True]
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_count_macs_takes_double_precision_and_no_parameters() -> None:
    assert count_macs(nn.Linear(3, 2).double(), (1, 1, 3)) == 6
    assert count_macs(nn.ReLU(), (1, 2, 2)) == 0


def test_count_macs_restores_the_mode_after_a_failure() -> None:
    net = nn.Conv2d(3, 4, 1)
    assert count_macs(net, (2, 4, 4)) is None
    assert net.training


def test_count_macs_names_a_bad_shape() -> None:
    with pytest.raises(UserError, match="needs an image shape"):
        count_macs(nn.ReLU(), (3, 0, 4))


def test_count_parameters_counts_shared_ones_once() -> None:
    layer = nn.Linear(3, 2)
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(2), layer)) == 8 + 4


# --- names ------------------------------------------------------------------------------


def test_any_legal_wide_resnet_is_known() -> None:
    built = shapes_only("wrn22-4")
    assert head_of(built).in_features == 256
    assert len(norms(built.net)) == 19
    assert built.stages == ("stages.0", "stages.1", "relu")
    assert isinstance(built.net, WideResNet)


def test_spec_is_plain_and_rebuilds() -> None:
    first = build("resnet8", 7, 1)
    assert first.spec == {"name": "resnet8", "classes": 7, "channels": 1}
    again = build(**json.loads(json.dumps(first.spec)))
    again.net.load_state_dict(first.net.state_dict())


def test_summaries_are_there_and_differ() -> None:
    summaries = [entry.summary for entry in ZOO.values()]
    assert all(summaries)
    assert len(set(summaries)) == len(summaries)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "got 'resnet19'; try resnet1"),
        ("VGG16", "got 'VGG16'; try vgg16"),
        ("qqqqqq", "use a name such as resnet18"),
        ("wrn17-2", "depth of 6n \\+ 4 .* got 17; write wrn16-2"),
        ("wrn4-2", "got 4; write wrn10-2"),
        ("wrn16-0", "width of at least 1, got 0"),
        (":x", "both sides of the colon"),
        ("timm:", "both sides of the colon"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, 10)


@pytest.mark.parametrize(("classes", "channels", "what"), [(0, 3, "classes"), (10, 0, "channels")])
def test_bad_numbers(classes: int, channels: int, what: str) -> None:
    with pytest.raises(UserError, match=f"needs {what} of at least 1, got 0"):
        build("resnet8", classes, channels)


def test_image_shapes_are_checked() -> None:
    check_image_shape("lenet5", (1, 32, 32))
    check_image_shape("resnet18", (3, 31, 33))
    check_image_shape("vgg11", (3, 40, 24))
    check_image_shape("timm:anything", (3, 7, 7))
    with pytest.raises(UserError, match="lenet5 needs images of 32 by 32 pixels, got 28 by 28"):
        check_image_shape("lenet5", (1, 28, 28))
    with pytest.raises(UserError, match="vgg11 needs image sides that are multiples of 8, got 36 by 32"):
        check_image_shape("vgg11", (3, 36, 32))
    with pytest.raises(UserError, match="multiples of 1, got 0 by 8"):
        check_image_shape("resnet18", (3, 0, 8))


def test_find() -> None:
    assert find("resnet18") is ZOO["resnet18"]
    assert find("my.module:make") is None


# --- networks from elsewhere ------------------------------------------------------------

MODULE = """
from torch import nn
import torch

def plain():
    return nn.Linear(2, 3)

def full(classes, channels, depth=1):
    return nn.Linear(channels, classes)

def loose(classes=5, **others):
    assert not others
    return nn.Linear(1, classes)

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(1, classes)

class Args(nn.Module):
    def __init__(self, width, depth, *more, classes=3, **others):
        super().__init__()

def positional(classes, /):
    return nn.Linear(1, classes)

def fails(channels):
    raise RuntimeError("no such width\\nand more")

def refuses():
    from dfkd.errors import UserError
    raise UserError("mine needs x, got y; change it")

def wrong():
    return 3

number = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder with a module of networks; returns the module's name."""
    module = f"networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    (tmp_path / f"{module}_broken.py").write_text("import no_such_package_at_all\n")
    (tmp_path / f"{module}_torn.py").write_text("number = 4\ndef make(:\n")
    monkeypatch.chdir(tmp_path)
    return module


@pytest.mark.parametrize(
    ("attribute", "shape"), [("plain", (3, 2)), ("full", (7, 4)), ("loose", (7, 1)), ("Net", (7, 1))]
)
def test_a_callable_of_ones_own(folder: str, attribute: str, shape: tuple[int, int]) -> None:
    path = list(sys.path)
    built = build(f"{folder}:{attribute}", 7, 4)
    assert sys.path == path
    assert built.head is None
    assert built.stages is None
    assert next(built.net.parameters()).shape == shape


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":wrong", "needs to return a torch.nn.Module, got int"),
        (":ful", "needs a callable 'ful' .* try full"),
        (":number", "needs a callable 'number'"),
        (":Args", r"other than classes and channels, got one that asks for width, depth; wrap it in a function"),
        (":positional", "got one that asks for classes; wrap"),
        (":fails", r"called with \(channels=3\), got RuntimeError: no such width; correct it"),
        (":refuses", "^mine needs x, got y; change it$"),
        ("_nowhere:make", "needs an importable module"),
        (".sub.deep:make", "needs an importable module"),
    ],
)
def test_a_bad_callable_is_named(folder: str, suffix: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(folder + suffix, 7)


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("broken", "got ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("torn", "got SyntaxError: .*line 2"),
    ],
)
def test_what_is_wrong_inside_the_module_is_not_hidden(folder: str, suffix: str, said: str) -> None:
    with pytest.raises(UserError, match=f"needs a module {folder}_{suffix} that can be imported, {said}") as caught:
        build(f"{folder}_{suffix}:make", 7)
    assert isinstance(caught.value.__cause__, ImportError | SyntaxError)


@pytest.mark.parametrize(
    ("name", "package", "line"),
    [
        ("timm:resnet18", "timm", "pip install 'timm>="),
        ("torchvision:resnet18", "torchvision", "pip install 'torchvision>="),
        ("hf:some/model", "transformers", "pip install 'transformers>="),
    ],
)
def test_a_missing_package_is_named(name: str, package: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=f"needs the package {package}, got none installed; run `{line}.*' 'torch==[0-9.]+'`"
    ):
        build(name, 10)


def raiser(error: Exception) -> Callable[..., nn.Module]:
    def build_or_load(*arguments: object, **settings: object) -> nn.Module:
        raise error

    return build_or_load


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("timm:resnet18.odd", RuntimeError("Invalid pretrained tag (odd) for resnet18."), "tag (odd) for resnet18; "),
        ("timm:hf-hub:foo/bar", FileNotFoundError("no answer\nfrom the hub"), "FileNotFoundError: no answer; "),
        ("hf:text", ValueError("Unrecognized class: Bert.\nShould be one of ..."), "got 'text' (ValueError: Unrec"),
    ],
)
def test_what_another_package_cannot_build_is_one_sentence(
    name: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm and transformers raise what they like of a name, a folder or a hub that is not as they expect it."""
    fails, known = raiser(error), lambda model: True
    loader = SimpleNamespace(from_pretrained=fails)
    package = SimpleNamespace(create_model=fails, is_model=known, AutoModelForImageClassification=loader)
    monkeypatch.setattr("dfkd.nets.adapters._import", lambda *names: package)
    with pytest.raises(UserError) as caught:
        build(name, 4)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_frozen_parameters_are_not_initialised_anew() -> None:
    frozen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).requires_grad_(False)
    linear, norm = nn.Linear(2, 2), nn.BatchNorm2d(2)
    before = [parameter.clone() for parameter in frozen.parameters()]
    initialise(nn.Sequential(frozen, linear, norm), lambda weight: nn.init.constant_(weight, 7))
    assert all(torch.equal(old, new) for old, new in zip(before, frozen.parameters(), strict=True))
    assert torch.equal(linear.weight, torch.full((2, 2), 7.0))
    assert torch.equal(linear.bias, torch.zeros(2))
    assert not torch.equal(norm.weight, torch.ones(2))


@pytest.mark.parametrize("widths", [(16,), (16, 32, 64)])
def test_ranges_of_widths_have_two_ends(widths: Any) -> None:
    with pytest.raises(UserError, match="needs widths as two numbers, the least and the most, got"):
        check_ranges(widths, (3, 5))


def installed(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@installed("torchvision")
@pytest.mark.filterwarnings("ignore")
def test_torchvision_classifiers() -> None:
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    built = build("torchvision:resnet18", 7)
    assert built.net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="got 'resnet19'; try resnet18"):
        build("torchvision:resnet19", 7)
    with pytest.raises(UserError, match="needs 3 channels, got 1"):
        build("torchvision:resnet18", 7, 1)


@installed("timm")
@pytest.mark.filterwarnings("ignore")
def test_timm_models() -> None:
    assert build("timm:resnet18", 7, 1).net(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="got 'resnet19'; try resnet18"):
        build("timm:resnet19", 7)


@installed("transformers")
@pytest.mark.filterwarnings("ignore")
def test_transformers_classifiers(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    original = ResNetForImageClassification(config).eval()
    original.save_pretrained(tmp_path / "net")
    name = f"hf:{tmp_path / 'net'}"
    images = torch.rand(2, 1, 32, 32)
    net = build(name, 7, 1).net.eval()
    torch.testing.assert_close(net(images), original(images).logits)
    with pytest.raises(UserError, match="needs 7 classes, got 8"):
        build(name, 8, 1)
    with pytest.raises(UserError, match="needs 1 channels, got 3"):
        build(name, 7, 3)
    with pytest.raises(UserError, match="needs a folder or repository"):
        build(f"hf:{tmp_path / 'nothing'}", 7)


# What a torchvision with unloadable operators does on import, and what a sound one does.
PACKAGES = {
    "broken": "torch.library.register_fake('torchvision::nms')(lambda *a: None)",
    "sound": "",
    "other": "raise RuntimeError('something else is wrong')",
}
PROBE = """
import sys, torch
from dfkd.nets.vision import import_torchvision, mend_torchvision
mend_torchvision()
module = import_torchvision()
assert module is import_torchvision() is sys.modules["torchvision"]
print(module.imports, hasattr(torch.ops.torchvision, "nms"))
"""


@pytest.mark.parametrize(
    ("kind", "expected"), [("broken", "1 True"), ("sound", "1 False"), ("other", "something else is wrong")]
)
def test_torchvision_is_mended_only_where_it_is_broken(tmp_path: Path, kind: str, expected: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import _meta\nfrom torchvision._state import imports\n")
    (package / "_state.py").write_text("imports = 1\n")
    (package / "_meta.py").write_text(f"import torch\nfrom torchvision import _state\n{PACKAGES[kind]}\n")
    places = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in result.stdout + result.stderr
    assert (result.returncode == 0) == (kind != "other")
