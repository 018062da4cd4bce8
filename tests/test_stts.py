"""STTS: the modelled layer, targets, objective, synthesis and its figures, against loops."""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.data.readers import STATISTICS
from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import run
from dfkd.engine.plan import Plan
from dfkd.engine.runtime import Runtime
from dfkd.engine.views import Cloud, Curves
from dfkd.errors import UserError
from dfkd.methods.stts import STTS, STTSState, _tools, objective
from dfkd.nets.lenet import LeNet5
from dfkd.nets.modes import batch_statistics
from dfkd.nets.soft_targets import maxima_over_sigma, maximum_over_sigma, soft_labels
from dfkd.nets.tail import find_tail, last_map
from dfkd.nets.zoo import ZOO, build
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_bytes
from dfkd.ops.pyramid import sum_of_grids
from dfkd.ops.targets import dirichlet_concentration
from dfkd.prepare import build_task
from dfkd.report.figures import figures_of

PLAN = Plan(rounds=1, warmup=1, steps=2, batch_size=8, optimizer="adam", lr=1e-3, weight_decay=0)
SMALL = STTS(steps=4, synthesis_batch=6, lr=0.1)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(teacher: nn.Module, student: str = "wrn10-1") -> Task:
    mean, std = STATISTICS["digits"]
    net, runtime = build(student, 10, 1).net, Runtime(device="cpu").launch()
    return build_task(teacher, net, image_size=(1, 8, 8), mean=mean, std=std, runtime=runtime)


def lenet_task() -> tuple[Task, LeNet5]:
    teacher, student = LeNet5(4, 1).eval(), build("lenet5-half", 4, 1).net
    runtime = Runtime(device="cpu").launch()
    return build_task(teacher, student, image_size=(1, 32, 32), mean=[0.3], std=[0.4], runtime=runtime), teacher


def synthesized(method: STTS, task: Task) -> tuple[STTSState, dict[str, float]]:
    task.teacher.freeze()
    state = method.setup(task, PLAN)
    made = method.synthesize(task, state, Clock(PLAN, 0))
    return state, {name: float(value) for name, value in made.items()}


@pytest.mark.parametrize(
    ("name", "layer"), [("lenet5", "hidden"), ("alexnet", "hidden2"), ("resnet8", "head"), ("vgg8", "head")]
)
def test_the_layer_of_the_paper_is_found(name: str, layer: str) -> None:
    net = build(name, 4).net.eval()
    tail = find_tail(net, (3, 32, 32))
    assert tail.layer == layer
    assert tail.weight.shape == net.get_submodule(layer).weight.shape


@pytest.mark.parametrize(
    "name", ["lenet5", "alexnet", "resnet8", "wrn10-1", "vgg8", "shufflenetv2", "mobilenetv2-half"]
)
def test_the_last_map_is_what_pooling_sees(name: str) -> None:
    net, shape = build(name, 4).net.eval(), (3, 32, 32)
    outputs: list[Tensor] = []
    for place in (last_map(net, shape), ZOO[name].stages[-1] if name in ZOO else "relu"):
        handle = net.get_submodule(place or "").register_forward_hook(lambda m, given, made: outputs.append(made))
        with torch.no_grad():
            net(torch.ones(1, *shape))
        handle.remove()
    assert torch.equal(*outputs)


def test_the_tail_is_the_rest_of_the_network() -> None:
    lenet, alexnet = LeNet5(4).eval(), build("alexnet", 4).net.eval()
    s = torch.randn(5, 84, generator=stream())
    tail = find_tail(lenet, (3, 32, 32))
    torch.testing.assert_close(tail(s), lenet.head(s.relu()).detach())
    after = find_tail(lenet, (3, 32, 32), space="post_act")
    torch.testing.assert_close(after(s), lenet.head(s).detach())
    logits = find_tail(lenet, (3, 32, 32), space="logits")
    assert torch.equal(logits(s[:, :4]), s[:, :4])
    s = torch.randn(5, 256, generator=stream())
    tail_of_alexnet = find_tail(alexnet, (3, 32, 32), "hidden2")
    torch.testing.assert_close(tail_of_alexnet(s), alexnet.head(alexnet.tail2(s)).detach())  # type: ignore[operator]
    assert not alexnet.get_submodule("hidden2")._forward_hooks


