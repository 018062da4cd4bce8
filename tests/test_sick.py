"""Sick runs are seen while they run: every sign is provoked by images that have it, and sound ones raise none."""

import math

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd.data.readers import STATISTICS, read_images
from dfkd.engine.heldout import signals_of
from dfkd.engine.probe import Probe
from dfkd.engine.records import Agreement, Estimate, Evaluation, Keep, RoundRecord
from dfkd.report.collapse import warnings_of
from dfkd.settings import Images

MEAN, STD = STATISTICS["digits"]


@pytest.fixture
def teacher(digits_teacher: nn.Module) -> Probe:
    return Probe(digits_teacher, mean=MEAN, std=STD).freeze()


def kinds(teacher: Probe, images: Tensor, labels: Tensor, rounds: int = 4) -> set[str]:
    """The signs in rounds whose newest images are these, after the last of them."""
    estimate = Estimate({}, signals_of(teacher, images, labels, 10), 0.0)
    records = [RoundRecord(r, rounds, False, 1.0, {}, estimate=estimate) for r in range(rounds)]
    return {concern.kind for concern in warnings_of(records, 10)}


def test_real_images_and_a_second_look_at_them_raise_nothing(teacher: Probe) -> None:
    for split in ("train", "test"):
        held = read_images("digits", split)
        for start in range(0, 300, 100):
            assert kinds(teacher, held.images[start : start + 100], held.labels[start : start + 100]) == set()
            assert kinds(teacher, held.images[start : start + 100], torch.zeros(100, dtype=torch.int64)) == set()


def test_images_of_a_class_that_are_all_alike(teacher: Probe) -> None:
    held = read_images("digits", "test")
    one_of_each = torch.stack([held.images[held.labels == k][0] for k in range(10)])
    noise = torch.randint(-6, 7, (100, 1, 8, 8))
    images = (one_of_each.repeat_interleave(10, dim=0).long() + noise).clamp(0, 255).to(torch.uint8)
    assert kinds(teacher, images, torch.arange(10).repeat_interleave(10)) == {"within"}


def test_noise_that_nobody_can_name(teacher: Probe) -> None:
    noise = (torch.randn(100, 1, 8, 8) * 40 + 128).clamp(0, 255).to(torch.uint8)
    assert "noise" in kinds(teacher, noise, torch.arange(100) % 10)


def test_images_that_are_not_of_their_class_but_look_like_something(teacher: Probe) -> None:
    """NAYER's are of their class for one in six, and teach well."""
    held = read_images("digits", "test")
    assert kinds(teacher, held.images[:100], (held.labels[:100] + 1) % 10) == set()


def test_a_teacher_that_is_sure_of_nothing(digits_teacher: nn.Module) -> None:
    images, labels = read_images("digits", "test").images[:100], read_images("digits", "test").labels[:100]
    with torch.no_grad():
        digits_teacher.get_submodule("head").weight.mul_(0.02)  # type: ignore[operator]
        digits_teacher.get_submodule("head").bias.mul_(0.02)  # type: ignore[operator]
    assert "unsure" in kinds(Probe(digits_teacher, mean=MEAN, std=STD).freeze(), images, labels)


def test_a_pool_of_one_class(teacher: Probe) -> None:
    held = read_images("digits", "train")
    of_three = held.images[held.labels == 3][:100]
    assert kinds(teacher, of_three, torch.full((100,), 3)) == {"one class"}
    half = torch.cat([of_three[:50], held.images[:50]])
    assert kinds(teacher, half, torch.cat([torch.full((50,), 3), held.labels[:50]])) == set()


def test_nothing_is_said_in_the_first_quarter(teacher: Probe) -> None:
    noise = (torch.randn(100, 1, 8, 8) * 40 + 128).clamp(0, 255).to(torch.uint8)
    estimate = Estimate({}, signals_of(teacher, noise, torch.arange(100) % 10, 10), 0.0)
    early = [RoundRecord(r, 20, False, 1.0, {}, estimate=estimate) for r in range(5)]
    assert warnings_of(early, 10) == []
    assert warnings_of([*early, RoundRecord(5, 20, False, 1.0, {}, estimate=estimate)], 10) != []


def asked(agreement: float, inverted: float) -> list[str]:
    held = [Agreement(value, 0.0, 1.0, 400, 0.1) for value in (agreement, inverted)]
    estimate = Estimate(dict(zip(("own", "inverted"), held, strict=True)), {}, 0.0)
    return [concern.kind for concern in warnings_of([RoundRecord(3, 4, False, 1.0, {}, estimate=estimate)], 10)]


def test_a_student_that_learns_nothing_without_test_images() -> None:
    edge = 0.1 + 0.05 * 0.9 + 3 * math.sqrt(0.09 / 400)
    assert asked(edge - 1e-6, 0.1) == ["chance"]
    assert asked(edge + 1e-6, 0.1) == []
    assert asked(0.1, 0.9) == []
    good = Evaluation(0.9, 0.9, 0.1, 400)  # test images know better
    held = {"own": Agreement(0.1, 0.0, 1.0, 400, 0.1)}
    assert warnings_of([RoundRecord(3, 4, False, 1.0, {}, good, estimate=Estimate(held, {}, 0.0))], 10) == []


@pytest.mark.parametrize(("lr", "sick"), [(3.0, True), (0.01, False)])
def test_a_run_whose_generator_is_lost_and_one_that_is_sound(digits_teacher: nn.Module, lr: float, sick: bool) -> None:
    method = dfkd.NAYER(steps=12, synthesis_batch=60, batches=1, width=16, channels=8, pad=1, flip=False, lr=lr)
    keep = Keep()
    torch.manual_seed(0)
    student = dfkd.build("resnet8", classes=10, channels=1)
    plan = dfkd.Plan(rounds=4, steps=15, batch_size=32, lr=0.05)
    data = Images(image_size=(1, 8, 8), mean=MEAN, std=STD, classes=10)
    observers = (keep,)
    dfkd.distill(
        digits_teacher, student, method, data=data, plan=plan, progress=False, observers=observers, estimate=False
    )
    found = {concern.kind for concern in warnings_of(keep.records, 10)}
    assert bool(found & {"noise", "within", "one class", "distance", "entropy"}) == sick, found
