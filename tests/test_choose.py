"""Choosing: sizes against direct counts, which trials are run, what follows from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dfkd
from dfkd.cli.main import main
from dfkd.defaults import NOISE_METHOD
from dfkd.engine.records import Agreement
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.nets.zoo import ZOO, build
from dfkd.ops.intervals import wilson
from dfkd.tune import choose as room
from dfkd.tune.advice import ShortTrial, recommend
from dfkd.tune.candidates import Candidate, shortlist, students_for
from dfkd.tune.short import shrunk_method, trial_plan

DATA: dict[str, Any] = {"image_size": (1, 8, 8), "mean": [0.4], "std": [0.3], "classes": 10, "device": "cpu"}


def a_network(name: str, share: float, speedup: float = 2.0) -> Candidate:
    return Candidate(name, round(1000 * share), round(100_000 * share), 0.001, speedup)


def score(agreement: float, images: int = 200) -> Agreement:
    low, high = wilson(agreement * images, images)
    return Agreement(agreement, low, high, images, 0.0)


def multiply_adds(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Of convolutions and linear layers, from their shapes."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        places = output.shape[2] * output.shape[3] if output.dim() == 4 else 1
        total += weight.numel() * places

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def test_the_table_has_the_sizes_that_a_count_by_hand_gives() -> None:
    names = ("wrn16-1", "resnet8", "vgg8", "wrn40-1")
    found = room.choose(build("wrn16-2", 10, 1), students=names, minutes=0, **DATA)
    assert {student.name for student in found.students} == set(names)
    for student in found.students:
        net = build(student.name, 10, 1).net
        assert student.parameters == sum(p.numel() for p in net.parameters())
        assert student.macs == multiply_adds(net, (1, 8, 8))
        assert student.seconds > 0
    macs = [student.macs or 0 for student in found.students]
    assert macs == sorted(macs, reverse=True)
    assert found.trials == ()
    assert found.advice.method is None
    assert found.missing["NAYER"] == ()
    assert "a pool of unlabelled images" in found.missing["KD3"]
    assert found.teacher.name == "wrn16-2"


def test_only_smaller_networks_that_take_the_images_are_offered() -> None:
    teacher = build("wrn16-2", 10, 1).net
    offered = students_for(teacher, (1, 8, 8), 10)
    size, macs = sum(p.numel() for p in teacher.parameters()), multiply_adds(teacher, (1, 8, 8))
    assert {"wrn16-1", "resnet20"} <= offered.keys() <= ZOO.keys()
    assert not {"wrn16-2", "resnet18", "lenet5"} & offered.keys()
    for net in offered.values():
        assert sum(p.numel() for p in net.parameters()) < size
        assert multiply_adds(net, (1, 8, 8)) < macs
    with pytest.raises(UserError, match="lenet5 needs images of 32 by 32"):
        students_for(teacher, (1, 8, 8), 10, ["lenet5"])
    with pytest.raises(UserError, match="resnet99"):
        students_for(teacher, (1, 8, 8), 10, ["resnet99"])


def test_limits_leave_smaller_ones_or_say_so() -> None:
    found = room.choose(build("wrn16-2", 10, 1), parameters=180_000, minutes=0, students=["wrn16-1", "wrn16-2"], **DATA)
    assert [student.name for student in found.students] == ["wrn16-1"]
    assert all(student.parameters <= 180_000 for student in found.students)
    with pytest.raises(
        UserError, match=r"limits, got none of 1 that are smaller than the teacher; raise --parameters, "
    ):
        room.choose(build("wrn16-2", 10, 1), parameters=10, minutes=0, students=["wrn16-1"], **DATA)
    with pytest.raises(UserError, match=r"got none of 1 that are smaller than the teacher; raise --latency, or name"):
        room.choose(build("wrn16-2", 10, 1), latency=1e-9, minutes=0, students=["wrn16-1"], **DATA)
    with pytest.raises(UserError, match="minutes of at least 0, got -1"):
        room.choose(build("wrn16-2", 10, 1), minutes=-1, **DATA)


def test_facts_come_from_a_known_data_set_and_the_teacher() -> None:
    choices = [
        room.choose(build("wrn16-1", 10, 1), minutes=0, students=["wrn10-1"], device="cpu", **data)
        for data in (
            {"preset": "digits"},
            {"image_size": (1, 8, 8), "mean": [0.4], "std": [0.3]},
            {"image_size": (1, 8, 8), "mean": [0.4], "std": [0.3], "classes": "digits"},
        )
    ]
    assert {choice.students[0].parameters for choice in choices} == {choices[0].students[0].parameters}


def test_a_student_that_cannot_be_counted_is_ranked_by_its_time() -> None:
    teacher, counted = a_network("big", 1.0, 1.0), a_network("half", 0.5, 2.0)
    odd = Candidate("odd", 500, None, 0.0008, 1.25)
    assert odd.work_share(teacher) == pytest.approx(0.8)
    trials = [ShortTrial("NAYER", name, score(0.9)) for name in ("half", "odd")]
    advice = recommend(trials, [counted, odd], teacher)
    assert advice.student == "half"
    alone = recommend(trials[1:], [odd], teacher)
    assert "odd has 50.0% of the teacher's parameters, and takes 80% of its time an image" in alone.reasons


def test_the_shortlist_is_spread_over_sizes() -> None:
    teacher = a_network("big", 1.0, 1.0)
    students = [a_network(f"n{share}", share) for share in (0.9, 0.52, 0.45, 0.3, 0.24, 0.11, 0.01)]
    assert [student.name for student in shortlist(students, teacher)] == ["n0.52", "n0.24", "n0.11"]
    assert shortlist(students[:1], teacher) == students[:1]


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_is_no_larger_than_the_method(name: str) -> None:
    method: Any = METHODS[name]()
    less: Any = shrunk_method(method, 32)
    for key in ("steps", "synthesis_batch", "batches", "memory", "pad"):
        if getattr(method, key, None) is not None:
            assert getattr(less, key) <= getattr(method, key)
    plan = trial_plan(method.budget(), 5)
    assert plan.rounds == 5
    assert plan.steps <= method.budget().steps
    assert plan.warmup <= method.budget().warmup
    assert (plan.turns > 1) == (method.budget().turns > 1)
    assert plan.lr == method.budget().lr


def test_the_smallest_student_that_is_not_told_apart_is_recommended() -> None:
    teacher = a_network("big", 1.0, 1.0)
    students = [a_network("half", 0.5), a_network("quarter", 0.25), a_network("tenth", 0.1, 4.0)]
    trials = [
        ShortTrial("A", "quarter", score(0.6)),
        ShortTrial("B", "quarter", score(0.8)),
        ShortTrial(NOISE_METHOD, "quarter", score(0.3)),
        ShortTrial("C", "quarter", None, reason="it broke"),
        ShortTrial("B", "half", score(0.83)),
        ShortTrial("B", "tenth", score(0.5)),
    ]
    advice = recommend(trials, students, teacher)
    assert (advice.method, advice.student) == ("B", "quarter")
    assert "B agreed with the teacher on 80.00 %" in advice.reasons[0]
    assert any("25.0% of the teacher's parameters" in reason for reason in advice.reasons)
    assert not any("noise" in reason or "do not tell" in reason for reason in advice.reasons)
    close = recommend([*trials[:1], ShortTrial("B", "quarter", score(0.62)), *trials[2:]], students, teacher)
    assert any("do not tell it from A" in reason for reason in close.reasons)


def test_trials_that_are_no_better_than_noise_say_so() -> None:
    students = [a_network("half", 0.5)]
    trials = [ShortTrial("A", "half", score(0.3)), ShortTrial(NOISE_METHOD, "half", score(0.29))]
    assert any("noise did as well" in reason for reason in recommend(trials, students, students[0]).reasons)
    only = recommend(trials[1:], students, students[0])
    assert (only.method, only.student) == (None, None)
    assert "more --minutes" in only.reasons[0]


def test_every_fitting_method_is_tried_then_the_best_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, float]] = []

    def fake(self: Any, name: str, method: Any, student: str, images: torch.Tensor, seconds: float) -> ShortTrial:
        asked.append((name, student, seconds))
        assert images.shape == (room.HELDOUT, 1, 8, 8)
        return ShortTrial(name, student, score(0.7 if name == "CMI" else 0.4))

    monkeypatch.setattr(room._Room, "_try", fake)
    monkeypatch.setattr(room, "HELDOUT", 16)
    methods = {name: METHODS[name]() for name in ("NAYER", "CMI", "KD3", NOISE_METHOD)}
    teacher = build("wrn16-2", 10, 1)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    teacher.net.train()
    found = room.choose(teacher, students=["wrn16-1", "resnet8", "wrn10-1"], minutes=5, methods=methods, **DATA)
    middle = asked[0][1]
    assert [(name, student) for name, student, _ in asked[:3]] == [
        ("NAYER", middle), ("CMI", middle), (NOISE_METHOD, middle)
    ]  # fmt: skip
    assert {name for name, _, _ in asked[3:]} == {"CMI"}
    assert len({student for _, student, _ in asked}) == 3
    assert [seconds for _, _, seconds in asked] == [60.0] * 5
    assert found.advice.method == "CMI"
    assert teacher.net.training
    assert all(torch.equal(value, teacher.net.state_dict()[name]) for name, value in before.items())


def test_a_trial_is_a_run_judged_on_the_images_that_are_given() -> None:
    data = dfkd.Images(image_size=(1, 8, 8), mean=[0.4], std=[0.3], classes=10)
    made = room._Room(build("wrn10-1", 10, 1), data, (1, 8, 8), 10, "auto", dfkd.Machine(device="cpu"))
    images = torch.randint(0, 256, (20, 1, 8, 8)).to(torch.uint8)
    method = dfkd.NAYER(steps=1, synthesis_batch=10, batches=1, warmup_batches=1, width=8, channels=4, pad=1)
    done = made._try("NAYER", method, "wrn10-1", images, seconds=0.0)
    assert done.rounds == 3  # two of warm-up
    assert done.score is not None
    assert done.score.images == 20
    assert done.reason is None
    failed = made._try("KD3", METHODS["KD3"](), "wrn10-1", images, seconds=0.0)
    assert failed.score is None
    assert "KD3 needs" in str(failed.reason)


def test_the_shell_prints_tables_and_json(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["choose", "--teacher", "wrn16-1", "--teacher.weights", str(digits_weights), "--data", "digits"]
    words += ["--runtime.device", "cpu", "--runtime.threads", "1", "--minutes", "0", "--students", "wrn10-1,resnet8"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "teacher wrn16-1" in shown
    assert "ecommend" not in shown  # sizes and speed alone
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {student["name"] for student in told["students"]} == {"wrn10-1", "resnet8"}
    assert told["next"] is None
    assert main([*words, "--students", "nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
