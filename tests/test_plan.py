"""The budget: schedules against torch's schedulers, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.engine.plan import Plan
from dfkd.errors import UserError


def torch_rates(schedule: Any, optimizer: torch.optim.Optimizer, rounds: int) -> list[float]:
    rates = []
    for _ in range(rounds):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def an_optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.floats(1e-4, 1.0), st.floats(0, 1e-4))
def test_cosine_is_torch_cosine_after_the_warm_up(rounds: int, warmup: int, lr: float, least: float) -> None:
    plan = Plan(rounds=rounds, warmup=warmup, lr=lr, lr_min=least)
    optimizer = an_optimizer(lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds, eta_min=least)
    expected = torch_rates(schedule, optimizer, rounds)
    assert [plan.rate(r) for r in range(warmup)] == pytest.approx([lr] * warmup)
    assert [plan.rate(warmup + e) for e in range(rounds)] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_steps_are_torch_milestones() -> None:
    plan = Plan(rounds=12, warmup=2, lr=0.4, schedule="step", milestones=(3, 7, 10), gamma=0.2)
    optimizer = an_optimizer(0.4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 10], gamma=0.2)
    expected = torch_rates(schedule, optimizer, 12)
    assert [plan.rate(2 + e) for e in range(12)] == pytest.approx(expected, rel=1e-9)


def test_constant_stays() -> None:
    assert {Plan(rounds=5, lr=0.3, schedule="constant").rate(r) for r in range(5)} == {0.3}


def test_warm_up_rounds_have_no_student_steps() -> None:
    plan = Plan(rounds=3, warmup=2, steps=7)
    assert plan.total == 5
    assert [plan.steps_in(r) for r in range(plan.total)] == [0, 0, 7, 7, 7]


@pytest.mark.parametrize(
    "bad",
    [
        {"rounds": 0},
        {"rounds": 2.0},
        {"rounds": True},
        {"warmup": -1},
        {"steps": 0},
        {"batch_size": 0},
        {"lr": float("nan")},
        {"lr": -0.1},
        {"lr_min": float("inf")},
        {"weight_decay": -1.0},
        {"optimizer": "adamw"},
        {"schedule": "linear"},
        {"momentum": 1.0},
        {"momentum": 0.0, "nesterov": True},
        {"clip": 0.0},
        {"clip": -1.0},
        {"gamma": -0.1},
        {"lr": "0.1"},
        {"momentum": None},
        {"clip": "a"},
        {"steps": 2.0},
        {"milestones": 3},
        {"milestones": (1.5,)},
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^plan needs .*, got .*; .+$") as caught:
        Plan(**bad)
    assert next(iter(bad)) in str(caught.value)


def test_zero_is_a_value() -> None:
    plan = Plan(lr=0.0, weight_decay=0.0, momentum=0.0, warmup=0)
    assert plan.rate(0) == 0.0


def test_turns_divide_the_steps() -> None:
    assert Plan(steps=400, turns=40).steps_in_turn == 10
    for steps, turns in ((400, 3), (4, 8)):
        with pytest.raises(UserError, match=f"steps to be a multiple of turns={turns}, got {steps}"):
            Plan(steps=steps, turns=turns)
    with pytest.raises(UserError, match="turns of at least 1, got 0"):
        Plan(turns=0)
