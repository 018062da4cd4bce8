"""DAFL: objective, generators and lockstep against loops, every option once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import run
from dfkd.engine.probe import Probe
from dfkd.methods.dafl import DAFL, DAFLState, objective
from dfkd.methods.noise import NoiseInput
from dfkd.nets.zoo import build
from settings import SETTINGS, tiny_task

ROW = SETTINGS["DAFL"]


def tiny(**changes: Any) -> DAFL:
    method = ROW.method
    assert isinstance(method, DAFL)
    return replace(method, **changes)


def a_task() -> Task:
    task = tiny_task(ROW)
    task.teacher.freeze()
    task.student.freeze()
    return task


@pytest.mark.parametrize("logarithm", ["ten", "natural"])
@torch.no_grad()
def test_the_objective_is_the_sum_of_its_terms(logarithm: Any) -> None:
    task, x = a_task(), torch.randn(9, *ROW.image_shape)
    method = tiny(alpha_cls=0.3, alpha_act=0.7, alpha_ie=2.0, logarithm=logarithm)
    out = objective(method, task.teacher, x)
    read = task.teacher.read_normalised(x)
    cls, mean = 0.0, [0.0] * ROW.classes
    for logits in read.logits.double():
        p = torch.softmax(logits, 0).tolist()
        cls -= math.log(max(p)) / 9
        mean = [m + q / 9 for m, q in zip(mean, p, strict=True)]
    log = math.log10 if logarithm == "ten" else math.log
    balance = sum(m * log(m) for m in mean)
    active = -sum(abs(float(f)) for f in read.features.flatten()) / read.features.numel()
    assert float(out.cls) == pytest.approx(cls, rel=1e-4)
    assert float(out.act) == pytest.approx(active, rel=1e-4)
    assert float(out.ie) == pytest.approx(balance, rel=1e-4)
    assert float(out.loss) == pytest.approx(0.3 * cls + 0.7 * active + 2 * balance, rel=1e-4)


@torch.no_grad()
def test_which_features_should_be_strong() -> None:
    """LeNet-5's classifier reads 84 numbers; the last map, 120, is what DAFL's code takes."""
    net, x = build("lenet5", 10, 1), torch.randn(3, 1, 32, 32)
    teacher = Probe(net.net, mean=[0.0], std=[1.0], head=net.head, stages=net.stages or ()).freeze()
    read = teacher.read_normalised(x, maps=True)
    assert (read.features.shape, read.maps[-1].shape) == ((3, 84), (3, 120, 1, 1))
    for activation, values in (("features", read.features), ("map", read.maps[-1])):
        out = objective(tiny(activation=activation), teacher, x)
        assert float(out.act) == pytest.approx(-float(values.abs().mean()), rel=1e-5)


def test_the_student_sees_the_images_the_generator_was_just_trained_on() -> None:
    """As they were before the generator's step, beyond [0, 1] too; a second student step sees them again."""
    task, method = a_task(), tiny(generator="tanh")
    state = method.setup(task, ROW.plan)
    clock = Clock(ROW.plan, 0)
    seen: list[torch.Tensor] = []
    handle = state.G.register_forward_hook(lambda _, given, made: seen.append(made.detach().clone()))
    before = [p.clone() for p in state.G.parameters()]
    method.synthesize(task, state, clock)
    with torch.no_grad():
        first, second = (method.batch(task, state, Clock(ROW.plan, 0, k)) for k in (0, 1))
    handle.remove()
    assert len(seen) == 1
    assert first.extra is not None
    assert second.extra is not None
    assert torch.equal(first.extra["normalised"], seen[0])
    assert torch.equal(second.extra["normalised"], seen[0])
    assert any(not torch.equal(p, q) for p, q in zip(before, state.G.parameters(), strict=True))
    assert len(first.images) == ROW.plan.batch_size
    pixels = task.teacher.denormalise(seen[0])
    assert not torch.equal(pixels, first.images)  # some were out of range
    torch.testing.assert_close(first.images, pixels.clamp(0, 1))
    loss = method.loss(task, state, first)
    t, s = (net(seen[0]) for net in (task.teacher.net, task.student.net))
    want = nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, want)


def test_fresh_images_come_from_new_codes() -> None:
    task, method = a_task(), tiny(images="fresh")
    state = method.setup(task, ROW.plan)
    method.synthesize(task, state, Clock(ROW.plan, 0))
    with torch.no_grad():
        first, second = (method.batch(task, state, Clock(ROW.plan, 0)) for _ in range(2))
    assert not torch.equal(first.images, second.images)
    assert not state.G.training  # its running statistics are used


def test_one_generator_lives_as_long_as_the_run() -> None:
    task = tiny_task(ROW)
    state = run(task, tiny(), ROW.plan)
    assert isinstance(state, DAFLState)
    steps = {int(s["step"]) for s in state.optimizer.state.values()}
    assert steps == {ROW.plan.rounds * ROW.plan.turns}


def test_the_loss_takes_images_of_another_method() -> None:
    task = a_task()
    batch = NoiseInput().batch(task, None, Clock(ROW.plan, 0))  # type: ignore[arg-type]
    state = tiny().setup(task, ROW.plan)
    t, s = (net(batch.images).logits for net in (task.teacher, task.student))
    want = nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(tiny().loss(task, state, batch), want)


OPTIONS: list[dict[str, Any]] = [
    {"generator": "large"},
    {"images": "fresh"},
    {"logarithm": "natural"},
    {"alpha_cls": 0.0},
    {"alpha_act": 0.0},
    {"alpha_ie": 0.0},
    {"temperature": 4.0},
    {"betas": (0.5, 0.999)},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_changes_the_student(option: dict[str, Any]) -> None:
    nets = []
    for method in (tiny(), tiny(**option)):
        task = tiny_task(ROW)
        run(task, method, ROW.plan)
        nets.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
    assert nets[1].isfinite().all()
    assert not torch.equal(nets[0], nets[1])


def test_the_published_settings() -> None:
    """The authors' README: weights, rates and batch sizes of its three data sets."""
    plan = DAFL.default_plan
    assert (plan.rounds, plan.steps, plan.turns, plan.batch_size) == (2000, 120, 120, 1024)
    assert (DAFL().alpha_cls, DAFL().alpha_ie, DAFL().alpha_act, DAFL().lr) == (0.05, 5.0, 0.01, 0.02)
