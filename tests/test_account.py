"""The account of a run: work against closed forms, phases against the clock, and nothing changed by looking."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dfkd.cli.main import main
from dfkd.engine import account as accounting
from dfkd.engine import laps
from dfkd.engine.account import TimedMethod, Timer, account
from dfkd.engine.around import Around
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Clock, Method, Metrics, State, Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.work import ceilings, count_work, peak_memory
from dfkd.prepare import build_task
from dfkd.types import Batch, Scalar
from settings import SETTINGS, tiny_task

CPU = torch.device("cpu")


def test_flops_and_bytes_of_a_product() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    found = count_work(lambda: a @ b)
    assert found.flops == 2 * 3 * 5 * 7
    assert found.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_views_move_nothing_and_a_sum_reads_and_writes() -> None:
    a = torch.ones(8, 4)
    assert count_work(lambda: a.view(4, 8).t()[1:]).bytes == 0
    assert count_work(lambda: a + a).bytes == 3 * a.nbytes
    assert count_work(lambda: a + a).flops == 0


@pytest.mark.parametrize(("frozen", "times"), [(True, 2), (False, 3)])
def test_frozen_weights_cost_no_backward_pass(frozen: bool, times: int) -> None:
    x, weight = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(4, 3, 3, 3, requires_grad=not frozen)

    def step() -> None:
        F.conv2d(x, weight, padding=1).sum().backward()

    assert count_work(step).flops == times * 2 * (2 * 8 * 8) * (4 * 3 * 3 * 3)


def test_ceilings_and_memory_are_positive_and_memory_never_falls() -> None:
    found = ceilings(CPU, repeats=1)
    assert found.flops > 1e6
    assert found.bytes > 1e6
    before = peak_memory(CPU)
    torch.ones(2**20)
    assert peak_memory(CPU) >= before > 2**20


def test_where_the_system_does_not_tell_no_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory(CPU) == 0
    lines = "import sys; sys.modules['resource'] = None; import dfkd.engine.estimate, dfkd.engine.account"
    subprocess.run([sys.executable, "-c", lines], check=True)


@pytest.mark.parametrize("name", ["NAYER", "SpaceshipNet"])
def test_phases_fill_the_clock(name: str, tmp_path: object) -> None:
    setting = SETTINGS[name]
    task = tiny_task(setting)
    images = torch.zeros(20, *setting.image_shape, dtype=torch.uint8)
    began = time.perf_counter()
    found = account(
        task,
        setting.method,
        setting.plan,
        (images, torch.arange(20) % setting.classes),
        Checkpoint(tmp_path),  # type: ignore[arg-type]
    )
    lasted = time.perf_counter() - began
    assert len(found.rounds) == setting.plan.total
    for phases in found.rounds:
        assert min(phases.synthesis, phases.step, phases.saving) > 0
        assert min(phases.batch, phases.evaluation) >= 0
    assert sum(phases.total for phases in found.rounds) <= lasted
    assert found.pool_bytes > 0
    assert found.synthesis is not None
    assert found.step is not None
    assert min(found.synthesis.flops, found.step.flops, found.step.bytes) > 0
    assert min(one.step for one in found.rounds[1:]) <= found.typical.step <= max(one.step for one in found.rounds)


class HandClock:
    """Stands in for the module ``time``: goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@final
@dataclass(frozen=True)
class Slow(Around[State]):
    """Another method with one product per synthesis: 50 ms of synthesis, 20 ms of batch, 10 ms of loss."""

    of: Method[Any]
    clock: HandClock

    @property
    def inner(self) -> Method[Any]:
        return self.of

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        torch.ones(2, 3) @ torch.ones(3, 5)
        self.clock.now += 0.05
        return self.of.synthesize(task, state, clock)

    def batch(self, task: Task, state: State, clock: Clock) -> Batch:
        self.clock.now += 0.02
        return self.of.batch(task, state, clock)

    def loss(self, task: Task, state: State, batch: Batch) -> Scalar:
        self.clock.now += 0.01
        return self.of.loss(task, state, batch)


