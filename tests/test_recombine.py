"""Images from one method, loss from another."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Clock, Method, Need
from dfkd.engine.driver import Watch, run
from dfkd.engine.estimate import estimate
from dfkd.engine.plan import Plan
from dfkd.engine.recombine import Recombine
from dfkd.errors import UserError
from dfkd.identity import settings_of
from dfkd.methods.kd3 import KD3
from dfkd.methods.nayer import NAYER
from dfkd.methods.spaceship import SpaceshipNet
from settings import SETTINGS, tiny_plan, tiny_task

ROW = SETTINGS["NAYER"]
SPACESHIP = SETTINGS["SpaceshipNet"].method
PLAN = tiny_plan(rounds=3, warmup=1)


def _weights(method: Method[Any], plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    task = tiny_task(ROW)
    run(task, method, plan)
    return copy.deepcopy(task.student.net.state_dict())


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_method_recombined_with_itself_is_itself() -> None:
    assert _equal(
        _weights(Recombine(SETTINGS["NoiseInput"].method, SETTINGS["NoiseInput"].method)),
        _weights(SETTINGS["NoiseInput"].method),
    )


def test_nayer_images_with_activation_regions() -> None:
    both = Recombine(ROW.method, SPACESHIP)
    task = tiny_task(ROW)
    state = run(task, both, PLAN)
    assert state.pool is state.images.pool  # type: ignore[attr-defined]
    batch = both.batch(task, state, Clock(PLAN, 1))  # type: ignore[arg-type]
    loss = both.loss(task, state, batch)  # type: ignore[arg-type]
    assert torch.equal(loss, SPACESHIP.loss(task, state.learning, batch))  # type: ignore[attr-defined]
    assert not _equal(_weights(both), _weights(ROW.method))


def test_exchanged_features_with_nayers_loss() -> None:
    both = Recombine(SPACESHIP, ROW.method)
    task = tiny_task(ROW)
    state = run(task, both, PLAN)
    assert "tap0" in state.pool.columns  # type: ignore[attr-defined]


def test_needs_are_joined() -> None:
    both = Recombine(NAYER(alpha_bn=0), SpaceshipNet())
    assert both.needs() == NAYER(alpha_bn=0).needs() | SpaceshipNet().needs()
    assert Need.STAGES in both.needs()


def test_resume_is_exact(tmp_path: Path) -> None:
    both, whole = Recombine(ROW.method, SPACESHIP), _weights(Recombine(ROW.method, SPACESHIP))

    class Stop(Exception):
        pass

    class After:
        def stepped(self, *_: object) -> None: ...

        def rounded(self, record: Any) -> None:
            if record.round == 2:
                raise Stop

    first = tiny_task(ROW)
    with pytest.raises(Stop):
        run(first, both, PLAN, Watch([After()], checkpoint=Checkpoint(tmp_path), save_every=0))  # type: ignore[list-item]
    second = tiny_task(ROW, seed=0)
    run(second, both, PLAN, Watch(checkpoint=Checkpoint(tmp_path), save_every=0), resume=True)
    assert _equal(second.student.net.state_dict(), whole)


def test_the_dry_run_counts_what_is_made_not_the_room_for_what_is_not() -> None:
    nayer = NAYER(steps=2, synthesis_batch=10, batches=1, width=8, channels=4)
    found = estimate(
        tiny_task(ROW), Recombine(nayer, SpaceshipNet(synthesis_batch=500, channels=4)), tiny_plan(rounds=2)
    )
    assert found.pool == 2 * 10 * (64 + 8)


def test_the_record_names_both_methods() -> None:
    settings = settings_of(Recombine(NAYER(steps=7), SpaceshipNet()))
    assert settings["images_from"]["method"] == "NAYER"  # type: ignore[index]
    assert settings["images_from"]["steps"] == 7  # type: ignore[index]
    assert settings["loss_from"]["method"] == "SpaceshipNet"  # type: ignore[index]


def test_what_the_parts_cannot_give_each_other_is_refused() -> None:
    kd3 = SETTINGS["KD3"].method
    assert isinstance(kd3, KD3)
    with pytest.raises(UserError, match=r'second view .* set mdcl="none"'):
        run(tiny_task(SETTINGS["KD3"]), Recombine(SETTINGS["NoiseInput"].method, kd3), tiny_plan())
    with pytest.raises(UserError, match=r"KD3, which sets .*share_head=False"):
        run(tiny_task(SETTINGS["KD3"]), Recombine(kd3, SETTINGS["NoiseInput"].method), tiny_plan())
    fine = Recombine(replace(kd3, share_head=False), SETTINGS["NoiseInput"].method)
    task = tiny_task(SETTINGS["KD3"])
    assert run(task, fine, tiny_plan()).fixed_parameters == ()
    assert not torch.equal(task.student.head.weight, task.teacher.head.weight)  # type: ignore[union-attr]
    run(tiny_task(SETTINGS["KD3"]), Recombine(replace(kd3, select="random"), kd3), tiny_plan())  # both share the head
