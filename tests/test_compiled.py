"""Compiled generators: the same images as eager ones, and no graph more after the first rounds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.engine.checkpoint import pools_of
from dfkd.engine.core import Clock, Method
from dfkd.engine.driver import Watch, run
from dfkd.engine.records import Keep
from dfkd.engine.runtime import Runtime
from dfkd.methods.d3k import D3K, MOST_GRAPHS
from settings import SETTINGS, Setting, tiny_task

ONE_SHAPE = {"widths": (5, 5), "kernels": (3,)}
ROWS: Mapping[str, Setting] = MappingProxyType(
    {
        **{name: SETTINGS[name] for name in ("NAYER", "SpaceshipNet", "D3K")},
        "D3K, one shape": replace(SETTINGS["D3K"], method=D3K(**{**vars(SETTINGS["D3K"].method), **ONE_SHAPE})),
    }
)


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> None:
    torch._dynamo.reset()


def a_runtime(compile: bool = True, backend: str = "eager") -> Runtime:
    return Runtime(device="cpu", compile=compile, backend=backend)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the functions that were given to the compiler."""
    names: set[str] = set()
    plain = Runtime.compile

    def compile(self: Runtime, function: Callable[..., Any]) -> Callable[..., Any]:
        names.add(function.__name__)
        return plain(self, function)

    monkeypatch.setattr(Runtime, "compile", compile)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROWS))
def test_graphs_stop_growing_after_the_first_rounds(name: str, asked: set[str]) -> None:
    """Five rounds; enough student steps that every tap of Spaceship-Net is drawn in the first."""
    row, keep = ROWS[name], Keep()
    plan = replace(row.plan, rounds=5, steps=12)
    run(tiny_task(row, runtime=a_runtime()), row.method, plan, Watch([keep]))
    graphs = [record.metrics["graphs"] for record in keep.records]
    assert graphs[plan.warmup + 1] > 0
    assert graphs[plan.warmup + 1 :] == [graphs[-1]] * 4
    assert ("generate" in asked) == (name != "D3K")  # its shapes change with every batch
    assert ("decode" in asked) == (name == "SpaceshipNet")


@pytest.mark.parametrize("name", [pytest.param("NAYER", marks=pytest.mark.slow), "SpaceshipNet", "D3K, one shape"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_synthesis_makes_the_images_of_eager(name: str, backend: str) -> None:
    row = ROWS[name]
    found = [made(row, a_runtime(compile, backend)) for compile in (False, True)]
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


def made(row: Setting, runtime: Runtime) -> list[Tensor]:
    """What two rounds of synthesis and one batch of the student leave behind, and where the random stream is then."""
    task = tiny_task(row, runtime=runtime)
    state = row.method.setup(task, row.plan)
    task.student.freeze()
    for round in range(2):
        metrics = row.method.synthesize(task, state, Clock(row.plan, row.plan.warmup + round))
    with torch.no_grad():
        batch = row.method.batch(task, state, Clock(row.plan, row.plan.warmup + 1))
    held = [column.float() for column in pools_of(state)["pool"].newest(20).values()]
    numbers = torch.tensor([float(value) for value in metrics.values()])
    return [batch.images, numbers, torch.rand(4, generator=runtime.generator), *held]


def test_eager_runs_compile_nothing() -> None:
    for row in ROWS.values():
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        made(row, a_runtime(compile=False))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "shapes"),
    [({"widths": (5, 5), "kernels": (3,)}, 1), ({"widths": (5, 5), "kernels": (3, 5)}, 8), ({"widths": (4, 5)}, 64)],
)
@pytest.mark.parametrize("resample", ["batch", "iteration"])
def test_d3k_compiles_as_many_generators_as_there_are_shapes(
    changes: dict[str, Any], shapes: int, resample: str
) -> None:
    row = ROWS["D3K"]
    method: Method[Any] = D3K(**{**vars(row.method), **changes, "resample": resample, "theta": 0.0, "steps": 2})
    task = tiny_task(row, runtime=a_runtime())
    state = method.setup(task, row.plan)
    task.student.freeze()
    graphs = []
    for _ in range(20):
        method.synthesize(task, state, Clock(row.plan, row.plan.warmup))
        graphs.append(task.runtime.graphs)
    objectives = 2  # the bank of hashes is empty in the first batch
    drawn = shapes if shapes <= MOST_GRAPHS else 0
    assert graphs[-1] == objectives + drawn
    assert shapes > 1 or graphs[0] == graphs[-1]
