"""The estimate against hand arithmetic, a clock that only moves when told to, and real small runs."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Tensor, nn

from dfkd.cli.main import main
from dfkd.cli.rehearse import warnings_of
from dfkd.data import space
from dfkd.engine import driver, laps
from dfkd.engine import estimate as module
from dfkd.engine.checkpoint import Checkpoint, pools_of
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.estimate import Estimate, Measured, Pools, Timing, estimate, extrapolate
from dfkd.engine.plan import Plan
from dfkd.engine.stopping import Judge
from dfkd.methods.nayer import NAYER
from dfkd.types import Batch
from settings import SETTINGS, mostly_slow, tiny_plan, tiny_task


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True)
class Paced(Method[State]):
    """Each phase takes a known time; what the first warm-up round and the first student step take is more."""

    clock: Hand
    default_plan: ClassVar[Plan] = Plan()

    def needs(self) -> frozenset[Need]:
        return frozenset()

    def setup(self, task: Task, plan: Plan) -> State:
        return State()

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        self.clock.now += 7.0 if clock.warmup else 3.0
        self.clock.now += 20.0 if clock.round == 0 else 0.0
        return {}

    def batch(self, task: Task, state: State, clock: Clock) -> Batch:
        self.clock.now += 0.125
        self.clock.now += 50.0 if clock.step == 0 and clock.round == clock.plan.warmup else 0.0
        return Batch(torch.rand(4, *task.image_shape, generator=task.runtime.generator))

    def loss(self, task: Task, state: State, batch: Batch) -> Tensor:
        return task.student(batch.images).logits.square().mean()


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    clock = Hand()
    for place in (driver, laps, module):
        monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("steps", [3, 60])
def test_a_paced_run_takes_what_was_said(hand: Hand, warmup: int, steps: int) -> None:
    task, plan = tiny_task(SETTINGS["NoiseInput"]), tiny_plan(rounds=4, warmup=warmup, steps=steps)
    found = estimate(task, Paced(hand), plan)
    before = hand.now
    run(task, Paced(hand), plan)
    assert found.total == pytest.approx(hand.now - before)
    assert found.seconds["warm-up"] == pytest.approx(7.0 * warmup + (20.0 if warmup == 1 else 0.0))
    assert found.seconds["student"] == pytest.approx(0.125 * steps * 4)


def test_arithmetic() -> None:
    timings = (
        Timing(True, 9.0, 0.0, 0.5, 40),
        Timing(True, 4.0, 0.0, 0.5, 40),
        Timing(False, 3.0, 8.0, 0.5, 10),
        Timing(False, 2.0, 5.0, 0.25, 10),
    )
    pools = Pools(capacity=1000, rows=100, row_bytes=20.0)
    measured = Measured(timings, 10, (6.0, 1.5), pools, peak=5000, state=300, student=70, image=3)
    plan = tiny_plan(rounds=20, warmup=4, steps=50)
    test = (torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    watch = Watch(test=test, evaluate_every=6, samples_every=10, samples=100, save_every=0.0)
    found = extrapolate(measured, plan, watch, free=9000, disk_free=10**6)
    assert found.seconds == {
        "start": (9 - 4) + (3 - 2) + (8 - 5),
        "warm-up": 4 * 4,
        "synthesis": 20 * 2,
        "student": 20 * 50 / 10 * 5,
        "evaluation": 6 + 4 * 1.5,  # rounds 5, 11, 17, 23 (the last)
        "saving": 24 * 0.25,
    }
    assert found.images == 4 * 40 + 20 * 10
    assert found.pool == 360 * 20
    assert found.memory == 5000 + (360 - 100) * 20
    assert found.disk == 3 * 300 + 360 * 20 + 2 * 70 + 3 * 100 * 3
    picked = extrapolate(measured, plan, replace(watch, judge=Judge()), free=9000, disk_free=10**6)
    assert picked == replace(found, disk=found.disk + 4 * 70)
    small = extrapolate(replace(measured, pools=replace(pools, capacity=200, reserved=True)), plan, watch, 1, 1)
    assert (small.pool, small.memory) == (200 * 20, 5000)
    seldom = extrapolate(measured, plan, replace(watch, save_every=100.0), 1, 1)
    assert seldom.seconds["saving"] == (int((9 + 16 + 40 + 500 + 12) / 100) + 1) * 0.25


def test_heavier_rounds_that_come_back_are_counted() -> None:
    timings = tuple(Timing(False, seconds, 5.0, 0.25, 0) for seconds in (30.0, 9.0, 1.0))
    measured = Measured(timings, 10, (0.0, 0.0), Pools(), peak=1, state=1, student=1, image=1, period=4)
    found = extrapolate(measured, tiny_plan(rounds=10, steps=10), Watch(), 1, 1)
    assert found.seconds["start"] == 30 - 9
    assert found.seconds["synthesis"] == 3 * 9 + 7 * 1  # rounds 0, 4, 8


@final
@dataclass(frozen=True)
class Seldom(Paced):
    """Every third round takes longer."""

    def period(self) -> int:
        return 3

    def synthesize(self, task: Task, state: State, clock: Clock) -> Metrics:
        self.clock.now += 40.0 if (clock.round - clock.plan.warmup) % 3 == 0 and not clock.warmup else 2.0
        return {}


@pytest.mark.parametrize("rounds", [2, 3, 4, 8])
def test_a_run_with_a_period_takes_what_was_said(hand: Hand, rounds: int) -> None:
    task, plan = tiny_task(SETTINGS["NoiseInput"]), tiny_plan(rounds=rounds, warmup=2, steps=3)
    found = estimate(task, Seldom(hand), plan)
    before = hand.now
    run(task, Seldom(hand), plan)
    assert found.total == pytest.approx(hand.now - before)


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, "NAYER", "KD3", "STTS"))
def test_images_and_pool_are_those_of_the_whole_run(name: str, tmp_path: Path) -> None:
    row = SETTINGS[name]
    plan = replace(row.plan, rounds=7, warmup=3)
    found = estimate(tiny_task(row), row.method, plan)
    task = tiny_task(row)
    state = run(task, row.method, plan, Watch(checkpoint=Checkpoint(tmp_path), save_every=0.0))  # two saves are kept
    pools = pools_of(state)
    assert found.pool == sum(pool.nbytes * len(pool) // pool.capacity for pool in pools.values())
    assert found.images == (pools["pool"].added if "pool" in pools else 0)
    files = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert files <= found.disk <= 3 * files + 100_000


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, "NAYER", "KD3", "STTS"))
def test_the_run_that_follows_is_the_one_that_would_have_been(name: str) -> None:
    row, found = SETTINGS[name], []
    for first in (True, False):
        task = tiny_task(row)  # seeds both streams
        if first:
            estimate(task, row.method, row.plan)
        run(task, row.method, row.plan)
        found.append({**task.student.net.state_dict(), "stream": task.runtime.streams()["own"]})
    assert [key for key, value in found[0].items() if not torch.equal(value, found[1][key])] == []


class Remembers(nn.Module):
    """Beside its weights: a buffer that is not saved, a number, and a list that it saves in its own way."""

    seen: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls, self.history = net, 0, list[int]()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def get_extra_state(self) -> dict[str, list[int]]:
        return {"history": self.history}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.history = state["history"]

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.calls += 1
        self.history.append(len(x))
        y: Tensor = self.net(x)
        return y + self.seen


def test_what_a_student_keeps_beside_its_weights_is_put_back() -> None:
    task = tiny_task(SETTINGS["NoiseInput"])
    net = Remembers(task.student.net)
    task.student.net = net
    net.train()
    net.net.eval()
    estimate(task, SETTINGS["NoiseInput"].method, tiny_plan(rounds=3, steps=2))
    assert (float(net.seen), net.calls, net.history) == (0.0, 0, [])
    assert (net.training, net.net.training) == (True, False)


def test_memory_grows_with_the_method() -> None:
    row = SETTINGS["NAYER"]
    assert isinstance(row.method, NAYER)
    large = replace(row.method, memory=None, synthesis_batch=20)
    plan = tiny_plan(rounds=50, warmup=0)
    few, many = (estimate(tiny_task(row), m, plan) for m in (replace(large, memory=30), large))
    assert many.pool == 50 * 2 * 20 * (64 + 8)
    assert few.pool == 30 * (64 + 8)
    assert 0 < many.memory < many.memory_free


def test_memory_of_a_container_is_what_its_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/elsewhere\n0::/job/step\n")
    for name, limit, used, caches in (("job", "1000", 700, 50), ("job/step", "max", 400, 10)):
        group = tmp_path / "groups" / name
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 7\ninactive_file {caches}\n")
    groups = space._free_in_groups(tmp_path / "groups", own)
    assert groups == [350]
    (tmp_path / "groups/job/step/memory.max").write_text("300\n")  # lowered below what is used
    assert space._free_in_groups(tmp_path / "groups", own) == [0, 350]
    assert space._free_in_groups(tmp_path / "groups", tmp_path / "none") == []
    whole = space.free_memory(torch.device("cpu"))
    monkeypatch.setattr(space, "_free_in_groups", lambda: [350])
    assert space.free_memory(torch.device("cpu")) == 350 < whole


@pytest.mark.parametrize(
    ("memory", "disk", "words"), [(10, 1, ["memory"]), (1, 10, ["folder"]), (9, 9, ["memory", "folder"]), (1, 1, [])]
)
def test_what_there_is_no_room_for_is_said(memory: int, disk: int, words: list[str]) -> None:
    said = warnings_of(Estimate({}, 0, 0, memory, 5, disk, 5))
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


@pytest.fixture
def dry(digits_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    monkeypatch.chdir(tmp_path)
    line = (
        f"distill --teacher wrn16-1 --teacher.weights {digits_weights} --student wrn10-1 --data digits"
        " --data.test digits --method.steps 2 --method.synthesis_batch 20 --method.batches 1 --method.warmup_batches 1"
        " --method.width 8 --method.channels 4 --method.flip false --plan.rounds 30 --plan.warmup 1 --plan.steps 4"
        " --plan.batch_size 16 --runtime.device cpu --runtime.threads 1 "
    )
    return lambda more: main(shlex.split(line + more))


def test_a_dry_run_from_the_shell_writes_nothing(
    dry: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry("--dry-run --out runs/x") == 0
    table, note = capsys.readouterr()
    assert note.startswith("measuring the first rounds")
    assert all(word in table for word in ("hours", "warm-up", "peak memory", "images", "620", "disk"))
    assert dry("--dry-run --json --method.memory 100") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["images"] == 620
    assert found["pool"] == 100 * (64 + 8)
    assert found["total"] == pytest.approx(sum(found["seconds"].values()))
    assert found["warnings"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_began_is_not_estimated(dry: Callable[[str], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("--dry-run --resume runs/x") == 2
    assert "dry-run needs a run that has not begun, got --resume runs/x" in capsys.readouterr().err
    assert dry("--json") == 2
    assert "json needs --dry-run" in capsys.readouterr().err


def test_few_turns_stand_for_many() -> None:
    from dfkd.engine.estimate import STEPS, _few

    assert _few(Plan(steps=5 * STEPS)) == (STEPS, 1)
    assert _few(Plan(steps=5 * STEPS, turns=5 * STEPS)) == (STEPS, STEPS)
    assert _few(Plan(steps=20 * STEPS, turns=2)) == (STEPS, 1)  # of a longer turn
    assert _few(Plan(steps=4)) == (4, 1)
    assert _few(Plan(steps=30, turns=3)) == (20, 2)
    timings = (Timing(False, 1.0, 2.0, 0.0, 10),) * 2
    measured = Measured(timings, 10, (0.0, 0.0), Pools(), peak=1, state=1, student=1, image=1, turns=2)
    found = extrapolate(measured, Plan(rounds=3, steps=20, turns=4), Watch(), 10, 10)
    assert (found.seconds["synthesis"], found.seconds["student"], found.images) == (6.0, 12.0, 60)
