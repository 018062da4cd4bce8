"""NAYER's parts: Table 4's rows, the running statistics, which images are kept, and when G is renewed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import dfkd.methods.nayer as module
from dfkd.engine.core import Clock, Need, Task
from dfkd.engine.driver import check, run
from dfkd.engine.views import Cloud
from dfkd.errors import UserError
from dfkd.methods.nayer import NAYER, NayerState, objective
from dfkd.nets.generators import ConvGenerator, DeepGenerator, NoisyLayer
from dfkd.ops.pixels import as_bytes
from dfkd.types import Moments
from settings import SETTINGS, Setting, tiny_plan, tiny_task

ROW = SETTINGS["NAYER"]


def a_row(**changes: Any) -> Setting:
    return replace(ROW, method=a_method(**changes), plan=tiny_plan(rounds=2, warmup=1))


def a_method(**changes: Any) -> NAYER:
    method = ROW.method
    assert isinstance(method, NAYER)
    settings: dict[str, Any] = {"renew": None, "memory": None, **changes}
    return replace(method, **settings)


def a_state(row: Setting) -> tuple[Task, NayerState]:
    task = tiny_task(row)
    task.student.freeze()
    state = row.method.setup(task, row.plan)
    assert isinstance(state, NayerState)
    return task, state


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "label text only": {"code": "lte"},
    "one-hot": {"code": "onehot"},
    "noise": {"code": "z"},
    "concatenated": {"code": "concat"},
    "sum": {"code": "sum", "beta": 0.1},
    "no re-initialisation": {"redraw": False},
    "no norm": {"norm": False},
    "1-to-1": {"group": "one"},
    "one layer": {"group": "batch", "redraw": False},
    "ImageNet": {"augmentation": "imagenet", "labels": "permuted"},
    "paper": {"momentum": 0.0, "mask": False, "keep": "last", "labels": "uniform"},
    "deep": {"generator": "deep"},
    "slip": {"student_trains": True},
    "no statistics": {"alpha_bn": 0.0},
    "no classes, nothing adversarial": {"alpha_cls": 0.0, "alpha_adv": 0.0},
}


@pytest.mark.parametrize(
    ("generator", "sides", "kind"),
    [
        ("auto", (124, 124), ConvGenerator),
        ("auto", (128, 128), DeepGenerator),
        ("auto", (224, 224), DeepGenerator),
        ("auto", (132, 132), ConvGenerator),
        ("auto", (128, 132), ConvGenerator),
        ("auto", (128, 64), ConvGenerator),
        ("deep", (16, 32), DeepGenerator),
    ],
)
def test_the_generator_is_one_that_makes_images_of_this_size(generator: Any, sides: tuple[int, int], kind: Any) -> None:
    method = a_method(generator=generator)
    task = replace(tiny_task(ROW), image_shape=(1, *sides))
    assert all(need.met(task) for need in method.needs())
    G = method.setup(task, ROW.plan).G
    assert isinstance(G, kind)
    with torch.no_grad():
        assert G.eval()(torch.randn(1, method.width)).shape == (1, 1, *sides)


@pytest.mark.parametrize("side", [8, 20])
def test_sides_that_the_deep_generator_cannot_make_are_refused(side: int) -> None:
    task = tiny_task(replace(ROW, image_shape=(1, side, side)))
    check(task, a_method())
    with pytest.raises(UserError, match=f"NAYER needs an image side that is a multiple of 16, got images of {side}x"):
        check(task, a_method(generator="deep"))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_runs(name: str) -> None:
    row = a_row(**VARIANTS[name])
    if name == "deep":
        row = replace(row, image_shape=(1, 16, 16))
    task = tiny_task(row)
    if not row.method.needs() & {Need.TEXT}:
        task = replace(task, text=None)
    state = run(task, row.method, row.plan)
    assert isinstance(state, NayerState)
    assert len(state.pool) == 10 * (1 + 2 * 2)
    assert isinstance(state.G, DeepGenerator if name == "deep" else ConvGenerator)
    assert all(value.isfinite().all() for value in task.student.net.state_dict().values())


def test_needs_follow_the_switches() -> None:
    everything = {Need.GRADIENT, Need.sides_of(4), Need.BN, Need.TEXT}
    assert NAYER().needs() == everything
    assert NAYER(alpha_bn=0.0).needs() == everything - {Need.BN}
    assert NAYER(code="onehot").needs() == everything - {Need.TEXT}
    assert NAYER(code="z").needs() == everything - {Need.TEXT}


def test_running_statistics_are_an_exponential_average(monkeypatch: pytest.MonkeyPatch) -> None:
    row = a_row(momentum=0.75)
    task, state = a_state(row)
    seen: list[list[Moments]] = []

    def watched(*args: Any) -> Any:
        parts = objective(*args)
        seen.append([Moments(mean.detach().double(), var.detach().double()) for mean, var in parts.stats])
        return parts

    monkeypatch.setattr(module, "objective", watched)
    for round in range(3):
        row.method.synthesize(task, state, Clock(row.plan, round))
    last_of_batch = seen[1::2]  # two steps per batch
    assert len(last_of_batch) == 5
    for layer in range(len(seen[0])):
        for part in (0, 1):
            average = last_of_batch[0][layer][part]
            for batch in last_of_batch[1:]:
                average = 0.75 * average + 0.25 * batch[layer][part]
            torch.testing.assert_close(state.moments[layer][part].double(), average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_images_are_those_of_the_best_or_last_step(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = a_row(keep=keep, steps=5, lr=0.5, batches=1)
    task, state = a_state(row)
    made: list[torch.Tensor] = []
    losses: list[float] = []
    forward = ConvGenerator.forward

    def watched_forward(self: ConvGenerator, code: torch.Tensor) -> torch.Tensor:
        made.append(forward(self, code))
        return made[-1]

    def watched(*args: Any) -> Any:
        parts = objective(*args)
        losses.append(parts.loss.item())
        return parts

    monkeypatch.setattr(ConvGenerator, "forward", watched_forward)
    monkeypatch.setattr(module, "objective", watched)
    row.method.synthesize(task, state, Clock(row.plan, 1))
    step = losses.index(min(losses)) if keep == "best" else 4
    assert torch.equal(state.pool.newest(10)["images"], as_bytes(made[step]))
    assert len(losses) == 5


@pytest.mark.parametrize("renew", [None, 1, 2, 3])
def test_the_generator_is_renewed_on_time(renew: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    row = a_row(renew=renew)
    task, state = a_state(row)
    renewed: list[int] = []
    for round in range(5):
        clock = Clock(row.plan, round)
        monkeypatch.setattr(module, "redraw", lambda net, now=round: renewed.append(now))
        row.method.synthesize(task, state, clock)
    assert renewed == ([] if renew is None else list(range(0, 5, renew)))


def test_the_noisy_layer_is_new_for_every_batch_and_trained_with_the_generator() -> None:
    for redrawn in (True, False):
        row = a_row(redraw=redrawn, lr=1e-4, batches=1)
        task, state = a_state(row)
        before = {"Z": state.Z.weight.detach().clone(), "G": state.G.project.weight.detach().clone()}  # type: ignore[operator,union-attr]
        row.method.synthesize(task, state, Clock(row.plan, 1))
        moved = float((state.Z.weight.detach() - before["Z"]).abs().max())  # type: ignore[operator]
        assert (moved > 0.5) == redrawn
        assert moved > 0
        assert not torch.equal(state.G.project.weight, before["G"])  # type: ignore[union-attr,arg-type]


def test_the_memory_holds_the_newest_images() -> None:
    full, small = a_row(), a_row(memory=17)
    states = [run(tiny_task(row), row.method, replace(row.plan, steps=1, lr=0.0)) for row in (full, small)]
    (a, b) = (state.pool for state in states if isinstance(state, NayerState))
    assert (len(a), len(b), a.added, b.added) == (50, 17, 50, 50)
    assert torch.equal(a.newest(10)["labels"], b.newest(10)["labels"])
    assert len(b.newest(50)["images"]) == 17


def test_warm_up_makes_its_own_number_of_batches_without_the_student() -> None:
    row = a_row(warmup_batches=3, batches=1)
    task, state = a_state(row)
    task.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was asked during warm-up"))
    row.method.synthesize(task, state, Clock(row.plan, 0))
    assert state.pool.added == 30


def test_the_objective_is_the_weighted_sum() -> None:
    row = a_row()
    task, _ = a_state(row)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    for weights in ((0.5, 1.33, 10.0), (0.0, 2.0, 0.0), (1.0, 0.0, 3.0)):
        method = a_method(alpha_cls=weights[0], alpha_adv=weights[1], alpha_bn=weights[2])
        parts = objective(method, task.teacher, task.student, x, y, [], True)
        wanted = weights[0] * parts.cls - weights[1] * parts.adv + weights[2] * parts.bn
        torch.testing.assert_close(parts.loss, wanted)
        assert parts.bn > 0
    quiet = objective(a_method(), task.teacher, task.student, x, y, [], False)
    assert quiet.adv == 0


@pytest.mark.parametrize("field", ["steps", "synthesis_batch", "batches", "warmup_batches", "memory", "renew", "width"])
def test_counts_below_one_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"NAYER needs {field} of at least [12].*, got 0; change {field}"):
        NAYER(**{field: 0})  # type: ignore[arg-type]


def test_a_side_that_is_no_multiple_of_four_is_refused() -> None:
    row = replace(a_row(), image_shape=(1, 10, 10))
    with pytest.raises(UserError, match="NAYER needs an image side that is a multiple of 4"):
        run(tiny_task(row), row.method, row.plan)


def test_one_layer_never_drawn_anew_makes_one_image_for_every_class() -> None:
    """Table 4's row without re-initialisation: the paper's diversity there is that of the label text alone."""
    found = {}
    rows: dict[str, dict[str, Any]] = {
        "one layer": {"redraw": False, "group": "batch"},
        "text": {"code": "lte"},
        "several layers": {"redraw": False},
        "full": {},
    }
    for name, changes in rows.items():
        task, state = a_state(row := a_row(**changes))
        made = row.method.synthesize(task, state, Clock(row.plan, 0))
        images, labels = (state.pool.newest(10)[key] for key in ("images", "labels"))
        flat = images.double().flatten(1) / 255
        pairs = [(i, j) for i in range(10) for j in range(10) if i != j and labels[i] == labels[j]]
        loop = sum(float((flat[i] - flat[j]).square().mean().sqrt()) for i, j in pairs) / len(pairs)
        found[name] = float(made["within_class_distance"])
        assert found[name] == pytest.approx(loop, abs=3e-3)  # stored as bytes
    assert found["one layer"] == found["text"] == 0
    assert found["several layers"] > 0
    assert found["full"] > 0


def test_one_noisy_layer_serves_the_whole_batch() -> None:
    _, state = a_state(a_row(group="batch"))
    assert isinstance(state.Z, NoisyLayer)
    assert state.Z.weight.shape[0] == 1


def test_a_noisy_layer_of_more_classes_than_rows_is_not_filled_up() -> None:
    torch.manual_seed(0)
    layer = NoisyLayer(7, 5, rows=6, group=40, norm=False)
    e = torch.randn(6, 7)
    torch.testing.assert_close(layer(e), e @ layer.weight[0] + layer.bias[0])
    assert layer.group == 6


def test_steps_until_the_class_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a batch whose cross-entropy is below 0.1, averaged over batches; all steps where none is."""
    losses = iter([0.5, 0.09, 0.3, 0.02, 0.5, 0.4, 0.3, 0.2])
    original = module.objective

    def told(*arguments: Any) -> Any:
        out = original(*arguments)
        return out._replace(cls=torch.tensor(next(losses)))

    monkeypatch.setattr(module, "objective", told)
    task, state = a_state(row := a_row(steps=4, warmup_batches=2))
    made = row.method.synthesize(task, state, Clock(row.plan, 0))
    assert float(made["steps_to_class"]) == (1 + 4) / 2


