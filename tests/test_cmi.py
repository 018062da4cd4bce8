"""CMI: views, objective, contrast and bank against loops and other libraries' functions, every option once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.engine.core import Clock, Need, Task
from dfkd.engine.driver import check, run
from dfkd.errors import UserError
from dfkd.methods.cmi import CMI, CMIState, Views, contrast, objective
from dfkd.prepare import build_task
from settings import SETTINGS, tiny_task

ROW = SETTINGS["CMI"]
TERMS = ("cls", "bn", "adv")


def tiny(**changes: Any) -> CMI:
    method = ROW.method
    assert isinstance(method, CMI)
    return replace(method, **changes)


def a_task() -> Task:
    task = tiny_task(ROW)
    task.teacher.freeze()
    task.student.freeze()
    return task


def two_views(n: int = 9) -> tuple[Views, Tensor]:
    views = Views(torch.rand(n, *ROW.image_shape), torch.rand(n, *ROW.image_shape))
    return views, torch.arange(n) % ROW.classes


def inputs_of_norms(task: Task, x: Tensor) -> list[Tensor]:
    """What every BatchNorm layer of the teacher sees, by hooks of our own."""
    found: list[Tensor] = []
    norms = [layer for layer in task.teacher.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda _, given: found.append(given[0])) for norm in norms]
    task.teacher.net(task.teacher.normalise(x))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("mask", [True, False])
def test_the_objective_is_the_sum_of_its_terms(mask: bool) -> None:
    task, (views, y) = a_task(), two_views()
    method = tiny(mask=mask, alpha_bn=0.7, alpha_cls=1.3, alpha_adv=0.4)
    out = objective(method, task.teacher, task.student, views, y, True)
    t, s = (net(views.global_).logits.double() for net in (task.teacher, task.student))
    want = dict.fromkeys(TERMS, 0.0)
    for i in range(len(y)):
        p, q = torch.softmax(t[i], 0), torch.softmax(s[i], 0)
        want["cls"] -= float(p[y[i]].log()) / len(y)
        if int(t[i].argmax()) == int(s[i].argmax()) or not mask:
            want["adv"] += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)) / len(y)
    norms = [layer for layer in task.teacher.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    for x, norm in zip(inputs_of_norms(task, views.global_), norms, strict=True):
        x = x.double().transpose(0, 1).flatten(1)
        stored = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
        want["bn"] += float((x.mean(1) - stored[0]).norm() + (x.var(1, correction=0) - stored[1]).norm())
    for name, value in want.items():
        assert float(getattr(out, name)) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert float(out.loss) == pytest.approx(0.7 * want["bn"] + 1.3 * want["cls"] - 0.4 * want["adv"], rel=1e-4)
    quiet = objective(method, task.teacher, task.student, views, y, False)
    assert float(quiet.adv) == 0


def test_features_are_spatial_means_of_what_the_norms_see() -> None:
    task, (views, y) = a_task(), two_views()
    out = objective(tiny(), task.teacher, task.student, views, y, False)
    for got, x in ((out.local, views.local), (out.global_, views.global_)):
        want = torch.cat([given.flatten(2).mean(2) for given in inputs_of_norms(task, x)], dim=1)
        torch.testing.assert_close(got, want)
    stages = objective(tiny(layers="stages"), task.teacher, task.student, views, y, False)
    maps = task.teacher(views.local, maps=True).maps
    torch.testing.assert_close(stages.local, torch.cat([m.flatten(2).mean(2) for m in maps], dim=1))


@pytest.mark.parametrize(
    ("layers", "alpha_bn", "reads"),
    [
        ("norms", 1.0, {Need.BN}),
        ("norms", 0.0, {Need.BN}),
        ("stages", 1.0, {Need.BN, Need.STAGES}),
        ("stages", 0.0, {Need.STAGES}),
    ],
)
def test_what_is_read_is_asked_for(layers: Any, alpha_bn: float, reads: set[Need]) -> None:
    assert tiny(layers=layers, alpha_bn=alpha_bn).needs() == {Need.GRADIENT, Need.sides_of(4), *reads}


def test_stages_that_are_not_there_are_refused() -> None:
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)
    ]
    task = build_task(nets[0].eval(), nets[1], image_size=(1, 8, 8), mean=[0.5], std=[0.25])
    with pytest.raises(UserError, match="CMI needs stage maps"):
        check(task, tiny(layers="stages"))


@pytest.mark.parametrize("stored", [0, 4])
@torch.no_grad()
def test_the_contrast_is_cross_entropy_of_each_local_view_over_all_global_ones(stored: int) -> None:
    task, (views, y) = a_task(), two_views(5)
    out = objective(tiny(), task.teacher, task.student, views, y, False)
    d = out.local.shape[1]
    h, old = nn.Linear(d, 6), torch.randn(stored, 2 * d)
    value = contrast(tiny(contrast_temperature=0.2), h, out, old)
    local, global_ = torch.cat([out.local, old[:, :d]]), torch.cat([out.global_, old[:, d:]])
    losses = []
    for i, row in enumerate(h(local)):
        cosines = [float(nn.functional.cosine_similarity(row, other, dim=0)) for other in h(global_)]
        losses.append(-cosines[i] / 0.2 + math.log(sum(math.exp(c / 0.2) for c in cosines)))
    want = sum(losses[:5]) / 5 + (sum(losses[5:]) / stored if stored else 0)
    assert float(value) == pytest.approx(want, rel=1e-4)


def test_only_local_views_pull_at_the_images() -> None:
    """The global views' embeddings are constants, as in the authors' code."""
    task, (views, y) = a_task(), two_views(5)
    views = Views(*(view.requires_grad_(True) for view in views))
    out = objective(tiny(), task.teacher, task.student, views, y, False)
    loss = contrast(tiny(), nn.Linear(out.local.shape[1], 6), out, torch.zeros(0, 2 * out.local.shape[1]))
    local, global_ = torch.autograd.grad(loss, [views.local, views.global_], allow_unused=True)
    assert float(local.abs().sum()) > 0
    assert global_ is None or float(global_.abs().sum()) == 0


def test_a_full_bank_still_gives_negatives() -> None:
    """The authors' code gives none when exactly as many rows are stored as there is room for."""
    method = tiny(bank=20, batches=1, alpha_adv=0.0)
    task = a_task()
    state = method.setup(task, ROW.plan)
    for round, rows in enumerate((10, 20, 20)):
        made = method.synthesize(task, state, Clock(ROW.plan, round))
        assert (len(state.bank), state.bank.added) == (rows, 10 * (round + 1))
        assert all(math.isfinite(float(value)) for value in made.values())
    assert state.bank.rows["features"].isfinite().all()


