"""What a dry forward pass finds out about a network."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.engine.anatomy import survey
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from dfkd.nets.zoo import ZOO, Classifier, build, forget_layers
from dfkd.prepare import prepare
from dfkd.settings import Images


@pytest.mark.parametrize("name", ["wrn16-1", "resnet8", "resnet18", "vgg8", "lenet5", "alexnet", "shufflenetv1"])
def test_the_search_finds_the_head_the_zoo_names(name: str) -> None:
    net = build(name, 7, 3).net
    forget_layers(net)
    found = survey(net, (3, 32, 32), 7)
    assert found.head == ZOO[name].head
    head = net.get_submodule(ZOO[name].head)
    assert isinstance(head, nn.Linear)
    assert (found.classes, found.features) == (7, head.in_features)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert (found.norms, found.norm_channels) == (len(norms), sum(n.num_features for n in norms))


# Deep ones of the same classes as others: they take seconds and show nothing new.
DEEP = ("resnet110", "resnet110x2", "resnet116", "resnet34", "resnet50", "resnet56")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in sorted(ZOO)]
)
def test_a_network_of_the_zoo_has_the_same_layers_by_its_name_and_as_a_module(name: str) -> None:
    """From the shell a classifier carries its layers; from Python ``build(name).net`` comes alone."""
    side = ZOO[name].fixed_side or 32
    known = build(name, 10, 3)
    plain = survey(known.net, (3, side, side))
    assert plain == survey(known.net, (3, side, side), **known.layers)
    assert (plain.head, plain.stages) == (known.head, tuple(known.stages or ()))


def test_both_doors_make_the_same_task() -> None:
    data = Images(image_size=(1, 8, 8), mean=[0.5], std=[0.5], classes=10)
    teacher, student = build("wrn16-2", 10, 1), build("wrn16-1", 10, 1)
    named, plain = (
        prepare(*pair, Runtime(device="cpu").launch(), data, None).task
        for pair in ((teacher, student), (Classifier(teacher.net), Classifier(student.net)))
    )
    for probe in ("teacher", "student"):
        assert (
            getattr(plain, probe).stage_names == getattr(named, probe).stage_names == ("stages.0", "stages.1", "relu")
        )
        assert getattr(plain, probe).head_name == getattr(named, probe).head_name == "head"


def test_layers_that_are_gone_are_looked_for() -> None:
    net = build("wrn16-1", 10, 1).net
    net.head = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    found = survey(net, (1, 8, 8))
    assert found.head == "head.2"
    assert found.stages == ("stages.0", "stages.1", "relu")


def test_stages_are_the_last_map_of_every_size() -> None:
    net = build("wrn16-1", 10, 1).net
    forget_layers(net)
    found = survey(net, (1, 8, 8))
    assert [side[1:] for side in found.sides] == [(8, 8), (4, 4), (2, 2)]
    assert found.stages == ("stages.1.0.before", "stages.2.0.before", "relu")
    named = survey(build("wrn16-1", 10, 1).net, (1, 8, 8), stages=("stages.0", "stages.2"), head="head")
    assert named.stages == ("stages.0", "stages.2")
    assert named.sides == ((16, 8, 8), (64, 2, 2))


class OneActivation(nn.Module):
    """One ReLU and one BatchNorm layer after several convolutions, as in many a tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.relu, self.norm, self.fc = nn.ReLU(), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        x = self.relu(self.norm(self.b(x)))
        y: Tensor = self.fc(self.relu(self.norm(self.c(x))).mean((2, 3)))
        return y


def test_modules_that_run_several_times_are_no_stages() -> None:
    found = survey(OneActivation(), (1, 8, 8))
    assert found.stages == ("a", "b", "c")
    assert found.sides == ((4, 8, 8), (6, 4, 4), (6, 2, 2))
    probe = Probe(OneActivation(), mean=[0.5], std=[0.5], stages=found.stages)
    assert [tuple(m.shape[1:]) for m in probe(torch.rand(2, 1, 8, 8), maps=True).maps] == list(found.sides)
    with pytest.raises(UserError, match=r"student needs stages that run once .*, got 'relu', which runs 3 times; the"):
        survey(OneActivation(), (1, 8, 8), role="student", stages=("a", "relu"))


def test_a_survey_leaves_no_trace() -> None:
    net = build("wrn16-1", 10, 1).net
    net.train()
    net.get_submodule("stages.0").eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    survey(net, (1, 8, 8))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Odd(nn.Module):
    """A head whose output is changed afterwards: it is not the classifier."""

    def __init__(self, returned: str = "scaled") -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.returned = returned

    def forward(self, x: Tensor) -> object:
        y = self.linear(x.flatten(1))
        return {"scaled": y * 2, "tuple": ("y", y), "maps": y[:, :, None]}[self.returned]


def test_a_network_without_a_linear_head() -> None:
    found = survey(Odd(), (3, 2, 2), 5)
    assert (found.head, found.features, found.norms) == (None, 0, 0)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("tuple", "got tuple without logits"),
        ("maps", r"got a tensor of shape \(8, 5, 1\) instead"),
    ],
)
def test_what_is_not_logits_is_refused(returned: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^student needs to return logits .*, {said}.*; wrap"):
        survey(Odd(returned), (3, 2, 2), role="student")


def test_unfit_images_and_classes_are_named() -> None:
    net = build("lenet5", 10, 1).net
    with pytest.raises(UserError, match=r"^teacher needs images it can take, got 3x32x32 .* fails with .*; give"):
        survey(net, (3, 32, 32))
    with pytest.raises(UserError, match="as many outputs as there are classes, got 10 outputs for 7 classes"):
        survey(net, (1, 32, 32), 7)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"head": "haed"}, "the path of a layer it has as its head, got 'haed'; try head"),
        ({"head": "nope"}, "got 'nope'; its linear layers are head"),
        ({"stages": ["stages.0", "stages.9"]}, "layer it has as its stage, got 'stages.9'; try stages."),
        ({"stages": ["head"]}, "stages that return maps .* got 'head'; the last of each size are .*relu"),
    ],
)
def test_paths_of_layers_that_are_not_there_are_named(layers: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^student needs {said}" if said.startswith("stages") else said):
        survey(build("wrn16-1", 10, 1).net, (1, 8, 8), role="student", **layers)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["head.weight", "norm.running_var"])
def test_weights_that_are_not_finite_are_named(bad: float, where: str) -> None:
    net = build("wrn16-1", 10, 1).net
    net.state_dict()[where].view(-1)[0] = bad
    with pytest.raises(UserError, match=f"finite weights, got NaN or infinity in '{where}'"):
        survey(net, (1, 8, 8))