def test_embeddings_are_scaled_before_noise_meets_them() -> None:
    task, _ = a_state(a_row())
    assert task.text is not None
    y = torch.tensor([0, 3, 1])
    before = task.runtime.generator.get_state()
    got = module._embed(a_method(code="sum", beta=0.5, text_scale=3.0), task, y)
    stream = torch.Generator()
    stream.set_state(before)
    torch.testing.assert_close(got, 3 * task.text[y] + 0.5 * torch.randn(3, 7, generator=stream))


def test_permuted_labels_take_every_class_in_turn() -> None:
    task, state = a_state(row := a_row(labels="permuted", synthesis_batch=6, warmup_batches=2))
    row.method.synthesize(task, state, Clock(row.plan, 0))
    labels = state.pool.newest(12)["labels"].tolist()
    assert sorted(labels[:4]) == [0, 1, 2, 3]
    assert labels == (labels[:4] * 3)


def test_the_newest_codes_are_shown_by_class() -> None:
    task, state = a_state(row := a_row())
    row.method.synthesize(task, state, Clock(row.plan, 0))
    view = row.method.views(task, state, None)["codes"]()
    assert isinstance(view, Cloud)
    labels = state.pool.newest(10)["labels"]
    for k, points in enumerate(view.groups.values()):
        assert torch.equal(points, state.codes[labels == k])
    assert sum(len(points) for points in view.groups.values()) == 10
    assert row.method.views(task, None, None) == {}


