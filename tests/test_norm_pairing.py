"""BatchNorm statistics belong to the layer that ran: whatever the order of registration, and however often it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd.engine.anatomy import survey
from dfkd.engine.core import Need
from dfkd.engine.driver import run
from dfkd.engine.probe import Probe
from dfkd.losses.statistics import moment_distance
from settings import SETTINGS, tiny_task

METHODS_WITH_STATISTICS = sorted(name for name, row in SETTINGS.items() if Need.BN in row.method.needs())


class Block(nn.Module):
    """A residual block; ``first`` registers the shortcut before the body, as transformers' ResNet does."""

    def __init__(self, into: int, out: int, stride: int, first: bool) -> None:
        super().__init__()
        shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        if first:
            self.shortcut = shortcut
        self.body = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        if not first:
            self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return torch.relu(y + self.shortcut(x))


class Net(nn.Module):
    """Three residual blocks for grey images."""

    def __init__(self, first: bool, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(width, width, 1, first), Block(width, 2 * width, 2, first), Block(2 * width, 4 * width, 2, first)
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


def with_statistics(net: nn.Module) -> nn.Module:
    """``net`` with running statistics that no other layer has."""
    stream = torch.Generator().manual_seed(3)
    for name, buffer in sorted(net.named_buffers()):
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=stream)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=stream)
    return net.eval()


def with_shuffled_registration(net: nn.Module, seed: int) -> nn.Module:
    """The same network with children registered in another order, wherever that is not the order of execution."""
    stream = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or len(module._modules) < 2:
            continue
        names = list(module._modules)
        order = [names[i] for i in torch.randperm(len(names), generator=stream).tolist()]
        module._modules = {name: module._modules[name] for name in order}
    return net


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", METHODS_WITH_STATISTICS)
def test_the_order_of_registration_changes_no_bit_of_the_student(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SETTINGS[name]
    plain = tiny_task(row)
    run(plain, row.method, row.plan)
    build = dfkd.build

    def shuffled(network: str, *sizes: Any) -> Any:
        built = build(network, *sizes)
        return with_shuffled_registration(built.net, seed) and built if network == row.teacher else built

    # The statistics of the teacher are drawn in the order of its buffers: take them from the plain one.
    monkeypatch.setattr("settings.build", shuffled)
    other = tiny_task(row)
    other.teacher.net.load_state_dict(plain.teacher.net.state_dict())
    norms = [
        [n for n, m in task.teacher.net.named_modules() if isinstance(m, nn.BatchNorm2d)] for task in (plain, other)
    ]
    assert norms[0] != norms[1]
    run(other, row.method, row.plan)
    weights = other.student.net.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.student.net.state_dict().items())


def test_a_shortcut_that_is_registered_first_gives_the_same_student() -> None:
    torch.manual_seed(0)
    last = with_statistics(Net(first=False))
    first = Net(first=True)
    first.load_state_dict(last.state_dict())
    students = []
    for teacher in (last, first):
        torch.manual_seed(1)
        student = Net(first=False, width=2)
        dfkd.distill(
            teacher,
            student,
            dfkd.NAYER(steps=3, synthesis_batch=20, batches=1, warmup_batches=1, width=8, channels=4, pad=1),
            image_size=(1, 8, 8),
            mean=[0.3],
            std=[0.3],
            plan=dfkd.Plan(rounds=2, warmup=1, steps=3, batch_size=16),
            progress=False,
        )
        students.append(student.state_dict())
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())


class Reused(nn.Module):
    """One BatchNorm that runs twice, one that never runs, one that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.BatchNorm2d(4)
        self.late = nn.SyncBatchNorm(4)
        self.shared = nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def inputs(self, x: Tensor) -> list[Tensor]:
        a = self.one(x)
        b = self.two(torch.relu(self.shared(a)))
        return [a, b, torch.relu(self.shared(b))]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.late(input=self.inputs(x)[-1]).mean((2, 3)))
        return y


@contextmanager
def a_reused_probe() -> Iterator[tuple[Reused, Probe]]:
    torch.manual_seed(2)
    net = Reused()
    with_statistics(net)
    probe = Probe(net, mean=[0.0] * 3, std=[1.0] * 3, channels_last=False).freeze()
    yield net, probe
    probe.release()


def test_every_call_is_compared_with_its_own_layer() -> None:
    images = torch.rand(6, 3, 10, 10)
    with a_reused_probe() as (net, probe):
        read = probe(images, stats=True)
    layers = [net.shared, net.shared, net.late]
    assert len(read.stats) == len(read.stored) == 3
    expected = torch.zeros(())
    for (mean, var), stored, x, layer in zip(read.stats, read.stored, net.inputs(images), layers, strict=True):
        assert stored.mean is layer.running_mean
        assert stored.var is layer.running_var
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))
        expected += (x.mean((0, 2, 3)) - layer.running_mean).norm()
        expected += (x.var((0, 2, 3), correction=0) - layer.running_var).norm()
    torch.testing.assert_close(moment_distance(read.stats, read.stored), expected)


def test_the_pairs_survive_compilation() -> None:
    images = torch.rand(6, 3, 10, 10)
    with a_reused_probe() as (_, probe):
        torch._dynamo.reset()

        def distance(x: Tensor) -> Tensor:
            read = probe(x, stats=True)
            return moment_distance(read.stats, read.stored)

        compiled = torch.compile(distance, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), distance(images))


def test_a_survey_names_layers_that_run_twice_or_never() -> None:
    found = survey(Reused(), (3, 10, 10))
    assert found.norms == 2
    assert found.norm_channels == 8
    assert found.norm_names == ("shared", "late")
    assert found.repeated_norms == ("shared",)
    assert found.idle_norms == ("idle",)


class Auxiliary(nn.Module):
    """BatchNorm in a head that runs in training only, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return y


def test_a_teacher_whose_norms_never_run_has_none() -> None:
    with pytest.raises(dfkd.UserError, match=r"^NAYER needs a teacher with BatchNorm layers"):
        dfkd.distill(Auxiliary(), Auxiliary(), image_size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, progress=False)


def test_inspect_says_which_norms_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    from dfkd.cli.do_inspect import _norms

    said = _norms(survey(Reused(), (3, 10, 10)))
    assert said == "2 with 8 channels; run more than once: shared; never run, not read: idle"
