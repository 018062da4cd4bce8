"""The optimiser step against plain torch, the random streams, and what is refused."""

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dfkd.engine.runtime import Runtime, _copying_outputs
from dfkd.errors import UserError


def a_runtime(**changes: Any) -> Runtime:
    return Runtime(device="cpu", **changes).launch()


def a_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def some_x() -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: Adam(p, lr=0.01, betas=(0.5, 0.9), fused=True),
}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_is_backward_and_step(kind: str, channels_last: bool) -> None:
    runtime = a_runtime(channels_last=channels_last)
    ours, plain = runtime.place(a_net()), runtime.place(a_net())
    a, b = OPTIMIZERS[kind](ours.parameters()), OPTIMIZERS[kind](plain.parameters())
    for _ in range(4):
        runtime.step(ours(some_x()).square().mean(), a)
        b.zero_grad()
        plain(some_x()).square().mean().backward()
        b.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.grad is None


class Swapped(torch.autograd.Function):
    """The identity, whose gradient comes in another memory layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_gradients_in_another_layout_update_the_right_weights(kind: str) -> None:
    start, slope = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        p = nn.Parameter(start.clone().contiguous(memory_format=layout))
        optimizer = OPTIMIZERS[kind]([p])
        for _ in range(3):
            a_runtime().step((Swapped.apply(p) * slope).sum(), optimizer)
        found.append(p.detach())
    torch.testing.assert_close(found[0], found[1])


def test_only_what_the_optimisers_own_gets_a_gradient() -> None:
    other, net = nn.Linear(3, 3), nn.Linear(3, 3)
    before = [p.clone() for p in other.parameters()]
    a_runtime().step(other(net(torch.ones(2, 3))).sum(), SGD(net.parameters(), lr=0.1))
    assert all(p.grad is None for p in [*other.parameters(), *net.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_a_parameter_the_loss_does_not_see_stays() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    a_runtime().step(used.sum(), SGD([unused, used], lr=0.5, weight_decay=1.0), clip=10.0)
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() == [0.0, 0.0]  # 1 - 0.5 (1 + 1)


def test_private_parameters_step_too() -> None:
    shared, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    loss = shared.sum() + 2 * own.sum()
    a_runtime().step(loss, SGD([shared], lr=1.0), private=[SGD([own], lr=1.0)])
    assert shared.tolist() == [-1.0] * 2
    assert own.tolist() == [-2.0] * 3


@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_clipping_is_torch_clipping(limit: float) -> None:
    ours, plain = a_net(), a_net()
    runtime = a_runtime()
    runtime.step(ours(some_x()).square().sum(), SGD(ours.parameters(), lr=0.1), clip=limit)
    plain(some_x()).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), limit)
    SGD(plain.parameters(), lr=0.1).step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_scales_two_parameters_with_one_gradient_once() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a_runtime().step((3 * (a + b)).sum(), SGD([a, b], lr=1.0), clip=1.0)  # gradient (3, 3), norm 3 √2
    assert a.item() == pytest.approx(-(0.5**0.5), rel=1e-4)
    assert b.item() == pytest.approx(-(0.5**0.5), rel=1e-4)


def test_several_optimisers_take_one_step_each() -> None:
    nets = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizers: list[Optimizer] = [SGD(net.parameters(), lr=0.1) for net in nets]
    before = [net.weight.clone() for net in nets]
    a_runtime().step(nets[1](nets[0](torch.ones(1, 2))).sum(), *optimizers)
    assert all(not torch.equal(net.weight, old) for net, old in zip(nets, before, strict=True))


def test_streams_come_back() -> None:
    runtime = a_runtime(seed=7)
    state = runtime.streams()
    first = torch.rand(3, generator=runtime.generator), torch.rand(3)
    runtime.restore_streams(state)
    second = torch.rand(3, generator=runtime.generator), torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_streams_of_another_kind_of_device_give_streams_of_their_own() -> None:
    """The state of a CUDA stream is its seed and an offset, 16 bytes."""
    draws = []
    for own, default in ((b"seed", 1), (b"seed", 1), (b"next", 1), (b"seed", 2)):
        runtime = a_runtime(seed=7)
        saved = torch.tensor([*own * 4], dtype=torch.uint8)
        torch.manual_seed(default)
        runtime.restore_streams({"own": saved, "default": torch.get_rng_state(), "cuda": saved})
        draws.append((torch.rand(2, generator=runtime.generator).tolist(), torch.rand(2).tolist()))
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[2][0]
    assert draws[0][1] == draws[2][1] != draws[3][1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_go_from_one_kind_of_device_to_the_other() -> None:
    runtimes = {name: Runtime(device=name).launch() for name in ("cpu", "cuda")}
    states = {name: runtime.streams() for name, runtime in runtimes.items()}
    for name, other in (("cpu", "cuda"), ("cuda", "cpu")):
        draws = []
        for _ in range(2):
            runtime = runtimes[name]
            runtime.restore_streams(states[other])
            device = runtime.device
            draws.append((torch.rand(2, generator=runtime.generator, device=device), torch.rand(2, device=device)))
        assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(3), torch.tensor(3)])
def test_a_seed_may_be_a_number_of_another_library(seed: Any) -> None:
    draws = [torch.rand(2, generator=a_runtime(seed=value).generator).tolist() for value in (seed, 3)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("seed", [0, 1, 2**40, 2**62, -5])
def test_seeds_give_streams_of_their_own(seed: int) -> None:
    one, same, other = a_runtime(seed=seed), a_runtime(seed=seed), a_runtime(seed=seed + 1)
    draws = [torch.rand(4, generator=r.generator).tolist() for r in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]
    runtime = a_runtime(seed=seed)
    assert torch.rand(4).tolist() != torch.rand(4, generator=runtime.generator).tolist()


def test_compile_is_off_by_default_and_kept_for_functions() -> None:
    assert a_runtime().compile(a_net) is a_net
    runtime = a_runtime(compile=True, backend="eager")
    assert runtime.compile(torch.relu) is runtime.compile(torch.relu)


def test_compiled_closures_are_not_kept_alive() -> None:
    runtime = a_runtime(compile=True, backend="eager")
    big = nn.Linear(2, 2)
    gone = weakref.ref(big)
    runtime.compile(lambda x: big(x))
    del big
    gc.collect()
    assert gone() is None


def test_one_process_averages_nothing() -> None:
    runtime = a_runtime()
    x = [torch.ones(2), torch.ones(3, dtype=torch.float64)]
    assert all(a is b for a, b in zip(runtime.average(x), x, strict=True))
    assert runtime.total(x[0]) is x[0]
    assert (runtime.rank, runtime.world) == (0, 1)
    net = nn.BatchNorm1d(2)
    before = net.running_var
    runtime.share(net)
    runtime.level(net)
    assert net.running_var is before


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="precision fp32 or bf16, got 'fp16'"):
        Runtime(device="cpu", precision="fp16")
    with pytest.raises(UserError, match="compile_mode to be one of default, reduce-overhead, max-autotune, got 'fast'"):
        Runtime(device="cpu", compile_mode="fast")
    with pytest.raises(UserError, match="needs device to be one of"):
        Runtime(device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs a CUDA device"):
            Runtime(device="cuda")


def test_one_process_does_without_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert a_runtime().device == torch.device("cpu")
    with pytest.raises(UserError, match="needs Lightning Fabric for several processes, got a Python without it"):
        Runtime(device="cpu", devices=2)


def test_compiled_graphs_are_counted() -> None:
    torch._dynamo.reset()
    runtime, plain = a_runtime(compile=True, backend="eager"), a_runtime()
    double, half = runtime.compile(lambda x: x * 2), runtime.compile(lambda x: x / 2)
    for _ in range(3):
        double(torch.ones(3))
        assert runtime.graphs == 1
    half(torch.ones(3))
    double(torch.ones(4))  # another shape, another graph
    assert (runtime.graphs, plain.graphs) == (3, 0)


def scaled(x: Tensor, factor: list[float]) -> Tensor:
    return x * factor[0]


def test_many_runs_in_one_program_may_compile_the_same_function() -> None:
    torch._dynamo.reset()
    for run in range(12):
        runtime = a_runtime(compile=True, backend="eager")
        assert runtime.compile(scaled)(torch.ones(2), [float(run)]).tolist() == [run, run]
        assert runtime.graphs == 1


def test_kept_outputs_survive_the_next_replay() -> None:
    held = torch.zeros(2)

    def replay(x: Tensor) -> tuple[Tensor, str, list[Tensor]]:
        held.copy_(x)
        return held, "name", [held]

    function = _copying_outputs(replay)
    first = function(torch.ones(2))
    function(torch.zeros(2))
    assert (first[0].tolist(), first[1], first[2][0].tolist()) == ([1.0, 1.0], "name", [1.0, 1.0])
    x = torch.ones(2, requires_grad=True)
    (slope,) = torch.autograd.grad(_copying_outputs(torch.exp)(x).sum(), x)
    torch.testing.assert_close(slope, x.detach().exp())
