"""Two processes over gloo: what they compute together is what one process computes on the joint batch."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from dfkd.engine.checkpoint import Checkpoint, pools_of
from dfkd.engine.core import Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.estimate import Estimate as Expected
from dfkd.engine.estimate import estimate
from dfkd.engine.evaluate import evaluate
from dfkd.engine.hours import fit_plan
from dfkd.engine.joint import join, separate, unjoinable_paths
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.records import Agreement, Estimate
from dfkd.engine.runtime import Runtime
from dfkd.engine.stopping import Judge
from dfkd.engine.verify import verify
from dfkd.errors import UserError
from dfkd.losses.divergence import knowledge_distillation
from dfkd.losses.statistics import moment_distance
from dfkd.nets.modes import batch_statistics
from dfkd.nets.zoo import build
from settings import SETTINGS, tiny_plan, tiny_task

Job = Callable[[Runtime, Path], Any]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def work(rank: int, world: int, port: int, job: Job, folder: Path, machines: int = 1) -> None:
    """One process, started as ``torchrun`` would start it; ``machines`` are acted, with equally many processes."""
    local = world // machines
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank % local),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(local),
        GROUP_RANK=str(rank // local),
        TORCHELASTIC_RUN_ID="test",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    runtime = Runtime(device="cpu", devices=local).launch()
    try:
        result = job(runtime, folder)
        torch.save(result, folder / f"result-{rank}.pt")
        runtime.barrier()
    finally:
        torch.distributed.destroy_process_group()


def together(job: Job, folder: Path, world: int = 2, machines: int = 1) -> list[Any]:
    """What every process returned."""
    folder.mkdir(exist_ok=True, parents=True)
    spawn(work, (world, free_port(), job, folder, machines), nprocs=world)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(world)]


def net_and_batch() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(4)
    nets = [nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]
    return nets[0], nets[1], torch.rand(8, 2, 6, 6)


def take_steps(runtime: Runtime, folder: Path) -> Any:
    """Forward, clipped and free steps, on this process's share of a batch."""
    teacher, student, images = net_and_batch()
    teacher, student = runtime.place(teacher), runtime.place(student)
    mine = images.chunk(runtime.world)[runtime.rank]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=True)
    own = nn.Parameter(torch.zeros(()))
    private = torch.optim.SGD([own], lr=1.0)
    losses = []
    for step in range(3):
        loss = knowledge_distillation(teacher(mine), student(mine), 4.0)
        losses.append(loss.detach())
        runtime.step(loss + own * (runtime.rank + 1), optimizer, private=[private], clip=0.5 if step == 1 else None)
    joint = runtime.total(torch.stack(losses)) / runtime.world
    return {"student": student.state_dict(), "losses": joint, "own": own.detach(), "rank": runtime.rank}