class Around(nn.Module):
    """A network whose last layer also reads what the one before does not pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(12, 5), nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.head(torch.cat([self.inner(flat).relu(), flat], dim=1))


def test_layers_that_cannot_be_modelled_are_refused() -> None:
    net, shape = Around().eval(), (3, 2, 2)
    assert find_tail(net, shape).layer == "head"  # auto: the classifier
    for layer, words in (("inner", "goes around"), ("nowhere", "inner, head")):
        with pytest.raises(UserError, match=words):
            find_tail(net, shape, layer)
    with pytest.raises(UserError, match="pre_act"):
        find_tail(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)).eval(), shape, "1", "post_act")
    with pytest.raises(UserError, match="classifier"):
        find_tail(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()).eval(), shape)


@pytest.mark.parametrize(("act", "tau2"), [("mean", True), ("sum", False)])
def test_the_objective_agrees_with_loops(act: Any, tau2: bool) -> None:
    task, net = lenet_task()
    method = STTS(act_reduction=act, kl_tau2=tau2, lambda_a=0.3, lambda_d=0.7)
    with _tools(method, task, method.setup(task, PLAN)) as (_, eye):
        pass
    x, y = torch.randn(3, 1, 32, 32, generator=stream()), torch.randn(3, 4, generator=stream(1))
    with torch.no_grad():
        out = objective(method, eye, x, y)
        maps = net.conv3(net.pool2(net.conv2(net.pool1(net.conv1(x)))))
        t = net(x).double()
    target = 0.0
    for i in range(3):
        p, q = (y[i].double() / 20).softmax(0), (t[i] / 20).softmax(0)
        target += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True)) / 3
    target *= 400 if tau2 else 1
    units = [sum(abs(float(v)) for v in image.flatten()) for image in maps]
    activation = -sum(units) / 3 / (120 if act == "mean" else 1)
    assert float(out.target) == pytest.approx(target, rel=1e-3, abs=1e-7)
    assert float(out.activation) == pytest.approx(activation, rel=1e-5)
    assert float(out.loss) == pytest.approx(0.7 * float(out.target) + 0.3 * activation, rel=1e-5)


def test_images_approach_their_targets(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    few = synthesized(replace(SMALL, steps=1, lambda_a=0), task)[1]
    many = synthesized(replace(SMALL, steps=40, lambda_a=0), make(digits_teacher))[1]
    assert many["loss/target"] < few["loss/target"] / 5


def test_activation_alone_raises_the_activations(digits_teacher: nn.Module) -> None:
    few = synthesized(replace(SMALL, steps=1, lambda_d=0, lambda_a=1), make(digits_teacher))[1]
    many = synthesized(replace(SMALL, steps=30, lambda_d=0, lambda_a=1), make(digits_teacher))[1]
    assert many["loss/activation"] < few["loss/activation"]


@pytest.mark.parametrize("std", [1.0, 0.1])
def test_the_set_holds_the_last_steps_images_as_bytes(digits_teacher: nn.Module, std: float) -> None:
    task = make(digits_teacher)
    method = replace(SMALL, steps=1, lr=1e-9, init_std=std)  # so that the noise itself is stored
    before = task.runtime.generator.get_state()
    state, _ = synthesized(method, task)
    again = stream()
    again.set_state(before)
    torch.randn(6, 64, generator=again)  # the targets' draw
    x = std * torch.randn(6, 1, 8, 8, generator=again)
    (mean,), (deviation,) = STATISTICS["digits"]
    assert torch.equal(state.pool.newest(6)["images"], as_bytes(x * deviation + mean))


@pytest.mark.parametrize("coarse", [0, 2])
@pytest.mark.parametrize("bound", ["step", "rescale"])
def test_bounded_pixels_stay_in_range(
    digits_teacher: nn.Module, bound: Any, coarse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dfkd.methods.stts as module

    seen: list[tuple[float, float]] = []
    original = module._clip_grids

    def watch(method: STTS, T: Any, grids: list[Tensor]) -> None:
        before = [grid.detach().clone() for grid in grids]
        original(method, T, grids)
        assert all(torch.equal(a, b) for a, b in zip(before[1:], grids[1:], strict=True))  # the finest takes it all
        pixels = T.denormalise(sum_of_grids(grids).detach())
        seen.append((float(pixels.min()), float(pixels.max())))

    monkeypatch.setattr(module, "_clip_grids", watch)
    synthesized(replace(SMALL, bound=bound, coarse=coarse), make(digits_teacher))
    assert len(seen) == 4
    assert all(low >= -1e-5 and high <= 1 + 1e-5 for low, high in seen)
    if bound == "rescale":
        assert all(abs(low) < 1e-5 and abs(high - 1) < 1e-5 for low, high in seen)


VARIANTS: list[dict[str, Any]] = [
    {"targets": "dirichlet"},
    {"targets": "dirichlet", "dirichlet": "coded", "init": "uniform", "bound": "rescale"},
    {"layer": "logits"},
    {"space": "logits"},
    {"keep": "best"},
    {"lambda_a": 0.0},
    {"act_reduction": "sum", "kl_tau2": False},
    {"memory": 4},
    {"flip": True},
    {"bound": "end"},
    {"alpha_bn": 3.0},
    {"alpha_bn": 3.0, "lambda_d": 0.0},
    {"teacher_bn": "batch", "student_target": "stored"},
    {"augment_synthesis": True},
    {"coarse": 2},
    {"coarse": 3, "keep": "best", "init": "uniform"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_trains(digits_teacher: nn.Module, changes: dict[str, Any]) -> None:
    task = make(digits_teacher)
    state = run(task, replace(SMALL, pad=1, **changes), PLAN)
    assert all(bool(value.isfinite().all()) for value in task.student.net.state_dict().values())
    assert isinstance(state, STTSState)
    assert len(state.pool) == changes.get("memory", 6)


@pytest.mark.parametrize("layer", ["auto", "hidden"])
def test_a_teacher_without_batchnorm_will_do(layer: str) -> None:
    task, net = lenet_task()
    assert not task.teacher.norms
    run(task, STTS(steps=2, synthesis_batch=5, layer=layer), PLAN)
    assert not net.conv3._forward_hooks or task.teacher.stage_names[-1] == "conv3"  # nothing of ours is left


def test_post_activation_units_can_be_modelled() -> None:
    task, _ = lenet_task()
    made = synthesized(STTS(steps=1, synthesis_batch=5, space="post_act"), task)[1]
    assert 0.25 <= made["target_maximum"] <= 1


def test_units_are_modelled_before_an_activation_in_place() -> None:
    for rest in (nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), nn.Hardswish(inplace=True)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), rest, nn.Linear(5, 3)).eval()
        tail, s = find_tail(net, (3, 2, 2)), torch.randn(4, 5, generator=stream())
        assert tail.layer == "1"
        copy = s.clone()
        torch.testing.assert_close(tail(s), net[3](net[2](copy.clone())).detach())
        assert torch.equal(s, copy)


class Interrupted(Exception):
    """Stands for Ctrl-C in the middle of a synthesis."""


@pytest.mark.parametrize("when", ["setup", "warm-up", "interrupted"])
def test_nothing_stays_hooked_to_the_teacher(
    digits_teacher: nn.Module, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(digits_teacher)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in task.teacher.net.modules())

    before, state = hooks(), SMALL.setup(task, PLAN)
    assert hooks() == before  # a report or another method's loss sets STTS up without making images
    if when == "warm-up":
        SMALL.synthesize(task, state, Clock(PLAN, 0))
        assert hooks() > before
        SMALL.synthesize(task, state, Clock(PLAN, 1))
    if when == "interrupted":
        monkeypatch.setattr("dfkd.methods.stts._clip_grids", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            SMALL.synthesize(task, state, Clock(PLAN, 0))
    assert hooks() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps of at least 1"),
        ({"memory": 0}, "memory of at least 1"),
        ({"sigma": -1.0}, "sigma of at least 0"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"scale": 1.0}, "scale below 1"),
        ({"scale": -2.0}, "scale of at least 0"),
        ({"alpha_bn": -1.0}, "alpha_bn of at least 0"),
        ({"betas": ()}, "betas above 0"),
        ({"betas": (1.0, 0.0)}, "betas above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        STTS(**change)


def test_grids_coarser_than_one_number_are_refused(digits_teacher: nn.Module) -> None:
    with pytest.raises(UserError, match="coarse of at most 3 for images of 8 pixels, got 4"):
        replace(SMALL, coarse=4).setup(make(digits_teacher), PLAN)
    assert replace(SMALL, coarse=3).setup(make(digits_teacher), PLAN).pool.capacity == 6


def test_coarse_grids_reach_the_statistics_sooner(digits_teacher: nn.Module) -> None:
    pixels, grids = (
        synthesized(replace(SMALL, steps=15, lr=0.05, alpha_bn=3.0, coarse=coarse), make(digits_teacher))[1]
        for coarse in (0, 2)
    )
    assert grids["loss/statistics"] < pixels["loss/statistics"]


def test_a_plan_without_warm_up_is_refused(digits_teacher: nn.Module) -> None:
    with pytest.raises(UserError, match="warm-up"):
        SMALL.setup(make(digits_teacher), replace(PLAN, warmup=0))


def test_a_teacher_without_maps_needs_no_activation_loss() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(UserError, match="lambda_a=0"):
        SMALL.setup(make(net), PLAN)
    state, _ = synthesized(replace(SMALL, lambda_a=0), make(net))
    assert len(state.pool) == 6


def test_synthesis_ends_with_the_warm_up(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = synthesized(SMALL, task)
    assert SMALL.synthesize(task, state, Clock(PLAN, 1)) == {}
    assert state.tools.value is None
    assert state.pool.added == 6


def test_dirichlet_targets_are_met_at_tau(digits_teacher: nn.Module) -> None:
    """The target's softened logits are the drawn probabilities: at the least loss T's softened answer equals them."""
    from dfkd.methods.stts import _draw

    task = make(digits_teacher)
    method = STTS(targets="dirichlet", synthesis_batch=400)
    rest = find_tail(task.teacher.net, task.image_shape)
    y = F.softmax(_draw(method, task, rest) / method.temperature, dim=1)
    torch.testing.assert_close(y.sum(dim=1), torch.ones(400))
    flat, peaked = y[:200].amax(dim=1).mean(), y[200:].amax(dim=1).mean()  # β = 1 and β = 0.1
    assert float(peaked) > float(flat) + 0.1
    few = [_draw(replace(method, synthesis_batch=10, betas=(1.0, 1e-4)), task, rest) for _ in range(20)]
    sure = torch.stack(few)[:, 5:]  # the half with the small β: one class each
    assert len(sure.argmax(dim=2).unique()) > 7  # as many images as classes, and yet not always the same half of them


def test_larger_variances_give_harder_targets(digits_teacher: nn.Module) -> None:
    found = maximum_over_sigma(digits_teacher, (1, 8, 8), [0.5, 1.5, 3.0], stream(), draws=4000)
    assert list(found) == [0.5, 1.5, 3.0]
    assert 0.1 < found[0.5] < found[1.5] < found[3.0] < 1
    groups = soft_labels(digits_teacher, (1, 8, 8), 2.0, stream(), draws=50).groups
    for rows in groups.values():
        assert rows.shape == (50, 10)
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(50))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"space": "logits"}, "over the logits,", marks=pytest.mark.slow),
        pytest.param({"layer": "logits"}, "over the logits,", marks=pytest.mark.slow),
        pytest.param(
            {"layer": "hidden", "space": "post_act"},
            "over the output of the activation after hidden,",
            marks=pytest.mark.slow,
        ),
        ({}, "over the output of hidden,"),
    ],
)
def test_figures_of_targets_are_those_of_the_run(change: dict[str, Any], words: str) -> None:
    method = STTS(sigma=3.0, temperature=2.0, betas=(0.05, 5.0), **change)
    task, net = lenet_task()
    task.teacher.freeze()
    net.head.weight.mul_(4)  # layers far apart
    made = {figure.name: figure for figure in figures_of(task, method, PLAN, None).figures}
    assert words.removeprefix("over ").rstrip(",") in made["target-maximum"].caption
    assert words in made["soft-labels"].caption
    assert "β = 0.05, 5" in made["soft-labels"].caption
    numbers = made["soft-labels"].numbers
    rng = np.random.default_rng(0)
    head, bias, hidden = (x.detach().double().numpy() for x in (net.head.weight, net.head.bias, net.hidden.weight))
    rows = head if "logits" in change.values() else hidden
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    y = rng.multivariate_normal(np.zeros(len(rows)), 3.0 * rows @ rows.T, 20_000)
    if rows.shape == hidden.shape:
        y = (y if "space" in change else np.maximum(y, 0)) @ head.T + bias
    expected = float((np.exp(y / 2) / np.exp(y / 2).sum(axis=1, keepdims=True)).max(axis=1).mean())
    assert numbers["largest probability, normal"] == pytest.approx(expected, abs=0.03)
    assert made["target-maximum"].numbers["σ = 3"] == pytest.approx(expected, abs=0.03)


def test_a_class_without_weights_is_refused_before_images_are_made() -> None:
    head = nn.Linear(72, 4)
    teacher, student = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)) for _ in range(2))
    teacher[3] = head
    with torch.no_grad():
        head.weight[2] = 0
    runtime = Runtime(device="cpu").launch()
    task = build_task(teacher.eval(), student, image_size=(1, 8, 8), mean=[0.3], std=[0.4], runtime=runtime)
    with pytest.raises(UserError, match=r"Dirichlet targets need .* all 0 in row 2; "):
        STTS(targets="dirichlet", synthesis_batch=4).setup(task, PLAN)
    STTS(synthesis_batch=4).setup(task, PLAN)
    with pytest.raises(UserError, match=r"Dirichlet targets need .* all 0 in row 2; "):
        soft_labels(task.teacher.net, (1, 8, 8), 1.0, stream())


def test_dirichlet_draws_that_show_another_class_are_counted(digits_teacher: nn.Module) -> None:
    """Against SciPy's Dirichlet: the share of draws whose largest class is not the row's own."""
    head = make(digits_teacher).teacher.head
    assert head is not None
    found = soft_labels(digits_teacher, (1, 8, 8), 2.0, stream(), 20.0, 4000, (1.0,))
    rng = np.random.default_rng(0)
    rows = dirichlet_concentration(head.weight.detach(), 1.0).double().numpy()
    other = np.mean([(rng.dirichlet(row, 400).argmax(axis=1) != k).mean() for k, row in enumerate(rows)])
    assert 0 < found.mismatch < 1
    assert found.mismatch == pytest.approx(other, abs=0.03)
    task = make(digits_teacher)
    view = STTS().views(task, None, None)["soft-labels-by-class"]()
    assert isinstance(view, Cloud)
    assert len(view.groups) == 10
    assert sum(len(points) for points in view.groups.values()) == 500


def test_the_spread_of_targets_is_shown(digits_teacher: nn.Module) -> None:
    view = STTS().views(make(digits_teacher), None, None)["target-maximum"]()
    assert isinstance(view, Curves)
    mean = dict(view.lines["temperature 1"])
    above, below = (dict(view.lines[f"temperature 1, one standard deviation {word}"]) for word in ("above", "below"))
    maxima = maxima_over_sigma(digits_teacher, (1, 8, 8), [2.0], stream(3), draws=4000)[2.0]
    assert above[2.0] - mean[2.0] == pytest.approx(float(np.std(maxima.numpy())), abs=0.03)
    assert mean[2.0] - below[2.0] == pytest.approx(above[2.0] - mean[2.0])


def test_dirichlet_soft_labels_have_the_scales_of_the_run(digits_teacher: nn.Module) -> None:
    """Half the draws of each β, against draws by SciPy's Dirichlet."""
    head = make(digits_teacher).teacher.head
    assert head is not None
    weight = head.weight.detach()
    kinds: list[tuple[tuple[float, ...], Literal["fixed", "coded"]]] = [((1.0, 0.1), "fixed"), ((0.1,), "coded")]
    for betas, dirichlet in kinds:
        found = soft_labels(digits_teacher, (1, 8, 8), 2.0, stream(), 20.0, 1000, betas, dirichlet=dirichlet)
        for i, beta in enumerate(betas):
            part = found.dirichlet.chunk(len(betas))[i].numpy()
            concentration = dirichlet_concentration(weight, beta, dirichlet).double().numpy()
            rng = np.random.default_rng(0)
            drawn = np.concatenate([rng.dirichlet(row, 400) for row in concentration])
            assert part.max(axis=1).mean() == pytest.approx(drawn.max(axis=1).mean(), abs=0.03)


