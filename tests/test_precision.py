"""bf16 and compiled steps against eager fp32, and the sums of the benchmarks."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks import ranks
from benchmarks.objectives import OBJECTIVES, Steps
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


@pytest.mark.parametrize("variant", ["fp32", pytest.param("compiled", marks=pytest.mark.slow), "bf16"])
def test_steps_stay_within_their_tolerances(variant: str) -> None:
    torch._dynamo.reset()
    found = compare(make, variant, batches(2))
    assert found.keys() == set(OBJECTIVES)
    for what, many in found.items():
        assert len(many) == 2
        assert all(d.within(variant, what) for d in many), (what, many)
        if variant == "bf16":
            assert max(d.gradient for d in many) > 1e-3, what  # the networks did run in bf16


def test_every_objective_has_a_gradient_of_its_own() -> None:
    """Not zeros, not the same one twice; the loss is the method's, and asking changes no weight."""
    task = make({})
    steps, before = Steps(task, 32), [p.clone() for p in task.student.parameters()]
    ((images, labels),) = batches(1)
    found = steps.measure(images, labels)
    assert all(float(gradient.norm()) > 0 for _, gradient in found.values())
    assert len({loss for loss, _ in found.values()}) == len(OBJECTIVES)
    assert all(torch.equal(p, q) for p, q in zip(task.student.parameters(), before, strict=True))
    x = images.clone().requires_grad_(True)
    t, s = task.teacher(x).logits, task.student(x).logits
    chance, guess = torch.softmax(t, dim=1), torch.softmax(s, dim=1)
    kl = (chance * (chance.log() - guess.log())).sum(dim=1) * (t.argmax(dim=1) == s.argmax(dim=1))
    distance = sum(
        (stats.mean - norm.running_mean).norm() + (stats.var - norm.running_var).norm()
        for stats, norm in zip(task.teacher(x, stats=True).stats, task.teacher.norms, strict=True)
    )
    method = steps.nayer
    loss = method.alpha_cls * F.cross_entropy(t, labels) - method.alpha_adv * kl.mean() + method.alpha_bn * distance
    torch.testing.assert_close(found["generator"][0], float(loss.detach()), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["generator"][1], torch.autograd.grad(loss, x)[0].flatten(), rtol=1e-3, atol=1e-5)


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient of a thousandth is reported as such: the comparison can fail."""
    plain = Steps.measure
    calls = iter((1.001, 1.0))  # the variant is measured before eager fp32

    def measure(self: Steps, images: torch.Tensor, labels: torch.Tensor) -> dict[str, tuple[float, torch.Tensor]]:
        factor = next(calls)
        return {what: (loss * factor, g * factor) for what, (loss, g) in plain(self, images, labels).items()}

    monkeypatch.setattr(Steps, "measure", measure)
    for (difference,) in compare(make, "fp32", batches(1)).values():
        assert isinstance(difference, Difference)
        assert (difference.loss, difference.gradient) == pytest.approx((1e-3, 1e-3), rel=1e-2)


def test_every_variant_has_a_tolerance_and_the_records_keep_it() -> None:
    import json

    assert TOLERANCES.keys() == VARIANTS.keys()
    held = json.loads((RESULTS / "precision" / "steps.json").read_text())["relative_differences"]
    assert {"compiled", "bf16"} <= held.keys()
    for variant, parts in held.items():
        assert parts.keys() == set(OBJECTIVES)
        for what, part in parts.items():
            assert Difference(part["loss_largest"], part["gradient_largest"]).within(variant, what)


def test_rates_leave_the_first_round_out() -> None:
    def record(synthesis: float, student: float) -> RoundRecord:
        metrics = {"seconds/synthesis": synthesis, "seconds/student": student}
        return RoundRecord(0, 3, False, synthesis + student, metrics)

    found = ranks.rates([record(100.0, 100.0), record(2.0, 4.0), record(2.0, 1.0)])
    made, seen = 20 * 200, 50 * 128
    assert found == pytest.approx({"synthesis": made / 2, "student": seen / 2.5, "whole": (made + seen) / 4.5})
    report = {"rates": found}
    assert ranks.sum_rates([report, report]) == pytest.approx({phase: 2 * rate for phase, rate in found.items()})


def test_the_scheduler_is_named() -> None:
    assert scheduler() in ("normal", "real-time")