def test_the_bank_holds_the_features_of_the_images_that_were_stored() -> None:
    method = tiny(batches=1, steps=1, pad=0, flip=False, local_area=(1.0, 1.0), bank=1000)
    task = a_task()
    state = method.setup(task, ROW.plan)
    method.synthesize(task, state, Clock(ROW.plan, 0))
    x = state.pool.newest(10)["images"].float() / 255
    want = torch.cat(list(task.teacher(x, means=True).means), dim=1)
    local, global_ = state.bank.newest(10)["features"].float().chunk(2, dim=1)
    torch.testing.assert_close(local, global_, rtol=0.02, atol=0.02)  # the whole image is its own part
    torch.testing.assert_close(global_, want, rtol=0.02, atol=0.02)  # stored images are rounded to bytes


def test_generator_and_codes_start_anew_and_the_head_lives_on() -> None:
    task, method = a_task(), tiny(steps=1, lr=1e-6)
    state = method.setup(task, ROW.plan)
    first = [p.clone() for p in state.h.parameters()]
    seen = []
    for round in range(2):
        method.synthesize(task, state, Clock(ROW.plan, round))
        seen.append(torch.cat([p.detach().flatten() for p in state.G.parameters()]))
    assert float((seen[0] - seen[1]).abs().mean()) > 0.01
    weight = state.G.get_parameter("project.weight")
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    steps = {int(s["step"]) for s in state.head_optimizer.state.values()}
    assert steps == {method.warmup_batches + method.batches}
    assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(first, state.h.parameters(), strict=True))


def test_warm_up_fills_pool_and_bank() -> None:
    task, method = a_task(), tiny(batches=1, warmup_batches=2)
    state = method.setup(task, ROW.plan)
    made = method.synthesize(task, state, Clock(ROW.plan, 0))
    assert (state.pool.added, state.bank.added) == (20, 20)
    assert float(made["loss/adversarial"]) == 0


def test_the_newest_images_are_not_of_a_few_classes() -> None:
    """Sorted by class, as in the authors' code, the newest of a batch would be of the last classes only."""
    task, method = a_task(), tiny(synthesis_batch=60, warmup_batches=1)
    state = method.setup(task, ROW.plan)
    method.synthesize(task, state, Clock(ROW.plan, 0))
    newest = state.pool.newest(20)["labels"].tolist()
    assert len(set(newest)) == task.classes


OPTIONS: list[dict[str, Any]] = [
    {"layers": "stages"},
    {"optimise_z": False},
    {"alpha_cr": 0.0},
    {"alpha_bn": 0.0},
    {"negatives": 3},
    {"local_area": (0.9, 1.0)},
    {"labels": "balanced"},
    {"keep": "last"},
    {"mask": False},
    {"contrast_temperature": 0.5},
]


def student_of(method: CMI) -> torch.Tensor:
    """The weights of a student trained with these settings, in one row."""
    task = tiny_task(ROW)
    state: CMIState = run(task, method, ROW.plan)  # type: ignore[assignment]
    assert state.pool.added > 0
    return torch.cat([p.detach().flatten() for p in task.student.parameters()])


@pytest.fixture(scope="module")
def usual_student() -> torch.Tensor:
    return student_of(tiny())


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_changes_the_student(option: dict[str, Any], usual_student: torch.Tensor) -> None:
    student = student_of(tiny(**option))
    assert student.isfinite().all()
    assert not torch.equal(student, usual_student)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps of at least 1"),
        ({"bank": 0}, "bank of at least 1"),
        ({"contrast_temperature": 0.0}, "contrast_temperature above 0"),
        ({"local_area": (0.0, 1.0)}, "local_area"),
        ({"local_area": (0.5, 0.2)}, "local_area"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**change)
