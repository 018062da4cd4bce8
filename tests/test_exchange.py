"""Feature exchange with another method's generator: NAYER's."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.engine.checkpoint import Checkpoint, pack
from dfkd.engine.core import Clock, Method, Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.estimate import estimate
from dfkd.engine.exchange import Exchange, _choose
from dfkd.engine.recombine import Recombine
from dfkd.errors import UserError
from dfkd.methods.nayer import NAYER, NayerState
from dfkd.nets.generators import ConvGenerator
from dfkd.ops.pixels import as_bytes
from settings import SETTINGS, tiny_plan, tiny_task

ROW = SETTINGS["NAYER"]
TINY = NAYER(steps=2, synthesis_batch=10, batches=2, warmup_batches=1, width=12, channels=4, pad=1, renew=2, memory=32)
BARE = replace(TINY, pad=0, flip=False)
PLAN = tiny_plan(rounds=5, warmup=1)  # TINY makes its generator anew in rounds 0, 2 and 4


def _made(method: Method[Any], plan: Any = PLAN) -> tuple[Task, Any]:
    task = tiny_task(ROW)
    return task, run(task, method, plan)


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def _tail(G: ConvGenerator, features: Tensor, tap: int) -> Tensor:
    """What is left of the generator after a tap, block by block."""
    blocks = [G.block1, G.block2, G.paint]
    for block in blocks[tap:]:
        features = block(features)
    return features


def _swapped(features: Tensor, mask: Tensor) -> Tensor:
    """Channel by channel: row i takes the marked channels of row n - 1 - i."""
    out, n = features.clone(), len(features)
    for i in range(n):
        for c in range(features.shape[1]):
            if mask[i, c]:
                out[i, c] = features[n - 1 - i, c]
    return out


@pytest.mark.parametrize("tap", [0, 1, 2])
def test_a_batch_is_decoded_from_rows_of_which_pairs_exchanged_half_their_channels(tap: int) -> None:
    method = Exchange(BARE, p=1.0, taps=(tap,))
    task, state = _made(method)
    pool, G = state.features, state.images.G
    assert not G.training
    rng = torch.Generator()
    rng.set_state(task.runtime.generator.get_state())
    rows = torch.randint(state.first, pool.added, (PLAN.batch_size,), generator=rng) % pool.capacity
    channels = pool.rows[f"tap{tap}"].shape[1]
    with torch.no_grad():
        batch = method.batch(task, state, Clock(PLAN, PLAN.total - 1, 0))
        half = torch.rand(PLAN.batch_size, channels, generator=rng)[: PLAN.batch_size // 2]
        scores = torch.cat([half, half.flip(0)])  # both rows of a pair exchange the same channels
        mask = scores.argsort(1) < channels // 2
        expected = _tail(G, _swapped(pool.rows[f"tap{tap}"][rows].float(), mask), tap)
    assert torch.allclose(batch.images, expected, atol=1e-6)
    assert batch.labels is not None
    assert torch.equal(batch.labels, pool.rows["labels"][rows])


def test_nothing_exchanged_decodes_what_the_generator_makes_of_its_codes() -> None:
    method = Exchange(BARE, p=1.0, fraction=0.0)
    _, state = _made(method)
    with torch.no_grad():
        whole = state.images.G(state.images.codes)
        newest = state.features.newest(len(whole))
        for tap in range(3):
            decoded = _tail(state.images.G, newest[f"tap{tap}"].float(), tap)
            assert torch.allclose(decoded, whole, atol=2e-3), tap  # float16 in between
    assert torch.equal(newest["labels"], state.images.pool.newest(len(whole))["labels"])


def test_the_codes_are_those_of_the_last_images() -> None:
    """With the images of the last step kept, G of the codes gives them but for the update after that step."""
    method = replace(BARE, keep="last", lr=1e-7, redraw=False)
    _, state = _made(method, tiny_plan(rounds=1))
    assert isinstance(state, NayerState)
    with torch.no_grad():
        again = state.G.train()(state.codes)
    kept = state.pool.newest(len(again))["images"]
    assert (as_bytes(again).int() - kept.int()).abs().max() <= 1


def test_features_of_a_generator_that_is_gone_are_passed_over() -> None:
    method = Exchange(BARE, p=1.0)
    task, state = _made(method, replace(PLAN, rounds=3))  # rounds 0 to 3: the last generator was made in round 2
    assert (state.first, state.features.added) == (20, 40)
    for tap in range(3):
        state.features.rows[f"tap{tap}"][8:20] = torch.nan  # the 32 rows there are begin with the ninth ever added
    with torch.no_grad():
        images = [method.batch(task, state, Clock(PLAN, 3, 0)).images for _ in range(8)]
        state.first = 0
        older = [method.batch(task, state, Clock(PLAN, 3, 0)).images for _ in range(8)]
    assert torch.cat(images).isfinite().all()
    assert not torch.cat(older).isfinite().all()


def test_a_generator_that_lives_on_keeps_all_its_features_within_memory() -> None:
    _, state = _made(Exchange(replace(BARE, renew=None, memory=None), p=0.5, memory=25))
    assert (state.first, state.features.added, len(state.features), state.features.capacity) == (0, 60, 25, 25)
    _, state = _made(Exchange(replace(BARE, memory=7), p=0.5))  # fewer images than codes of a batch
    assert (state.features.added, state.features.capacity) == (6 * 7, 7)
    task, state = _made(Exchange(BARE, p=1.0))
    w, (h, _) = 4, task.image_shape[1:]
    floats = 2 * w * (h // 4) ** 2 + 2 * w * (h // 2) ** 2 + w * h**2
    assert state.features.nbytes == 32 * (8 + 2 * floats)  # as many rows as NAYER keeps images


def test_choices_are_as_likely_as_they_should_be() -> None:
    stream = torch.Generator().manual_seed(3)
    drawn = _choose(Exchange(BARE, p=0.7, taps=(0, 2)), 6000, stream)
    shares = {tap: drawn.count(tap) / 6000 for tap in (None, 0, 1, 2)}
    assert shares == pytest.approx({None: 0.3, 0: 0.35, 1: 0.0, 2: 0.35}, abs=0.02)
    assert _choose(Exchange(BARE, p=0.0), 50, stream) == [None] * 50
    assert None not in _choose(Exchange(BARE, p=1.0), 50, stream)


def test_without_exchange_the_first_images_are_the_methods_own() -> None:
    plan = tiny_plan(rounds=1)
    (_, own), (_, mixed) = _made(BARE, plan), _made(Exchange(BARE, p=0.0), plan)
    assert torch.equal(own.pool.newest(20)["images"], mixed.pool.newest(20)["images"])
    assert mixed.pool is mixed.images.pool


def test_exchanged_images_are_cropped_as_the_method_says() -> None:
    """With a border of 8 around 8 pixels some crop of a batch touches black."""
    for pad, black in ((0, False), (8, True)):
        method = Exchange(replace(BARE, pad=pad), p=1.0)
        task, state = _made(method)
        with torch.no_grad():
            images = torch.cat([method.batch(task, state, Clock(PLAN, 5, 0)).images for _ in range(4)])
        assert bool((images == 0).any()) is black


@pytest.mark.parametrize("both", [Exchange(TINY), Recombine(Exchange(TINY), SETTINGS["SpaceshipNet"].method)])
def test_resume_is_exact(both: Method[Any], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class After:
        def stepped(self, *_: object) -> None: ...

        def rounded(self, record: Any) -> None:
            if record.round == 3:
                raise Stop

    whole, end = _made(both)
    with pytest.raises(Stop):
        run(tiny_task(ROW), both, PLAN, Watch([After()], checkpoint=Checkpoint(tmp_path), save_every=0))  # type: ignore[list-item]
    second = tiny_task(ROW)
    again = run(second, both, PLAN, Watch(checkpoint=Checkpoint(tmp_path), save_every=0), resume=True)
    assert _equal(second.student.net.state_dict(), whole.student.net.state_dict())
    left, right = (str(pack(state)) for state in (end, again))
    assert left == right


def test_the_student_learns_from_exchanged_images() -> None:
    (a, _), (b, _), (c, _) = (_made(m) for m in (Exchange(BARE, p=0.0), Exchange(BARE, p=1.0), Exchange(BARE, p=0.0)))
    assert _equal(a.student.net.state_dict(), c.student.net.state_dict())
    assert not _equal(a.student.net.state_dict(), b.student.net.state_dict())


@pytest.mark.slow
def test_one_graph_for_both_kinds_of_batches() -> None:
    counts = []
    for p in (0.0, 0.5, 1.0):
        torch._dynamo.reset()
        task = tiny_task(ROW, compile=True)
        run(task, Exchange(TINY, p=p), PLAN)
        counts.append(task.runtime.graphs)
    assert counts[0] == counts[1] == counts[2] > 0


def test_the_dry_run_counts_the_features() -> None:
    plan = tiny_plan(rounds=4, warmup=0)
    nayer = replace(BARE, memory=None, batches=1)
    with_features, without = (estimate(tiny_task(ROW), m, plan) for m in (Exchange(nayer), nayer))
    rows, (w, h) = 4 * 10, (4, 8)
    floats = 2 * w * (h // 4) ** 2 + 2 * w * (h // 2) ** 2 + w * h**2
    assert with_features.pool - without.pool == rows * (8 + 2 * floats)


def test_it_asks_for_what_the_method_asks_for() -> None:
    assert Exchange(NAYER()).needs() == NAYER().needs()
    assert Exchange(NAYER()).budget() == NAYER.default_plan
    assert Recombine(Exchange(NAYER()), SETTINGS["SpaceshipNet"].method).budget() == NAYER.default_plan
    assert Exchange(NAYER()).period() == 1


@pytest.mark.parametrize("name", ["CMI", "D3K", "DAFL", "DFND", "KD3", "NoiseInput", "STTS", "SpaceshipNet"])
def test_a_method_without_a_staged_generator_is_refused(name: str) -> None:
    row = SETTINGS[name]
    with pytest.raises(UserError, match=rf"^Exchange needs a method that keeps .*, got {name}.*; choose one whose"):
        run(tiny_task(row), Exchange(copy.copy(row.method)), row.plan)


def test_the_deep_generator_is_refused_by_name() -> None:
    row = replace(ROW, image_shape=(1, 16, 16))
    with pytest.raises(UserError, match="got NAYER with a DeepGenerator"):
        run(tiny_task(row), Exchange(replace(BARE, generator="deep")), PLAN)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 1.5}, "p from 0 to 1, got 1.5"),
        ({"fraction": -0.1}, "fraction from 0 to 1, got -0.1"),
        ({"memory": 0}, "memory of at least 1, got 0"),
        ({"taps": (0, 3)}, "taps among 0, 1 and 2"),
        ({"taps": ()}, "taps among 0, 1 and 2"),
        ({"pairs": "both"}, "pairs to be one of complementary, independent"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^Exchange needs .*{said}"):
        Exchange(NAYER(), **settings)
