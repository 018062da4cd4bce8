"""Accuracy, agreement and loss against NumPy."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfkd.engine.evaluate import evaluate, predictions
from dfkd.ops.pixels import as_images
from settings import SETTINGS, tiny_task

ROW = SETTINGS["NoiseInput"]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_numbers_are_numpy_numbers(batch_size: int) -> None:
    task = tiny_task(ROW)
    stream = torch.Generator().manual_seed(6)
    images = torch.randint(256, (23, 1, 8, 8), dtype=torch.uint8, generator=stream)
    labels = torch.randint(3, (23,), generator=stream)  # class 3 is absent
    task.student.train()
    score = evaluate(task.student, images, labels, 4, task.runtime, task.teacher, batch_size)
    assert task.student.training
    task.student.eval()
    with torch.no_grad():
        logits, other = task.student(as_images(images)).logits, task.teacher(as_images(images)).logits
    y, s, t = labels.numpy(), logits.argmax(1).numpy(), other.argmax(1).numpy()
    assert score.accuracy == pytest.approx(float((s == y).mean()))
    assert score.agreement == pytest.approx(float((s == t).mean()))
    assert score.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-5)
    assert score.images == 23
    for k in range(3):
        assert score.class_accuracy[k] == pytest.approx(float((s == y)[y == k].mean()))
        assert score.class_agreement[k] == pytest.approx(float((s == t)[y == k].mean()))
    assert np.isnan([score.class_accuracy[3], score.class_agreement[3]]).all()
    guess = predictions(task.teacher, images, task.runtime, batch_size=5)
    np.testing.assert_array_equal(guess.numpy(), t)
    again = evaluate(task.student, images, labels, 4, task.runtime, guess, batch_size)
    np.testing.assert_equal(asdict(again), asdict(score))  # two NaN are equal here


def test_without_a_teacher_the_student_agrees_with_itself() -> None:
    task = tiny_task(ROW)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    assert evaluate(task.student, images, torch.zeros(4, dtype=torch.int64), 4, task.runtime).agreement == 1.0


def test_looking_changes_nothing() -> None:
    task = tiny_task(ROW)
    before = {key: value.clone() for key, value in task.student.net.state_dict().items()}
    images = torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)
    streams = task.runtime.streams()
    evaluate(task.student.train(), images, torch.zeros(9, dtype=torch.int64), 4, task.runtime, task.teacher)
    assert all(torch.equal(value, before[key]) for key, value in task.student.net.state_dict().items())
    assert torch.equal(task.runtime.streams()["own"], streams["own"])
    assert torch.equal(task.runtime.streams()["default"], streams["default"])