def test_codes_are_shown_where_the_memory_is_smaller_than_a_batch() -> None:
    task, state = a_state(row := a_row(memory=6))
    row.method.synthesize(task, state, Clock(row.plan, 0))
    view = row.method.views(task, state, None)["codes"]()
    assert isinstance(view, Cloud)
    assert "the 6 newest codes" in view.caption
    labels = state.pool.newest(6)["labels"]
    for k, points in zip(labels.unique(), view.groups.values(), strict=True):
        assert torch.equal(points, state.codes[-6:][labels == k])


def test_the_weights_for_text_and_noise_are_compared() -> None:
    task, state = a_state(row := a_row(code="concat"))
    view = row.method.views(task, state, None)["input-weights"]()
    weight = state.G.project.weight.detach().double().abs().numpy()  # type: ignore[union-attr, operator]
    assert view.numbers["label text"] == pytest.approx(weight[:, :7].mean(), rel=1e-5)
    assert view.numbers["noise"] == pytest.approx(weight[:, 7:].mean(), rel=1e-5)


def test_views_of_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is rolled and mirrored as one; the student sees parts of images, enlarged."""
    task, state = a_state(row := a_row(augmentation="imagenet", pad=0))
    x = torch.rand(5, 1, 8, 8)
    y = module._view(a_method(augmentation="imagenet", pad=0), x, task.runtime.generator)
    turns = [torch.roll(base, (i, j), (2, 3)) for base in (x, x.flip(3)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert any(torch.equal(y, turn) for turn in turns)
    row.method.synthesize(task, state, Clock(row.plan, 0))
    monkeypatch.setattr(module, "resize_boxes", lambda images, boxes: images * 0 + 1)
    batch = row.method.batch(task, state, Clock(row.plan, 1))
    assert bool((batch.images == 1).all())
    assert batch.images.shape == (12, 1, 8, 8)