def take_joint_steps(runtime: Runtime, folder: Path) -> Any:
    """A generator by the statistics of a teacher, then a student with BatchNorm layers, each on a share of a batch."""
    torch.manual_seed(5)
    big, small = (build("resnet8", 3, 2).net for _ in range(2))
    generator = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None), nn.Conv2d(6, 2, 1))
    held = torch.randn(12, 2, 8, 8), torch.arange(12) % 3
    x, y = (part.chunk(runtime.world)[runtime.rank] for part in held)
    nets = [runtime.place(net) for net in (big, small, generator)]
    T, S = (Probe(net, mean=[0.4] * 2, std=[0.3] * 2, joint=runtime.joint) for net in nets[:2])
    T.freeze()
    steps = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (nets[2], S)]
    losses = []
    for _ in range(3):
        images = torch.sigmoid(nets[2](x))
        out = T(images, stats=True)
        loss = F.cross_entropy(out.logits, y) + 0.1 * moment_distance(out.stats, out.stored)
        runtime.step(loss, steps[0])
        learnt = F.cross_entropy(S(images.detach()).logits, y)
        runtime.step(learnt, steps[1], clip=1.0)
        losses += [loss.detach(), learnt.detach()]
    joined = ["forward" in m.__dict__ for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    S.release()
    left = ["forward" in m.__dict__ for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    return {
        "student": small.state_dict(),
        "generator": generator.state_dict(),
        "losses": runtime.total(torch.stack(losses)) / runtime.world,
        "joined": (all(joined), any(left)),
    }


def check_runtime(runtime: Runtime, folder: Path) -> Any:
    """Everything else a runtime does for several processes."""
    rank = float(runtime.rank)
    mixed = [torch.full((2, 3), rank), torch.full((4,), rank, dtype=torch.float64)]
    average = runtime.average(mixed)
    net = nn.BatchNorm2d(3)
    nn.init.constant_(net.weight, rank)
    nn.init.constant_(net.running_mean, rank + 1)  # type: ignore[arg-type]
    runtime.level(net)
    level = net.running_mean
    assert level is not None
    level = level.clone()
    nn.init.constant_(net.running_mean, rank + 1)  # type: ignore[arg-type]
    runtime.share(net)
    test = torch.arange(7 * 4, dtype=torch.uint8).view(7, 1, 2, 2), torch.arange(7) % 4
    task = tiny_task(replace(SETTINGS["NoiseInput"], image_shape=(1, 8, 8)), runtime=runtime)
    images = torch.randint(256, (11, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    score = evaluate(task.student, images, torch.arange(11) % 4, 4, runtime, task.teacher, batch_size=3)
    default, own = torch.rand(3), torch.rand(3, generator=runtime.generator)
    return {
        "mixed unchanged": [m.clone() for m in mixed],
        "average": average,
        "level": level,
        "shared": [net.weight.detach(), net.running_mean],
        "score": [score.accuracy, score.agreement, score.loss, score.images, list(score.class_accuracy)],
        "test": list(test),
        "default": default,
        "own": own,
    }


def distil(runtime: Runtime, folder: Path, rounds: int = 5, resume: bool = False) -> Any:
    row = SETTINGS["NAYER"]
    plan = tiny_plan(rounds=5, warmup=1)
    torch.manual_seed(runtime.rank)  # a user's script may build another student on every process
    task = tiny_task(row, runtime=runtime)
    if runtime.rank == 1 and not resume:
        with torch.no_grad():
            next(task.student.parameters()).add_(1)
    checkpoint = Checkpoint(folder / "checkpoint", runtime.rank, runtime.world, runtime.barrier)
    watch = Watch(checkpoint=checkpoint, save_every=0)
    with ExitStack() as stack:
        if rounds < 5:
            stop = StopAfter(rounds)
            stack.enter_context(patch("dfkd.engine.driver._set_rate", stop))
            stack.enter_context(pytest.raises(KeyboardInterrupt))
        state = run(task, row.method, plan, watch, resume=resume)
    if rounds < 5:
        return {}
    pool = pools_of(state)["pool"]
    return {"student": task.student.net.state_dict(), "images": pool.newest(len(pool))["images"]}


class StopAfter:
    """In the place of the driver's first step of a round: Ctrl-C at the beginning of round ``rounds``."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        if self.rounds == 0:
            raise KeyboardInterrupt
        self.rounds -= 1
        for group in optimizer.param_groups:
            group["lr"] = rate


def distil_in_two_parts(runtime: Runtime, folder: Path) -> Any:
    distil(runtime, folder, rounds=3)
    runtime.barrier()
    return distil(Runtime(device="cpu", devices=runtime.world).launch(), folder, resume=True)


def end_by_a_rule(runtime: Runtime, folder: Path) -> Any:
    """Process 0 measures an agreement that falls, the other has no judge: both end after the same round, twice."""
    row, found = SETTINGS["NAYER"], []
    for resume in (False, True):
        task = tiny_task(row, runtime=runtime)
        rounds: list[int] = []

        def falling(task: Task, shown: Any, rounds: list[int] = rounds) -> Estimate:
            rounds.append(len(rounds))
            return Estimate({"inverted": Agreement(1 / len(rounds), 0.0, 1.0, 9, 0.0)}, {}, 0.0)

        judge = Judge(patience=2) if runtime.rank == 0 else None
        checkpoint = Checkpoint(folder, runtime.rank, runtime.world, runtime.barrier)
        watch = Watch(checkpoint=checkpoint, save_every=0, gauge=falling, judge=judge)
        run(task, row.method, tiny_plan(rounds=5, warmup=1), watch, resume=resume)
        found.append([len(rounds), checkpoint.rounds(), watch.stopped is not None])
        runtime.barrier()
    return found


def plan_for_an_hour(runtime: Runtime, folder: Path) -> Any:
    """Rounds that fit, where process 1 measures slower ones."""
    pace = 1000.0 * (1 + 5 * runtime.rank)

    def estimator(*given: Any) -> Callable[[Plan], Expected]:
        return lambda plan: Expected({"student": pace * plan.rounds}, 0, 0, 0, 9, 0, 9)

    with patch("dfkd.engine.hours.estimator", estimator):
        task = tiny_task(SETTINGS["NAYER"], runtime=runtime)
        return fit_plan(task, SETTINGS["NAYER"].method, tiny_plan(rounds=9), Watch(), 1).plan.rounds


def measure_first_rounds(runtime: Runtime, folder: Path) -> Any:
    """A dry run, and a plan for a day: what they say, and whether the student is as it was."""
    row, plan = SETTINGS["NAYER"], tiny_plan(rounds=9, warmup=1, steps=4)
    task = tiny_task(row, runtime=runtime)
    before = {name: value.clone() for name, value in task.student.net.state_dict().items()}
    expected = estimate(task, row.method, plan)
    fitted = fit_plan(task, row.method, plan, Watch(), 24)
    unchanged = all(torch.equal(value, before[name]) for name, value in task.student.net.state_dict().items())
    return [expected.images, expected.disk > expected.pool > 0, fitted.plan.rounds, unchanged]


def everything(runtime: Runtime, folder: Path) -> Any:
    """One start of two processes for all tests: starting them is what takes the time."""
    return {
        "steps": take_steps(runtime, folder),
        "runtime": check_runtime(runtime, folder),
        "joint": take_joint_steps(Runtime(device="cpu", devices=runtime.world, sync_bn=True).launch(), folder),
        "apart": take_joint_steps(runtime, folder),
        "whole": distil(Runtime(device="cpu", devices=runtime.world).launch(), folder / "whole"),
        "parts": distil_in_two_parts(Runtime(device="cpu", devices=runtime.world).launch(), folder / "parts"),
        "ruled": end_by_a_rule(Runtime(device="cpu", devices=runtime.world).launch(), folder / "ruled"),
        "rounds": plan_for_an_hour(runtime, folder),
        "measured": measure_first_rounds(Runtime(device="cpu", devices=runtime.world).launch(), folder),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    folder = tmp_path_factory.mktemp("two") / "processes"
    return together(everything, folder), folder


Both = tuple[list[Any], Path]


def test_two_shares_of_a_batch_step_like_the_whole(both: Both, tmp_path: Path) -> None:
    results = [result["steps"] for result in both[0]]
    alone = take_steps(Runtime(device="cpu").launch(), tmp_path)
    assert [result["rank"] for result in results] == [0, 1]
    for result in results:
        torch.testing.assert_close(result["losses"], alone["losses"])
        torch.testing.assert_close(result["student"], alone["student"])
    for key, value in results[0]["student"].items():
        assert torch.equal(value, results[1]["student"][key])
    assert [float(result["own"]) for result in results] == [-3.0, -6.0]


def test_joint_statistics_are_those_of_the_whole_batch(both: Both, tmp_path: Path) -> None:
    alone = take_joint_steps(Runtime(device="cpu", sync_bn=True).launch(), tmp_path)
    assert alone["joined"] == (False, False)
    for result in both[0]:
        assert result["joint"]["joined"] == (True, False)
        for part in ("student", "generator", "losses"):
            torch.testing.assert_close(result["joint"][part], alone[part], rtol=1e-4, atol=1e-5)
        apart = result["apart"]["losses"] - alone["losses"]
        assert apart.abs().max() > 1e-3  # each its own statistics: another run


def test_joint_statistics_and_compilation_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Runtime(device="cpu", sync_bn=True, compile=True)  # one process: nothing is joined
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="needs sync_bn or compile, got both"):
        Runtime(device="cpu", sync_bn=True, compile=True)


@pytest.fixture
def group() -> Iterator[None]:
    """This process alone, as a group of one."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation is part of the layer."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_only_plain_batch_norm_is_joined(group: None) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), NormAct(3), nn.BatchNorm2d(3))
    patched = lambda x: x + 1  # noqa: E731
    net[2].forward = patched
    x = torch.randn(6, 3, 4, 4)
    expected = net(x)
    join(join(net))
    assert [type(layer.forward) is partial for layer in net] == [True, False, False]
    assert unjoinable_paths(net) == ["1", "2"]
    torch.testing.assert_close(net(x), expected)
    separate(net)
    assert ["forward" in vars(layer) for layer in net] == [False, False, True]
    assert net[2].forward is patched


def test_layers_that_cannot_be_joined_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "joint", property(lambda self: True))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    verified = verify(
        net,
        Runtime(device="cpu").launch(),
        image_shape=(3, 8, 8),
        mean=[0.5] * 3,
        std=[0.5] * 3,
        role="student",
        trains=True,
    )
    (note,) = verified.notes
    assert note.startswith(
        "student: sync_bn leaves out 1 BatchNorm layers with a forward pass of their own (NormAct: 1)"
    )


def test_joined_layers_store_nothing_where_they_are_told_to(group: None) -> None:
    net = join(nn.BatchNorm2d(3))
    x = torch.randn(6, 3, 4, 4)
    with batch_statistics(net):
        y = net(x)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
    assert float(net.num_batches_tracked) == float(net.running_mean.abs().sum()) == 0  # type: ignore[arg-type,operator]
    net(x)
    assert float(net.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_averages_sums_and_shared_weights(both: Both) -> None:
    for rank, result in enumerate(r["runtime"] for r in both[0]):
        assert all((m == rank).all() for m in result["mixed unchanged"])
        assert all((a == 0.5).all() for a in result["average"])
        assert [a.dtype for a in result["average"]] == [torch.float32, torch.float64]
        assert (result["level"] == 1.5).all()
        assert (result["shared"][0] == 0).all()
        assert (result["shared"][1] == 1).all()


def test_streams_are_shared_or_private(both: Both) -> None:
    one, two = (result["runtime"] for result in both[0])
    assert torch.equal(one["default"], two["default"])
    assert not torch.equal(one["own"], two["own"])


def test_an_evaluation_is_shared_out(both: Both) -> None:
    one, two = (result["runtime"]["score"] for result in both[0])
    task = tiny_task(SETTINGS["NoiseInput"])
    images = torch.randint(256, (11, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    score = evaluate(task.student, images, torch.arange(11) % 4, 4, task.runtime, task.teacher)
    assert one == two
    assert one[3] == score.images == 11
    assert one[:3] == pytest.approx([score.accuracy, score.agreement, score.loss])
    assert one[4] == pytest.approx(list(score.class_accuracy))


def test_students_stay_equal_over_rounds_and_a_resume_is_exact(both: Both) -> None:
    one, two = (result["whole"] for result in both[0])
    for key, value in one["student"].items():
        assert torch.equal(value, two["student"][key]), key
    assert not torch.equal(one["images"], two["images"])  # every process makes its own
    for result in both[0]:
        for key, value in result["whole"]["student"].items():
            assert torch.equal(value, result["parts"]["student"][key]), key
        assert torch.equal(result["whole"]["images"], result["parts"]["images"])


def test_a_rule_ends_all_processes_together(both: Both) -> None:
    for result in both[0]:
        assert result["ruled"] == [[3, 4, True], [0, 4, True]]  # warm-up, the best round, two without a higher one


def test_the_plan_of_process_0_is_that_of_all(both: Both) -> None:
    assert [result["rounds"] for result in both[0]] == [3, 3]


def test_processes_measure_the_first_rounds_together(both: Both) -> None:
    row = SETTINGS["NAYER"]
    alone = estimate(tiny_task(row), row.method, tiny_plan(rounds=9, warmup=1, steps=4))
    assert [result["measured"] for result in both[0]] == [[alone.images, True, 9, True]] * 2


def places(runtime: Runtime, folder: Path) -> Any:
    """Who am I, and is everybody there?"""
    return [runtime.rank, runtime.world, float(runtime.total(torch.ones(())))]


@pytest.mark.slow
def test_two_machines_are_one_group(tmp_path: Path) -> None:
    assert together(places, tmp_path, world=2, machines=2) == [[0, 2, 2.0], [1, 2, 2.0]]


def test_devices_and_the_launcher_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started on this machine \(2\), got devices=4"):
        Runtime(device="cpu", devices=4)


def test_another_number_of_processes_cannot_resume(both: Both) -> None:
    row = SETTINGS["NAYER"]
    watch = Watch(checkpoint=Checkpoint(both[1] / "whole" / "checkpoint"))
    with pytest.raises(UserError, match="resume needs the 2 processes the run began with, got 1"):
        run(tiny_task(row), row.method, tiny_plan(rounds=5, warmup=1), watch, resume=True)