@pytest.mark.parametrize("turns", [1, 4])
def test_all_turns_of_a_round_are_added_up(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, setting = HandClock(), SETTINGS["NoiseInput"]
    for module in (accounting, laps):
        monkeypatch.setattr(module, "time", clock)
    task, plan = tiny_task(setting), replace(setting.plan, rounds=2, steps=8, turns=turns)
    found = account(task, Slow(setting.method, clock), plan)
    assert len(found.rounds) == 2
    for phases in found.rounds:
        seconds = [phases.synthesis, phases.batch, phases.step, phases.evaluation, phases.saving]
        assert seconds == pytest.approx([turns * 0.05, 8 * 0.02, 8 * 0.01, 0.0, 0.0], abs=1e-9)
    assert found.synthesis is not None
    assert found.synthesis.flops == turns * 2 * (2 * 3 * 5)


class Uncountable(torch.nn.Module):
    """A classifier that fails under torch's counting modes only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("no modes here")
        y: torch.Tensor = self.fc(x.flatten(1))
        return y


def test_a_student_that_cannot_be_counted_is_timed() -> None:
    setting = SETTINGS["NoiseInput"]
    task = tiny_task(setting)
    student = build_task(task.teacher.net, Uncountable(), image_size=(1, 8, 8), mean=[0.4], std=[0.3], text="index")
    found = account(student, setting.method, setting.plan)
    assert found.step is None
    assert found.typical.step > 0


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_taking_the_time_changes_no_student(name: str) -> None:
    students = []
    for timed in (False, True):
        setting = SETTINGS[name]
        task = tiny_task(setting)
        method = TimedMethod(setting.method, Timer()) if timed else setting.method
        run(task, method, setting.plan, Watch())
        students.append(task.student.net.state_dict())
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])


TINY = ["--teacher", "wrn10-1", "--student", "resnet8", "--data", "digits", "--plan.steps", "2", "--plan.batch_size"]
TINY += ["8", "--method.steps", "1", "--method.synthesis_batch", "16", "--runtime.device", "cpu", "--rounds", "2"]


def test_bench_says_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "NAYER"
    assert len(found["rounds"]) == 2
    assert found["typical"] == found["rounds"][1]
    assert found["rounds_per_hour"] == pytest.approx(3600 / sum(found["typical"].values()))
    assert main(["bench", *TINY]) == 0
    shown = capsys.readouterr().out
    assert "random" in shown
    assert all(word in shown for word in ("synthesis", "student steps", "saving", "ceilings", "memory"))


def test_bench_of_a_method_that_makes_its_images_first(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "stts/mnist-lenet5-lenet5-half", "--data.test", "null", "--rounds", "2", "--plan.steps", "2"]
    words += ["--plan.batch_size", "8", "--method.steps", "20", "--method.synthesis_batch", "8"]
    assert main([*words, "--json"]) == 0
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert len(rounds) == 3
    assert rounds[0]["synthesis"] > 10 * max(one["synthesis"] for one in rounds[1:])
    assert rounds[0]["step"] < min(one["step"] for one in rounds[1:])
    assert main(words) == 0
    assert "s in a warm-up round" in capsys.readouterr().out


def test_bench_without_the_test_images_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DFKD_DATA", raising=False)
    words = ["bench", "noiseinput/mnist-lenet5-lenet5-half", "--plan.steps", "1", "--plan.batch_size", "4"]
    words += ["--runtime.device", "cpu", "--rounds", "1", "--json"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["typical"]["evaluation"] < 0.1
    assert told.err.startswith("evaluation is not timed, the recipe's test images are left out: mnist needs ")
    assert told.err.count("\n") == 1
    assert main([*words, "--data.test", "mnist"]) == 2
    assert capsys.readouterr().err.startswith("error: mnist needs the published files")


def test_bench_needs_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY[:-1], "0"]) == 2
    assert "--rounds" in capsys.readouterr().err
