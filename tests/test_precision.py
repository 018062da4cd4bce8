"""bf16 and compiled steps against eager fp32, and the sums of the benchmarks."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from benchmarks import precision, ranks
from benchmarks.precision import TOLERANCES, VARIANTS, Difference, compare
from benchmarks.records import RESULTS, scheduler

from dfkd.engine.core import Task
from dfkd.engine.records import RoundRecord
from dfkd.engine.runtime import Runtime
from settings import SETTINGS, tiny_task


def make(settings: Mapping[str, Any]) -> Task:
    return tiny_task(SETTINGS["NAYER"], runtime=Runtime(device="cpu", seed=0, backend="eager", **settings))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stream = torch.Generator().manual_seed(8)
    return [(torch.rand(32, 1, 8, 8, generator=stream), torch.arange(32) % 4) for _ in range(count)]


@pytest.mark.parametrize("variant", ["fp32", "compiled", "bf16"])
def test_steps_stay_within_their_tolerances(variant: str) -> None:
    torch._dynamo.reset()
    loss, gradient = TOLERANCES[variant]
    found = [d for many in compare(make, variant, batches(3)).values() for d in many]
    assert len(found) == 6
    assert all(d.loss <= loss and d.gradient <= gradient for d in found)
    if variant == "bf16":
        assert max(d.gradient for d in found) > 1e-3  # the networks did run in bf16


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient of a thousandth is reported as such: the comparison can fail."""
    plain = precision.measure
    calls = iter((1.001, 1.0))  # the variant is measured before eager fp32

    def measure(task: Task, images: torch.Tensor, labels: torch.Tensor) -> dict[str, tuple[float, torch.Tensor]]:
        factor = next(calls)
        return {what: (loss * factor, grad * factor) for what, (loss, grad) in plain(task, images, labels).items()}

    monkeypatch.setattr(precision, "measure", measure)
    for (difference,) in compare(make, "fp32", batches(1)).values():
        assert isinstance(difference, Difference)
        assert (difference.loss, difference.gradient) == pytest.approx((1e-3, 1e-3), rel=1e-2)


def test_every_variant_has_a_tolerance_and_the_records_keep_it() -> None:
    import json

    assert TOLERANCES.keys() == VARIANTS.keys()
    held = json.loads((RESULTS / "precision" / "steps.json").read_text())["relative_differences"]
    for variant, parts in held.items():
        for part in parts.values():
            assert part["loss_largest"] <= TOLERANCES[variant][0]
            assert part["gradient_largest"] <= TOLERANCES[variant][1]


def test_rates_leave_the_first_round_out() -> None:
    def record(synthesis: float, student: float) -> RoundRecord:
        metrics = {"seconds/synthesis": synthesis, "seconds/student": student}
        return RoundRecord(0, 3, False, synthesis + student, metrics)

    found = ranks.rates([record(100.0, 100.0), record(2.0, 4.0), record(2.0, 1.0)])
    made, seen = 20 * 200, 50 * 128
    assert found == pytest.approx({"synthesis": made / 2, "student": seen / 2.5, "whole": (made + seen) / 4.5})
    report = {"rates": found}
    assert ranks.joint([report, report]) == pytest.approx({phase: 2 * rate for phase, rate in found.items()})


def test_the_scheduler_is_named() -> None:
    assert scheduler() in ("normal", "real-time")