def _moments(layers: list[nn.BatchNorm2d], net: nn.Module, x: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of every layer's input, by NumPy."""
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().double().numpy().transpose(1, 0, 2, 3).reshape(inputs[0].shape[1], -1)
        found.append((values.mean(axis=1), values.var(axis=1)))

    hooks = [layer.register_forward_pre_hook(read) for layer in layers]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


def test_the_batchnorm_term_is_deepinversions(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    method = replace(SMALL, alpha_bn=3.0, lambda_a=0.5)
    task.teacher.freeze()
    with _tools(method, task, method.setup(task, PLAN)) as (_, eye):
        pass
    x, y = torch.randn(5, 1, 8, 8, generator=stream()), torch.randn(5, 10, generator=stream(1))
    with torch.no_grad():
        out, plain = objective(method, eye, x, y), objective(replace(method, alpha_bn=0.0), eye, x, y)
    layers = [layer for layer in task.teacher.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        seen = _moments(layers, task.teacher.net, x)
    wanted = 0.0
    for (mean, var), layer in zip(seen, layers, strict=True):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        wanted += float(np.linalg.norm(mean - layer.running_mean.double().numpy()))
        wanted += float(np.linalg.norm(var - layer.running_var.double().numpy()))
    assert float(out.bn) == pytest.approx(wanted, rel=1e-4)
    assert float(out.loss - plain.loss) == pytest.approx(3 * wanted, rel=1e-4)
    assert float(plain.bn) == 0


def test_the_statistics_approach_the_stored_ones(digits_teacher: nn.Module) -> None:
    few = synthesized(replace(SMALL, steps=1, alpha_bn=3.0), make(digits_teacher))[1]
    many = synthesized(replace(SMALL, steps=40, alpha_bn=3.0), make(digits_teacher))[1]
    assert many["loss/statistics"] < few["loss/statistics"] / 2


def test_a_teacher_on_batch_statistics_stores_nothing(digits_teacher: nn.Module) -> None:
    net, x = digits_teacher.eval(), torch.randn(7, 1, 8, 8, generator=stream())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stored = net(x)
    with batch_statistics(net):
        got = net(x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(x), stored)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    wanted = net(x)  # the same batch in train mode, which does store
    net.load_state_dict(before)
    net.eval()
    assert torch.equal(got, wanted)
    assert not torch.allclose(got, stored)


@pytest.mark.parametrize("mode", ["stored", "batch"])
def test_stored_targets_are_the_teachers_answers_to_the_stored_images(digits_teacher: nn.Module, mode: Any) -> None:
    task = make(digits_teacher)
    method = replace(SMALL, student_target="stored", teacher_bn=mode)
    state, _ = synthesized(method, task)
    rows = state.pool.newest(6)
    with torch.no_grad(), batch_statistics(task.teacher.net, mode == "batch"):
        wanted = task.teacher.net(task.teacher.normalise(rows["images"].float() / 255))
    torch.testing.assert_close(rows["targets"], wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows["labels"], wanted.argmax(dim=1))
    task.student.eval()
    with torch.no_grad():
        batch = method.batch(task, state, Clock(PLAN, 1))
        loss = float(method.loss(task, state, batch))
        s = task.student(batch.images).logits
    assert batch.extra is not None
    p, q = (batch.extra["target"] / 20).softmax(1).double().numpy(), (s / 20).softmax(1).double().numpy()
    assert loss == pytest.approx(float(-(p * np.log(q)).sum(axis=1).mean()), rel=1e-5)


def test_a_teacher_on_batch_statistics_answers_the_students_batch(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    method = replace(SMALL, teacher_bn="batch")
    state, _ = synthesized(method, task)
    with torch.no_grad():
        batch = method.batch(task, state, Clock(PLAN, 1))
    with torch.no_grad(), batch_statistics(task.teacher.net):
        wanted = task.teacher.net(task.teacher.normalise(batch.images))
    assert batch.extra is not None
    torch.testing.assert_close(batch.extra["target"], wanted, rtol=1e-4, atol=1e-4)
    assert replace(SMALL).batch(task, state, Clock(PLAN, 1)).extra is None


@pytest.mark.parametrize("settings", [{"lr": 0.5}, {"augment_synthesis": True, "lr": 0.3}, {"keep": "best", "lr": 0.5}])
def test_labels_are_the_teachers_classes_of_the_stored_images(digits_teacher: nn.Module, settings: Any) -> None:
    task = make(digits_teacher)
    state, _ = synthesized(replace(SMALL, **settings), task)
    rows = state.pool.newest(6)
    with torch.no_grad():
        wanted = task.teacher.net(task.teacher.normalise(rows["images"].float() / 255)).argmax(dim=1)
    assert torch.equal(rows["labels"], wanted)


def test_what_augmentation_leaves_is_counted(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    still = replace(SMALL, degrees=0, scale=0, shift=0, pad=0, noise=0)
    _, made = synthesized(still, task)
    assert made["augmented/same_class"] == 1
    state, made = synthesized(SMALL, make(digits_teacher))
    images = state.pool.newest(6)["images"].float() / 255
    own = stream()  # of its own: seed 0 at every look
    turned = affine(images, draw_affine(6, own, 15.0, 0.1, 0.1))
    moved = crop_flip(turned, own, 4, False)
    noisy = (moved + 0.05 * torch.randn(moved.shape, generator=own)).clamp(0, 1)
    with torch.no_grad():
        before = task.teacher.net(task.teacher.normalise(images)).argmax(1).numpy()
        after = task.teacher.net(task.teacher.normalise(noisy)).softmax(1).double().numpy()
    assert made["augmented/same_class"] == pytest.approx((after.argmax(1) == before).mean())
    p = after.mean(axis=0)
    assert made["augmented/class_entropy"] == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-3)


def test_images_may_be_optimised_as_the_student_will_see_them(
    digits_teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objective is then given augmented images: drawn anew in every step, with gradients to the pixels."""
    import dfkd.methods.stts as module

    given: list[Tensor] = []

    def watch(method: STTS, T: Any, x: Tensor, y: Tensor) -> Any:
        given.append(T.denormalise(x))
        return objective(method, T, x, y)

    monkeypatch.setattr(module, "objective", watch)
    viewed = replace(SMALL, steps=2, lr=1e-9, augment_synthesis=True, degrees=0, scale=0, shift=0, noise=0, pad=3)
    state, _ = synthesized(viewed, make(digits_teacher))
    images = state.pool.newest(6)["images"].float() / 255  # hardly moved, at this rate
    shifts = []
    for x in given:
        padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
        for image, wide in zip(x, padded, strict=True):
            found = [
                (i, j)
                for i in range(7)
                for j in range(7)
                if torch.allclose(image, wide[:, i : i + 8, j : j + 8], atol=3e-3)
            ]
            assert found
            shifts.append(found[0])
    assert shifts[:6] != shifts[6:]


@pytest.mark.parametrize("change", [{"alpha_bn": 1.0}, {"teacher_bn": "batch"}], ids=str)
def test_readings_of_batchnorm_need_some(change: dict[str, Any]) -> None:
    task, _ = lenet_task()
    with pytest.raises(UserError, match="BatchNorm"):
        run(task, STTS(steps=1, synthesis_batch=5, **change), PLAN)
