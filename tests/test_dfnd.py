"""DFND: selection, noise matrix and loss against loops, every option once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import run
from dfkd.errors import UserError
from dfkd.losses.noise import noisy_label_loss
from dfkd.methods.dfnd import DFND, DFNDState
from dfkd.nets.noise import NoiseMatrix
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import most_certain
from settings import SETTINGS, tiny_task

ROW = SETTINGS["DFND"]


def tiny(**changes: Any) -> DFND:
    method = ROW.method
    assert isinstance(method, DFND)
    return replace(method, **changes)


def selected(method: DFND) -> tuple[Task, DFNDState, dict[str, float]]:
    task = tiny_task(ROW)
    task.teacher.freeze()
    task.student.freeze()
    state = method.setup(task, ROW.plan)
    made = method.synthesize(task, state, Clock(ROW.plan, 0))
    return task, state, {name: float(value) for name, value in made.items()}


def test_those_are_kept_of_whose_class_the_teacher_is_surest() -> None:
    task, state, made = selected(tiny(selected=20))
    assert task.web is not None
    (_, web), *more = task.web.blocks(1000)
    assert not more
    with torch.no_grad():
        logits = task.teacher(as_images(web)).logits
    losses = [float(nn.functional.cross_entropy(t[None], t.argmax()[None])) for t in logits]
    assert state.chosen.tolist() == sorted(sorted(range(60), key=losses.__getitem__)[:20])
    assert state.predicted.tolist() == logits[state.chosen].argmax(dim=1).tolist()
    assert made["selected"] == 20
    assert made["selected_share"] == pytest.approx(1 / 3)
    assert made["certainty/least"] == pytest.approx(math.exp(-sorted(losses)[19]), rel=1e-5)
    assert made["selected_classes"] == len(set(state.predicted.tolist()))


def test_how_many_are_kept() -> None:
    assert len(selected(tiny(selected=1000))[1].chosen) == 60  # all there are
    assert len(selected(tiny(selected_share=0.25))[1].chosen) == 15
    assert selected(tiny(select="random", selected=30))[1].chosen.tolist() != list(range(30))


def test_of_random_images_too_the_least_certainty_is_a_probability() -> None:
    task, state, made = selected(tiny(select="random", selected=30))
    assert task.web is not None
    with torch.no_grad():
        logits = task.teacher(as_images(task.web.take(state.chosen))).logits
    assert made["certainty/least"] == pytest.approx(float(logits.softmax(dim=1).amax(dim=1).min()), rel=1e-5)
    assert state.predicted.tolist() == logits.argmax(dim=1).tolist()


def test_equally_sure_images_are_taken_in_order() -> None:
    assert most_certain(torch.tensor([0.0, -1.0, 0.0, -2.0, 0.0]), 2).tolist() == [0, 2]
    assert most_certain(torch.tensor([0.0, -1.0]), 5).tolist() == [0, 1]


def test_it_selects_once() -> None:
    task, state, _ = selected(tiny())
    before = state.chosen.clone()
    assert tiny().synthesize(task, state, Clock(ROW.plan, 1)) == {}
    assert torch.equal(state.chosen, before)


def test_rows_of_the_matrix_are_probabilities_with_the_accuracy_on_the_diagonal() -> None:
    Q = NoiseMatrix(5, 0.9)
    start = Q()
    torch.testing.assert_close(start, 0.9 * torch.eye(5) + 0.1 / 4 * (1 - torch.eye(5)))
    nn.init.normal_(Q.logits)
    learnt, free = Q().detach(), Q.logits.detach()
    for i in range(5):
        others = {j: math.exp(float(free[i, j])) for j in range(5) if j != i}
        want = [0.9 if j == i else 0.1 * others[j] / sum(others.values()) for j in range(5)]
        assert learnt[i].tolist() == pytest.approx(want, rel=1e-5)
    (slope,) = torch.autograd.grad(Q().square().sum(), Q.logits)
    assert slope.isfinite().all()
    assert not slope.diagonal().any()


def test_the_label_term_is_the_likelihood_of_what_the_teacher_says() -> None:
    s, labels = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    Q = torch.rand(4, 4, dtype=torch.float64).softmax(dim=1)
    want = []
    for logits, label in zip(s, labels.tolist(), strict=True):
        p = torch.softmax(logits, dim=0)
        want.append(-math.log(sum(float(p[i] * Q[i, label]) for i in range(4))))
    assert float(noisy_label_loss(s, labels, Q)) == pytest.approx(sum(want) / 7)
    torch.testing.assert_close(
        noisy_label_loss(s, labels, torch.eye(4, dtype=torch.float64)), nn.functional.cross_entropy(s, labels)
    )
    sure = torch.tensor([[0.0, 200.0]])  # a product of probabilities would be 0 in float32
    assert float(noisy_label_loss(sure, torch.tensor([0]), torch.tensor([[1.0, 0.0], [1e-6, 1.0]]))) == pytest.approx(
        -math.log(1e-6), rel=1e-4
    )
    s.requires_grad_(True)
    Q.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s, Q: noisy_label_loss(s, labels, Q), (s, Q))


@torch.no_grad()
def test_the_loss_is_imitation_and_labels() -> None:
    method = tiny(label_weight=0.5, temperature=3.0)
    task, state, _ = selected(method)
    batch = method.batch(task, state, Clock(ROW.plan, 0))
    assert batch.rows is not None
    assert set(batch.rows.tolist()) <= set(state.chosen.tolist())
    t, s = task.teacher(batch.images).logits, task.student(batch.images).logits
    imitation = nn.functional.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * 9
    labels = nn.functional.nll_loss((s.softmax(1) @ state.Q()).log(), t.argmax(1))
    torch.testing.assert_close(method.loss(task, state, batch), imitation + 0.5 * labels)
    torch.testing.assert_close(tiny(adaptation="none", temperature=3.0).loss(task, state, batch), imitation)


def test_the_matrix_learns_by_a_rule_of_its_own() -> None:
    task = tiny_task(ROW)
    state = run(task, tiny(lr=0.01), ROW.plan)
    assert isinstance(state, DFNDState)
    (logits,) = state.Q.parameters()
    own = torch.eye(ROW.classes, dtype=torch.bool)
    moved = logits.detach().abs()[~own]
    # Adam moves by about its rate in each of six steps, whatever the student's rate is.
    assert 0.01 < float(moved.max()) < 0.061
    assert not logits.detach()[own].any()


OPTIONS: list[dict[str, Any]] = [
    {"select": "random"},
    {"selected_share": 0.5},
    {"adaptation": "none"},
    {"label_weight": 0.1},
    {"teacher_accuracy": 0.5},
    {"temperature": 1.0},
    {"lr": 0.5},
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"selected": 0}, "selected of at least 1"),
        ({"block": 0}, "block of at least 1"),
        ({"selected_share": 0.0}, "selected_share above 0"),
        ({"teacher_accuracy": 1.0}, "teacher_accuracy above 0 and below 1"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**change)
