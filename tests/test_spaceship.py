"""Spaceship-Net: the feature pool, its choices, the objective and mSARC against loops, every option once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import run
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.views import Grid
from dfkd.errors import UserError
from dfkd.methods.spaceship import BestFeatures, SpaceshipNet, SpaceshipState, keep_features, objective, pool_bytes
from dfkd.report.cams import activation_regions, cam_report, save_cams
from dfkd.types import Batch
from settings import SETTINGS, Setting, tiny_plan, tiny_task

ROW = SETTINGS["SpaceshipNet"]
CLOCK = Clock(tiny_plan(), 0)


def tiny(**changes: Any) -> SpaceshipNet:
    method = ROW.method
    assert isinstance(method, SpaceshipNet)
    return replace(method, **changes)


def started(method: SpaceshipNet, row: Setting = ROW) -> tuple[Task, SpaceshipState]:
    """A task and the state after one round of synthesis."""
    task = tiny_task(row)
    state = method.setup(task, CLOCK.plan)
    task.teacher.freeze()
    task.student.freeze()
    method.synthesize(task, state, CLOCK)
    return task, state


# ---- features and images --------------------------------------------------------------------------------------------


def test_the_features_of_the_best_step_are_kept() -> None:
    losses = [3.0, math.nan, 2.0, 2.5, -1.0, 7.0]
    steps = [[torch.full((2, 1, 1, 1), float(i)), torch.full((2, 3, 2, 2), float(-i))] for i in range(6)]
    for first in range(6):
        kept = BestFeatures(torch.tensor(torch.inf), ())
        for i in range(first, 6):
            kept = keep_features(kept, torch.tensor(losses[i]), steps[i], "best")
        best = min(range(first, 6), key=lambda i: math.inf if math.isnan(losses[i]) else losses[i])
        assert [float(f.flatten()[0]) for f in kept.features] == [best, -best]
        assert {f.dtype for f in kept.features} == {torch.float16}
    assert float(keep_features(kept, torch.tensor(99.0), steps[1], "last").features[0][0]) == 1


def test_a_pool_costs_what_was_estimated() -> None:
    plan = Plan(rounds=3, warmup=1)
    for method in (tiny(memory=None), tiny(memory=7), tiny(taps=(0, 2), memory=None)):
        state = method.setup(tiny_task(ROW), plan)
        assert state.pool.nbytes == pool_bytes(method, ROW.image_shape, plan)
    one = SpaceshipNet(memory=1)
    assert pool_bytes(one, (3, 32, 32), plan) == 106_496 * 2 + 8
    assert pool_bytes(one, (3, 64, 64), plan) == 425_984 * 2 + 8
    assert pool_bytes(SpaceshipNet(), (3, 32, 32), SpaceshipNet.default_plan) == 51_200 * (106_496 * 2 + 8)


def test_a_pool_above_the_limit_is_memory_mapped_and_trains_the_same_student() -> None:
    nets = []
    for limit in (None, 100):
        task = tiny_task(ROW)
        state = run(task, tiny(limit_bytes=limit), ROW.plan)
        assert isinstance(state, SpaceshipState)
        assert state.pool.spilled == (limit is not None)
        nets.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
    assert torch.equal(*nets)


def test_a_pool_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfkd.data.pool.free_disk", lambda folder: 10)
    with pytest.raises(UserError, match=r"^pool needs .* GB for 32 rows, got .*; set the method's memory"):
        tiny(limit_bytes=5).setup(tiny_task(ROW), ROW.plan)


def test_choices_are_uniform_taps_and_a_share_of_exchanges() -> None:
    task, state = started(tiny(taps=(0, 2), p=0.3))
    method = tiny(taps=(0, 2), p=0.3)
    clock = Clock(Plan(rounds=1, steps=4000), 0)
    method.synthesize(task, state, clock)
    assert len(state.choices) == 4000
    assert {tap for tap, _ in state.choices} == {0, 2}
    assert abs(sum(tap == 0 for tap, _ in state.choices) / 4000 - 0.5) < 0.04
    assert abs(sum(mixed for _, mixed in state.choices) / 4000 - 0.3) < 0.04


@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("mixed", [False, True])
def test_images_are_decoded_from_stored_features(tap: int, mixed: bool) -> None:
    method = tiny(pad=0, flip=False)
    task, state = started(method)
    state.choices = [(tap, mixed)]
    task.runtime.generator.manual_seed(5)
    with torch.no_grad():
        batch = method.batch(task, state, CLOCK)
    replay = torch.Generator().manual_seed(5)
    rows = torch.randint(len(state.pool), (12,), generator=replay)
    features = state.pool.rows[f"tap{tap}"][rows].float()
    if mixed:
        scores, own = torch.rand(12, features.shape[1], generator=replay), features.clone()
        for i in range(6):
            for channel, value in enumerate(scores[i].argsort().tolist()):  # a random permutation
                if value < features.shape[1] // 2:
                    features[i, channel], features[11 - i, channel] = own[11 - i, channel], own[i, channel]
    with torch.no_grad():
        want = state.G.decode(features, tap)
    assert not state.G.training
    torch.testing.assert_close(batch.images, want)
    assert batch.labels is not None
    assert torch.equal(batch.labels, state.pool.rows["labels"][rows])


@pytest.mark.parametrize(("labels", "first"), [("fixed", [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), ("balanced", None)])
def test_labels(labels: str, first: list[int] | None) -> None:
    _, state = started(tiny(labels=labels))
    stored = state.pool.newest(10)["labels"].tolist()
    assert first is None or stored == first
    counts = [stored.count(k) for k in range(ROW.classes)]
    assert max(counts) - min(counts) <= 1


def test_the_generators_objective() -> None:
    task = tiny_task(ROW)
    task.teacher.freeze()
    x, y = torch.rand(8, *ROW.image_shape), torch.arange(8) % ROW.classes
    out = objective(tiny(lambda_cls=0.5, lambda_bn=2.0, first_bn=3.0), task.teacher, x, y)
    read = task.teacher(x, stats=True)
    logits = read.logits.double()
    cls = sum(float(logits[i].logsumexp(0) - logits[i, y[i]]) for i in range(8)) / 8
    bn = 0.0
    for layer, (now, stored) in enumerate(zip(read.stats, read.stored, strict=True)):
        distance = math.dist(now.mean.tolist(), stored.mean.tolist()) + math.dist(now.var.tolist(), stored.var.tolist())
        bn += distance * (3 if layer == 0 else 1)
    assert float(out.cls) == pytest.approx(cls, rel=1e-5)
    assert float(out.bn) == pytest.approx(bn, rel=1e-4)
    assert float(out.loss) == pytest.approx(0.5 * cls + 2 * bn, rel=1e-4)


# ---- the student's loss ---------------------------------------------------------------------------------------------


def cam_terms(task: Task, x: Tensor, last: bool = True) -> tuple[float, float]:
    """mSARC's two terms with Grad-CAM by differentiating one image, one stage at a time."""
    T, S = task.teacher, task.student
    y = T(x).logits.argmax(dim=1)
    cams: list[list[Tensor]] = []
    grads: list[list[Tensor]] = []
    for net in (T, S):
        out = net(x.clone().requires_grad_(True), maps=True)
        assert net.head is not None
        cams.append([(net.head.weight @ a.flatten(1)).detach() for a in out.maps[-1]])
        stages = out.maps if last else out.maps[:-1]
        grads.append([])
        for stage in stages:
            whole = torch.zeros(len(x), *stage.shape[2:])
            for i in range(len(x)):
                slope = torch.autograd.grad(out.logits[i, y[i]], stage, retain_graph=True)[0][i]
                for c in range(stage.shape[1]):
                    whole[i] += slope[c].mean() * stage[i, c].detach()
            grads[-1].append(whole)
    cam = float(torch.stack([(a - b).square().mean() for a, b in zip(*cams, strict=True)]).mean())
    return cam, sum(float((a - b).square().mean()) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("reduction", ["element_mean", "batchmean"])
def test_the_students_loss_is_kl_plus_msarc(reduction: str, last: bool) -> None:
    method = tiny(kl_reduction=reduction, gradcam_last=last, lambda_kl=0.7, lambda_cam=2.0, lambda_gradcam=3.0)
    task, state = started(method)
    task.student.requires_grad_(True)
    x = torch.rand(5, *ROW.image_shape)
    loss = method.loss(task, state, Batch(x))
    t, s = (net(x).logits.detach().double() / 30 for net in (task.teacher, task.student))
    kl = 900 * float(F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum")) / 5
    kl = kl / ROW.classes if reduction == "element_mean" else kl
    cam, gradcam = cam_terms(task, x, last)
    assert float(loss.detach()) == pytest.approx(0.7 * kl + 2 * cam + 3 * gradcam, rel=1e-3)


def test_a_copy_of_the_teacher_has_nothing_to_learn() -> None:
    row = replace(ROW, student=ROW.teacher)
    task = tiny_task(row)
    task.teacher.freeze()
    task.student.net.load_state_dict(task.teacher.net.state_dict())
    task.student.eval()
    state = tiny().setup(task, row.plan)
    for constraint in ("msarc", "at", "none"):
        loss = tiny(constraint=constraint).loss(task, state, Batch(torch.rand(6, *row.image_shape)))
        assert abs(float(loss.detach())) < 1e-5
        grads = torch.autograd.grad(loss, list(task.student.parameters()), allow_unused=True)
        assert all(g is None or float(g.abs().max()) < 1e-4 for g in grads)


@pytest.mark.parametrize("constraint", ["at", "fitnets"])
def test_other_constraints_are_sums_over_stages(constraint: str) -> None:
    method = tiny(constraint=constraint, lambda_kl=0.0, lambda_at=2.0, lambda_fitnets=2.0)
    task, state = started(method)
    x = torch.rand(4, *ROW.image_shape)
    ours, theirs = task.student(x, maps=True).maps, task.teacher(x, maps=True).maps
    want = 0.0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if constraint == "fitnets":
            a = state.joint[f"stage{i}"](a)
        else:
            a, b = (F.normalize(m.pow(2).mean(1).flatten(1), dim=1) for m in (a, b))
        want += 2 * float((a - b).detach().double().square().mean())
    assert float(method.loss(task, state, Batch(x)).detach()) == pytest.approx(want, rel=1e-4)


def test_fitnets_regressors_train_with_the_student() -> None:
    task = tiny_task(ROW)
    method = tiny(constraint="fitnets")
    before = method.setup(tiny_task(ROW), ROW.plan).joint.state_dict()
    after = run(task, method, ROW.plan).joint.state_dict()
    assert len(after) == 2 * len(task.student.stage_names)
    assert all(not torch.equal(after[key], before[key]) for key in after)


def test_the_picture_of_exchanges_shows_both_samples_and_the_mixture() -> None:
    task = tiny_task(ROW)
    method = tiny(fraction=0.0)
    task.student.freeze()
    state = method.setup(task, ROW.plan)
    method.synthesize(task, state, Clock(ROW.plan, 0))
    view = method.views(task, state, None)["exchange"]()
    assert isinstance(view, Grid)
    parts = view.images.view(3, 3, 8, *task.image_shape)  # taps, (sample, partner, mixture), columns
    assert torch.equal(parts[:, 0], parts[:, 2])  # nothing is exchanged
    whole = tiny(fraction=1.0).views(task, state, None)["exchange"]()
    assert isinstance(whole, Grid)
    parts = whole.images.view(3, 3, 8, *task.image_shape)
    assert torch.equal(parts[:, 1], parts[:, 2])  # everything: the partner
    assert list(view.names)[:3] == ["sample (tap 0)", "partner (tap 0)", "exchange (tap 0)"]
    assert method.views(task, None, None) == {}


OPTIONS: list[dict[str, Any]] = [
    {"diversity": "mixup"},
    {"diversity": "cutmix"},
    {"diversity": "mixup", "mixing": "batch"},
    {"diversity": "none"},
    {"constraint": "at"},
    {"constraint": "fitnets"},
    {"constraint": "none"},
    {"pairs": "independent"},
    {"fraction": 0.25},
    {"taps": (1,)},
    {"keep": "last"},
    {"labels": "uniform"},
    {"labels": "fixed"},
    {"init": "torch"},
    {"init_student": True},
    {"gradcam_last": False},
    {"kl_reduction": "batchmean"},
    {"first_bn": 4.0},
    {"lambda_bn": 0.0},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_changes_the_student(option: dict[str, Any]) -> None:
    nets = []
    for method in (tiny(p=1.0), tiny(p=1.0, **option)):
        task = tiny_task(ROW)
        run(task, method, tiny_plan(rounds=2))
        nets.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
    assert nets[1].isfinite().all()
    assert not torch.equal(nets[0], nets[1])


def test_the_students_own_start_is_kept_unless_asked() -> None:
    task = tiny_task(ROW)
    before = {key: value.clone() for key, value in task.student.net.state_dict().items()}
    tiny().setup(task, ROW.plan)
    assert all(torch.equal(value, before[key]) for key, value in task.student.net.state_dict().items())
    tiny(init_student=True).setup(task, ROW.plan)
    widest = max(
        (m for m in task.student.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel()
    ).weight.detach()
    fans = widest[0].numel() + widest.shape[0] * widest[0, 0].numel()
    assert float(widest.std()) == pytest.approx(math.sqrt(2) * math.sqrt(2 / fans), rel=0.05)


def test_a_new_start_leaves_frozen_layers_alone() -> None:
    task = tiny_task(ROW)
    weights = [parameter for parameter in task.student.net.parameters() if parameter.dim() == 4]
    weights[0].requires_grad_(False)
    before = [weight.detach().clone() for weight in weights]
    run(task, tiny(init_student=True), tiny_plan(rounds=1))
    assert torch.equal(weights[0], before[0])
    assert not weights[0].requires_grad
    assert not any(torch.equal(weight, old) for weight, old in zip(weights[1:], before[1:], strict=True))


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"taps": ()}, "different taps"),
        ({"taps": (0, 3)}, "different taps"),
        ({"taps": (1, 1)}, "different taps"),
        ({"p": 1.2}, "p from 0 to 1"),
        ({"fraction": -0.1}, "fraction from 0 to 1"),
        ({"channels": 0}, "channels of at least 1"),
        ({"memory": 0}, "memory of at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**change)


def test_a_head_that_does_not_pool_is_refused() -> None:
    row = replace(ROW, teacher="lenet5", student="lenet5", image_shape=(1, 32, 32))
    task = tiny_task(row)
    with pytest.raises(UserError, match="whose head sees its last stage through global average pooling"):
        tiny(lambda_bn=0.0).setup(task, row.plan)
    assert tiny(lambda_bn=0.0, constraint="at").setup(task, row.plan)


def test_a_last_stage_that_is_not_what_the_head_pools_is_refused() -> None:
    """At 64 pixels VGG-11's last map has no partner in ResNet-18; the one before has as many channels."""
    for teacher, student, role in (("vgg11", "resnet18", "teacher"), ("resnet18", "vgg11", "student")):
        task = tiny_task(replace(ROW, teacher=teacher, student=student, image_shape=(1, 64, 64)))
        with pytest.raises(UserError, match=f"needs a {role} whose head sees"):
            tiny().setup(task, ROW.plan)
    small = tiny_task(replace(ROW, teacher="vgg11", student="resnet18", image_shape=(1, 32, 32)), precision="bf16")
    assert tiny().setup(small, ROW.plan)


def test_stages_of_unequal_sizes_are_refused() -> None:
    task = tiny_task(ROW)
    task = replace(task, student=_reprobed(task.student))
    with pytest.raises(UserError, match="stages of equal sizes"):
        tiny(constraint="at").setup(task, ROW.plan)


def _reprobed(probe: Probe) -> Probe:
    net = probe.release()
    return Probe(net, mean=(0.4,), std=(0.3,), head=probe.head_name, stages=probe.stage_names[:-1])


# ---- the comparison of activation maps ------------------------------------------------------------------------------


def test_a_report_of_activation_maps(tmp_path: Path) -> None:
    task = tiny_task(ROW)
    task.teacher.freeze()
    images = torch.randint(256, (7, *ROW.image_shape), dtype=torch.uint8)
    report = cam_report(task, images, batch_size=3)
    stages = len(task.teacher.stage_names)
    assert set(report) == {"mae", "mse"} | {f"stage{i}/{kind}" for i in range(stages) for kind in ("mae", "mse")}
    x = images.float() / 255
    y = task.teacher(x).logits.argmax(dim=1)
    maps = []
    for net in (task.teacher, task.student.eval()):
        assert net.head is not None
        cam = [
            net.head.weight[k].detach() @ a.detach().flatten(1)
            for k, a in zip(y, net(x, maps=True).maps[-1], strict=True)
        ]
        maps.append([255 * (m - m.min()) / (m.max() - m.min()) for m in cam])
    gaps = torch.stack([(a - b).abs() for a, b in zip(*maps, strict=True)])
    assert report["mae"] == pytest.approx(float(gaps.mean()), rel=1e-4)
    assert report["mse"] == pytest.approx(float(gaps.square().mean()), rel=1e-4)
    save_cams(task, images, tmp_path / "new" / "cams.png", tile=20)
    with Image.open(tmp_path / "new" / "cams.png") as picture:
        assert picture.size == (7 * 24, 3 * 24)


def test_equal_networks_look_at_the_same_places() -> None:
    task = tiny_task(replace(ROW, student=ROW.teacher))
    task.student.net.load_state_dict(task.teacher.net.state_dict())
    images = torch.randint(256, (4, *ROW.image_shape), dtype=torch.uint8)
    assert all(value < 1e-2 for value in cam_report(task, images).values())


def test_activation_maps_need_a_pooled_head() -> None:
    task = tiny_task(replace(ROW, teacher="lenet5", student="lenet5", image_shape=(1, 32, 32)))
    with pytest.raises(UserError, match="needs stages and a linear head behind global pooling"):
        activation_regions(task.teacher, torch.rand(2, 1, 32, 32), torch.zeros(2, dtype=torch.int64))
