"""The one loop: modes, rates, observers, saves, and what it leaves behind."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.data.pool import Pool
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Clock, Method, Metrics, Need, State, Task, class_entropy
from dfkd.engine.driver import Watch, revisit, run
from dfkd.engine.evaluate import evaluate
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.records import Evaluation, Observer, RoundRecord
from dfkd.errors import UserError
from dfkd.methods.noise import NoiseInput
from dfkd.types import Batch, Scalar
from settings import SETTINGS, tiny_plan, tiny_task

ROW = SETTINGS["NoiseInput"]


@dataclass
class ToyState(State):
    """A pool, and a diary of what was called in which mode."""

    pool: Pool
    diary: list[str] = field(default_factory=list)
    projector: nn.Module = field(default_factory=nn.Identity)


@final
@dataclass(frozen=True)
class Toy(Method[ToyState]):
    """Writes down everything that happens to it."""

    projector: bool = False
    own_rule: bool = False  # the projector learns by plain SGD of rate 1
    hold: tuple[str, ...] = ()
    fail_in: int = -1
    diverge_in: int = -1

    default_plan: ClassVar[Plan] = tiny_plan()

    def needs(self) -> frozenset[Need]:
        return frozenset()

    def setup(self, task: Task, plan: Plan) -> ToyState:
        columns = {"images": (task.image_shape, torch.uint8), "labels": ((), torch.int64)}
        state = ToyState(Pool(50, columns), fixed_parameters=self.hold)
        projector = nn.Linear(task.classes, task.classes)
        if self.projector:
            state.joint["projector"] = projector
        if self.own_rule:
            state.projector, state.optimizers = projector, (torch.optim.SGD(projector.parameters(), lr=1.0),)
        return state

    def synthesize(self, task: Task, state: ToyState, clock: Clock) -> Metrics:
        asks = any(p.requires_grad for p in task.student.parameters())
        joint = state.joint.training and self.projector
        state.diary.append(f"make {clock.round} train={task.student.training or joint} grad={asks}")
        if clock.round == self.fail_in:
            raise RuntimeError("as planned")
        new = torch.randint(256, (10, *task.image_shape), generator=task.runtime.generator, dtype=torch.uint8)
        state.pool.add(images=new, labels=torch.arange(10) % task.classes)
        return {"toy": torch.tensor(float(clock.round)), "plain": 2}

    def batch(self, task: Task, state: ToyState, clock: Clock) -> Batch:
        state.diary.append(f"batch {clock.round}.{clock.step} grad={torch.is_grad_enabled()}")
        rows = state.pool.draw(clock.plan.batch_size, task.runtime.generator)
        return Batch(rows["images"].float() / 255, rows["labels"])

    def loss(self, task: Task, state: ToyState, batch: Batch) -> Scalar:
        state.diary.append(f"loss train={task.student.training} grad={torch.is_grad_enabled()}")
        logits = task.student(batch.images).logits
        if batch.labels is None:
            raise RuntimeError("the toy stores labels")
        if self.projector:
            logits = state.joint["projector"](logits)
        logits = state.projector(logits)
        if any(line.startswith(f"make {self.diverge_in} ") for line in state.diary):
            logits = logits * torch.nan
        return torch.nn.functional.cross_entropy(logits, batch.labels)


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.steps: list[tuple[int, str, int, int]] = []

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        self.steps.append((round, phase, done, total))

    def rounded(self, record: RoundRecord) -> None:
        self.records.append(record)


def test_the_order_of_things_and_the_modes_they_see() -> None:
    task = tiny_task(ROW)
    state = run(task, Toy(), tiny_plan(rounds=2, warmup=1))
    assert isinstance(state, ToyState)
    steps = ["batch {}.{} grad=False", "loss train=True grad=True"]
    wanted = ["make 0 train=False grad=False"]
    for round in (1, 2):
        wanted.append(f"make {round} train=False grad=False")
        for k in (0, 1):
            wanted += [step.format(round, k) for step in steps]
    assert state.diary == wanted
    assert not task.student.training
    assert all(p.requires_grad for p in task.student.net.parameters())


def test_the_rate_follows_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(rounds=4, warmup=1, lr=0.2, lr_min=0.01)
    seen = []
    real = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    watch = Watch([recorder := Recorder()])
    run(tiny_task(ROW), NoiseInput(), plan, watch)
    assert seen == [plan.rate(r) for r in range(1, 5) for _ in range(2)]
    assert [r.metrics["lr"] for r in recorder.records] == [plan.rate(r) for r in range(5)]


@pytest.mark.parametrize("plan", [tiny_plan(optimizer="adam", lr=0.01), tiny_plan(nesterov=True, clip=0.5)])
def test_the_student_takes_the_steps_plain_torch_takes(plan: Plan) -> None:
    task = tiny_task(ROW)
    method = NoiseInput()
    run(task, method, plan)
    other = tiny_task(ROW)
    net = other.student.train()
    kinds: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(
            p, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.nesterov, fused=True
        ),
        "adam": lambda p: torch.optim.Adam(p, lr=plan.lr, weight_decay=plan.weight_decay, fused=True),
    }
    optimizer = kinds[plan.optimizer](net.net.parameters())
    for round in range(plan.rounds):
        optimizer.param_groups[0]["lr"] = plan.rate(round)
        for k in range(plan.steps):
            optimizer.zero_grad()
            state = method.setup(other, plan)
            method.loss(other, state, method.batch(other, state, Clock(plan, round, k))).backward()
            if plan.clip is not None:
                torch.nn.utils.clip_grad_norm_(net.net.parameters(), plan.clip)
            optimizer.step()
    for p, q in zip(task.student.net.parameters(), net.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_extra_modules_train_with_the_student() -> None:
    task = tiny_task(ROW)
    before = Toy(projector=True).setup(tiny_task(ROW), tiny_plan()).joint["projector"].state_dict()
    state = run(task, Toy(projector=True), tiny_plan(rounds=2))
    moved = state.joint["projector"].state_dict()
    assert all(not torch.equal(moved[key], value) for key, value in before.items())


def test_modules_with_an_optimizer_of_their_own_learn_by_its_rule() -> None:
    plan, method = tiny_plan(rounds=1, steps=1), Toy(own_rule=True)
    state = run(tiny_task(ROW), method, plan)
    assert isinstance(state, ToyState)
    task = tiny_task(ROW)
    again = method.setup(task, plan)
    method.synthesize(task, again, Clock(plan, 0))
    loss = method.loss(task, again, method.batch(task, again, Clock(plan, 0)))
    before = list(again.projector.parameters())
    task.student.train()
    grads = torch.autograd.grad(loss, before)
    for p, g, moved in zip(before, grads, state.projector.parameters(), strict=True):
        torch.testing.assert_close(moved, p - g)
        assert float(g.abs().sum()) > 0


def test_held_parameters_stay() -> None:
    task = tiny_task(ROW)
    named = dict(task.student.net.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    run(task, Toy(hold=("head.weight", "head.bias")), tiny_plan(rounds=2))
    moved = {name for name, p in named.items() if not torch.equal(p, before[name])}
    assert moved == set(named) - {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in named.values())  # afterwards the student is the user's again


def test_a_student_with_nothing_to_learn_is_refused() -> None:
    task = tiny_task(ROW)
    task.student.requires_grad_(False)
    with pytest.raises(UserError, match="student needs parameters that may change, got none"):
        run(task, NoiseInput(), tiny_plan())


def test_after_a_failure_the_modules_can_be_used_again(tmp_path: Path) -> None:
    task = tiny_task(ROW)
    watch = Watch(checkpoint=Checkpoint(tmp_path), save_every=0)
    with pytest.raises(RuntimeError, match="as planned"):
        run(task, Toy(fail_in=2), tiny_plan(), watch)
    assert all(p.requires_grad for p in task.student.net.parameters())
    run(task, Toy(), tiny_plan(), watch, resume=True)
    whole = tiny_task(ROW)
    run(whole, Toy(), tiny_plan())
    for p, q in zip(task.student.net.state_dict().values(), whole.student.net.state_dict().values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("metrics_every", [1, 5])
def test_a_student_that_is_lost_stops_the_run_and_what_was_saved_stays(metrics_every: int, tmp_path: Path) -> None:
    recorder = Recorder()
    watch = Watch([recorder], checkpoint=Checkpoint(tmp_path), save_every=0, metrics_every=metrics_every)
    with pytest.raises(UserError, match=r"^student needs a finite loss, got nan in round 3; start again with a lower"):
        run(tiny_task(ROW), Toy(diverge_in=2), tiny_plan(rounds=6), watch)
    assert [record.round for record in recorder.records] == [0, 1, 2]
    assert np.isnan(recorder.records[-1].metrics.get("loss/student", np.nan))
    assert Checkpoint(tmp_path).rounds() == 2
    kept = tiny_task(ROW)
    revisit(kept, Toy(), tiny_plan(rounds=6), Checkpoint(tmp_path))
    assert all(torch.isfinite(p).all() for p in kept.student.net.state_dict().values())


@pytest.mark.parametrize(("metrics_every", "first"), [(1, 3), (2, 4)])
def test_a_generator_that_is_lost_is_told_once(metrics_every: int, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(self: Toy, task: Task, state: ToyState, clock: Clock) -> Metrics:
        sound = synthesize(self, task, state, clock)
        return {**sound, "loss/generator": torch.tensor(math.nan if clock.round > 1 else 1.0), "loss/bn": 2.0}

    synthesize = Toy.synthesize
    monkeypatch.setattr(Toy, "synthesize", losing)
    with pytest.warns(UserWarning, match=f"the loss 'generator' was nan in round {first}, and the images") as caught:
        run(tiny_task(ROW), Toy(), tiny_plan(rounds=5), Watch(metrics_every=metrics_every))
    assert len(caught) == 1


def test_generator_and_student_take_turns_within_a_round() -> None:
    state = run(tiny_task(ROW), Toy(), tiny_plan(rounds=1, warmup=1, steps=4, turns=2))
    assert isinstance(state, ToyState)
    step = ["batch 1.{} grad=False", "loss train=True grad=True"]
    turn = ["make 1 train=False grad=False"]
    wanted = ["make 0 train=False grad=False"] * 2
    for first in (0, 2):
        wanted += turn + [line.format(k) for k in (first, first + 1) for line in step]
    assert state.diary == wanted


@pytest.mark.parametrize("name", ["D3K", "NAYER"])
def test_turns_are_rounds_without_looking(name: str, tmp_path: Path) -> None:
    """Two rounds of two turns are four rounds of one, where nothing else goes by rounds; also after a resume."""
    row = SETTINGS[name]
    method: Any = replace(row.method, renew=None) if name == "NAYER" else row.method  # type: ignore[type-var]
    plan = tiny_plan(rounds=2, steps=4, turns=2, schedule="constant")
    run(apart := tiny_task(row), method, replace(plan, rounds=4, steps=2, turns=1))
    run(together := tiny_task(row), method, plan)
    run(tiny_task(row), method, plan, Watch([Enough(0)], checkpoint=Checkpoint(tmp_path)))
    run(again := tiny_task(row), method, plan, Watch(checkpoint=Checkpoint(tmp_path)), resume=True)
    for task in (together, again):
        for p, q in zip(apart.student.net.state_dict().values(), task.student.net.state_dict().values(), strict=True):
            assert torch.equal(p, q)


def test_the_time_of_turns_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize = Toy.synthesize

    def slow(*args: Any) -> Metrics:
        time.sleep(0.02)
        return synthesize(*args)

    monkeypatch.setattr(Toy, "synthesize", slow)
    run(tiny_task(ROW), Toy(), tiny_plan(rounds=1, steps=4, turns=4), Watch([recorder := Recorder()]))
    metrics = recorder.records[0].metrics
    assert metrics["seconds/synthesis"] >= 4 * 0.02
    assert metrics["seconds/synthesis"] + metrics["seconds/student"] <= recorder.records[0].seconds


class Enough(Observer):
    """Ends a run after a round."""

    def __init__(self, round: int) -> None:
        self.round = round

    def rounded(self, record: RoundRecord) -> str | None:
        return "seen enough" if record.round == self.round else None


def test_an_observer_ends_a_run(tmp_path: Path) -> None:
    plan, images = tiny_plan(rounds=5), torch.zeros(4, *ROW.image_shape, dtype=torch.uint8)
    watch = Watch(
        [Enough(1), recorder := Recorder()],
        (images, torch.zeros(4, dtype=torch.int64)),
        evaluate_every=10,
        checkpoint=Checkpoint(tmp_path),
    )
    stopped = tiny_task(ROW)
    run(stopped, Toy(), plan, watch)
    assert watch.stopped == "seen enough"
    assert [record.round for record in recorder.records] == [0, 1]
    assert recorder.records[-1].evaluation is None
    assert watch.final is not None  # of the student as it was when the run ended
    assert Checkpoint(tmp_path).rounds() == 2
    run(stopped, Toy(), plan, watch := Watch(checkpoint=Checkpoint(tmp_path)), resume=True)
    whole = tiny_task(ROW)
    run(whole, Toy(), plan)
    assert watch.stopped is None
    for p, q in zip(stopped.student.net.parameters(), whole.student.net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_wish_to_stop_after_the_last_round_is_no_stop() -> None:
    run(tiny_task(ROW), Toy(), tiny_plan(rounds=2), watch := Watch([Enough(1)]))
    assert watch.stopped is None


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    task = tiny_task(ROW)
    run(task, Toy(), tiny_plan(), Watch(checkpoint=Checkpoint(tmp_path)))
    again = tiny_task(ROW)
    watch = Watch([recorder := Recorder()], checkpoint=Checkpoint(tmp_path))
    state = run(again, Toy(), tiny_plan(), watch, resume=True)
    assert isinstance(state, ToyState)
    assert recorder.records == []
    assert len(state.pool) == 30
    for p, q in zip(task.student.net.state_dict().values(), again.student.net.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_nothing_to_resume_is_a_start(tmp_path: Path) -> None:
    watch = Watch([recorder := Recorder()], checkpoint=Checkpoint(tmp_path))
    run(tiny_task(ROW), Toy(), tiny_plan(), watch, resume=True)
    assert len(recorder.records) == 3


def test_a_checkpoint_of_another_student_is_refused(tmp_path: Path) -> None:
    run(tiny_task(ROW), Toy(), tiny_plan(), Watch(checkpoint=Checkpoint(tmp_path)))
    other = tiny_task(replace(ROW, student="wrn16-1"))
    with pytest.raises(UserError, match=r"resume needs a checkpoint of this pair and method, got .*; start again"):
        run(other, Toy(), tiny_plan(), Watch(checkpoint=Checkpoint(tmp_path)), resume=True)
    with pytest.raises(UserError, match="resume needs a checkpoint of this pair and method"):
        run(tiny_task(ROW), Toy(projector=True), tiny_plan(), Watch(checkpoint=Checkpoint(tmp_path)), resume=True)


def test_the_last_round_is_always_saved(tmp_path: Path) -> None:
    run(tiny_task(ROW), Toy(), tiny_plan(), Watch(checkpoint=Checkpoint(tmp_path), save_every=1e9))
    assert Checkpoint(tmp_path).rounds() == 3
    assert Checkpoint(tmp_path / "none").rounds() == 0


def the_test() -> tuple[Tensor, Tensor]:
    return torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 4


@pytest.mark.parametrize(("every", "rounds"), [(1, {1, 2, 3, 4}), (2, {1, 3, 4}), (3, {2, 4}), (9, {4})])
def test_evaluations_come_when_due_and_at_the_end(every: int, rounds: set[int]) -> None:
    watch = Watch([recorder := Recorder()], test=the_test(), evaluate_every=every)
    run(tiny_task(ROW), Toy(), tiny_plan(rounds=4, warmup=1), watch)
    found = {r.round for r in recorder.records if r.evaluation is not None}
    assert found == rounds
    assert {r.round for r in recorder.records if r.warmup} == {0}


@pytest.mark.parametrize(("every", "rounds"), [(0, set()), (1, {0, 1, 2}), (2, {1, 2})])
def test_samples_are_the_newest_images(every: int, rounds: set[int]) -> None:
    watch = Watch([recorder := Recorder()], samples_every=every, samples=4)
    state = run(tiny_task(ROW), Toy(), tiny_plan(), watch)
    assert isinstance(state, ToyState)
    shown = {r.round: r.samples for r in recorder.records if r.samples is not None}
    assert shown.keys() == rounds
    for images, labels in shown.values():
        assert images.dtype == torch.uint8
        assert images.shape == (4, 1, 8, 8)
        assert labels.tolist() == [2, 3, 0, 1]
    if shown:
        assert torch.equal(shown[2][0], state.pool.newest(4)["images"])


def test_metrics_of_a_round() -> None:
    watch = Watch([recorder := Recorder()], samples=5)
    state = run(tiny_task(ROW), Toy(), tiny_plan(), watch)
    assert isinstance(state, ToyState)
    for r in recorder.records:
        assert r.metrics["toy"] == r.round
        assert r.metrics["plain"] == 2.0
        assert (r.metrics["pool"], r.metrics["images"]) == (10 * (r.round + 1),) * 2
        assert 0 < r.metrics["seconds/synthesis"] + r.metrics["seconds/student"] <= r.seconds + 1e-6
        assert all(isinstance(value, float) for value in r.metrics.values())
    x = state.pool.newest(5)["images"].double().flatten(1).numpy() / 255
    pairs = [np.sqrt(((x[i] - x[j]) ** 2).mean()) for i in range(5) for j in range(5) if i != j]
    assert recorder.records[-1].metrics["pairwise_distance"] == pytest.approx(float(np.mean(pairs)), rel=1e-4)


@pytest.mark.parametrize(("every", "rounds"), [(1, {0, 1, 2, 3, 4}), (2, {1, 3, 4}), (9, {4})])
def test_losses_are_read_when_due_and_at_the_end(every: int, rounds: set[int]) -> None:
    students = []
    for watch in (Watch([recorder := Recorder()], metrics_every=every), Watch()):
        task = tiny_task(ROW)
        run(task, Toy(), tiny_plan(rounds=5), watch)
        students.append(task.student.net.state_dict())
    read = {r.round for r in recorder.records if "loss/student" in r.metrics}
    assert read == rounds == {r.round for r in recorder.records if "toy" in r.metrics}
    assert all({"lr", "seconds/student", "pool"} <= r.metrics.keys() for r in recorder.records)
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())


def test_the_student_loss_is_the_mean_over_steps() -> None:
    task = tiny_task(ROW)
    losses: list[float] = []

    class Watching(Recorder):
        pass

    real = torch.nn.functional.cross_entropy

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        losses.append(float((value := real(*args, **kwargs)).detach()))
        return value

    recorder = Watching()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", watched)
        run(task, Toy(), tiny_plan(rounds=2, steps=3), Watch([recorder]))
    for r in recorder.records:
        mine = losses[3 * r.round : 3 * r.round + 3]
        assert r.metrics["loss/student"] == pytest.approx(sum(mine) / 3, rel=1e-5)
    assert recorder.steps[:3] == [(0, "student", k, 3) for k in (1, 2, 3)]


def test_the_seconds_of_a_round_count_its_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any, **kwargs: Any) -> Evaluation:
        time.sleep(0.05)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr("dfkd.engine.driver.evaluate", slow)
    recorder, test = Recorder(), (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    run(tiny_task(ROW), Toy(), tiny_plan(), Watch([recorder], test=test, evaluate_every=3))
    idle = [
        record.seconds - record.metrics["seconds/synthesis"] - record.metrics["seconds/student"]
        for record in recorder.records
    ]
    assert [record.evaluation is not None for record in recorder.records] == [False, False, True]
    assert min(idle) >= 0
    assert idle[2] >= 0.05


class Counting(nn.Module):
    """Scales its logits by a number that only train mode moves and that its state dict leaves out."""

    seen: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.1
        return self.net(x) * (1 + self.seen)


def test_a_resume_has_the_buffers_that_a_state_dict_leaves_out(tmp_path: Path) -> None:
    def fresh() -> Task:
        task = tiny_task(ROW)
        return replace(task, student=Probe(Counting(task.student.release()), mean=[0.4], std=[0.3]))

    alone, parts = fresh(), fresh()
    run(alone, Toy(), tiny_plan())
    watch = Watch(checkpoint=Checkpoint(tmp_path), save_every=0)
    with pytest.raises(RuntimeError, match="as planned"):
        run(parts, Toy(fail_in=2), tiny_plan(), watch)
    parts = fresh()
    run(parts, Toy(), tiny_plan(), watch, resume=True)
    assert float(parts.student.net.seen) == float(alone.student.net.seen) > 0  # type: ignore[arg-type]
    assert all(
        torch.equal(a, b)
        for a, b in zip(alone.student.net.state_dict().values(), parts.student.net.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_student(off: Any) -> None:
    alone, inside = tiny_task(ROW), tiny_task(ROW)
    run(alone, Toy(), tiny_plan())
    with off():
        run(inside, Toy(), tiny_plan())
    pairs = zip(alone.student.net.parameters(), inside.student.net.parameters(), strict=True)
    assert all(torch.equal(a, b) and not b.is_inference() for a, b in pairs)


def entropies() -> Iterator[tuple[Tensor, float]]:
    yield torch.zeros(5, 4), float(np.log(4))
    yield torch.eye(4) * 1000, float(np.log(4))
    yield torch.eye(4)[[1, 1, 1]] * 1000, 0.0
    x = torch.randn(6, 3, dtype=torch.float64)
    p = torch.softmax(x, 1).mean(0).numpy()
    yield x, float(-(p * np.log(p)).sum())


def test_class_entropy() -> None:
    for logits, wanted in entropies():
        assert float(class_entropy(logits)) == pytest.approx(wanted, abs=1e-5)
