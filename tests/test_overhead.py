"""The overhead ratio: the bare passes are what they claim, and a ratio comes out for every method."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from benchmarks import overhead
from benchmarks.bare import Bare, trained_weights
from benchmarks.overhead import Ours, compare, ratios
from benchmarks.recipe_case import RecipeCase, recipe_case
from torch import nn

from dfkd.engine.core import Task
from dfkd.engine.work import count_work
from dfkd.errors import UserError
from dfkd.methods import METHODS, NAYER
from settings import mostly_slow

STEPS, MADE, SEEN = 2, 6, 5  # steps measured, images in a generator step, images in a student step
SMALL = ("teacher=wrn10-1", "student=resnet8", "data.image_size=1,8,8", "plan.batch_size=5")
MAKES = ("method.synthesis_batch=6", "method.pad=1")
G = ("method.width=8", "method.channels=4")
# A recipe of every method, cut down.
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "NAYER": ("nayer/digits-wrn16-2-wrn16-1", (*MAKES, *G)),
        "SpaceshipNet": ("spaceshipnet/digits-wrn16-2-wrn16-1", (*MAKES, *G)),
        "CMI": ("cmi/digits-wrn16-2-wrn16-1", (*MAKES, *G, "method.negatives=4", "method.head_width=4")),
        "D3K": ("d3k/digits-wrn16-2-wrn16-1", (*MAKES, "method.widths=[3,7]", "method.kernels=[3,5]")),
        "DAFL": ("dafl/mnist-lenet5-lenet5-half-dafl", ("method.activation=features",)),
        "DFND": ("dfnd/mnist-lenet5-lenet5-half", ("method.pad=1",)),
        "KD3": ("kd3/mnist-lenet5-lenet5-half", ("method.head_width=6", "method.pad=1")),
        "STTS": ("stts/mnist-lenet5-lenet5-half", MAKES),
        "VanillaKD": ("vanillakd/digits-wrn16-2-wrn16-1", ("method.pad=1",)),
        "NoiseInput": ("noiseinput/digits-wrn16-2-wrn16-1", ()),
    }
)
MAKERS = ("NAYER", "SpaceshipNet", "D3K", "CMI", "DAFL", "STTS")
each = pytest.mark.parametrize("name", mostly_slow(RECIPES, "NAYER", "KD3"))
# Network, images, train mode, differentiated by anything: the passes of one step, in any order.
Pass = tuple[str, int, bool, bool]


def a_case(name: str, *changes: str) -> RecipeCase:
    recipe, own = RECIPES[name]
    return recipe_case(recipe, [*SMALL, *own, *changes], STEPS)


def both(name: str, *changes: str) -> tuple[Ours, Bare]:
    case = a_case(name, *changes)
    ours = Ours(case)
    bare = Bare(case.method, case.plan, ours.task, ours.state)
    bare.prepare()
    return ours, bare


@contextmanager
def watched(task: Task) -> Iterator[list[Pass]]:
    """Forward passes of the two networks, whoever asks for them."""
    found: list[Pass] = []

    def watch(role: str, net: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
            found.append((role, len(given[0]), module.training, made.requires_grad))

        return net.register_forward_hook(note)

    handles = [watch("T", task.teacher.net), watch("S", task.student.net)]
    yield found
    for handle in handles:
        handle.remove()


def test_every_method_has_a_recipe_here() -> None:
    assert RECIPES.keys() == METHODS.keys()
    assert {name for name in RECIPES if both(name)[1].makes} == set(MAKERS)


@each
def test_ratios_come_out(name: str) -> None:
    found = compare(a_case(name), repeats=2)
    expected = {"student"} | ({"generator"} if name in MAKERS else set())
    expected |= {"generator, with statistics"} if name in MAKERS and name not in ("STTS", "DAFL") else set()
    for kind in ("cpu", "wall"):
        assert found["ratio"][kind].keys() == expected
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in found["ratio"][kind].values())


@each
def test_bare_student_steps_run_the_passes_they_claim(name: str) -> None:
    ours, bare = both(name)
    regions = name == "SpaceshipNet"  # Grad-CAM differentiates the teacher too
    once = [("T", SEEN, False, regions), ("S", SEEN, True, True)]
    expected = sorted(once * (2 if name == "KD3" else 1))  # KD3's perturbed images
    with watched(ours.task) as passes:
        bare.student_step()
        assert sorted(passes) == expected
        passes.clear()
        ours.student_steps()
        assert sorted(passes) == sorted(expected * STEPS)  # and the method runs no more than these


@pytest.mark.parametrize("name", mostly_slow(MAKERS, "NAYER", "STTS"))
def test_bare_generator_steps_run_the_passes_they_claim(name: str) -> None:
    ours, bare = both(name)
    roles = {"NAYER": "TS", "D3K": "TS", "CMI": "TTS"}.get(name, "T")  # the images of the others do not ask the student
    made = SEEN if name == "DAFL" else MADE  # as many as the student sees
    expected = sorted((role, made, False, True) for role in roles)
    with watched(ours.task) as passes:
        bare.generator_step()
        assert sorted(passes) == expected
        passes.clear()
        ours.generator_steps()
        steps = [one for one in passes if one[3]]  # STTS's warm-up metrics look without gradients, once a batch
        assert sorted(steps) == sorted(expected * STEPS)
        assert len(passes) - len(steps) <= 2


@pytest.mark.parametrize(
    ("name", "changes", "passes"),
    [
        ("KD3", ("method.mdcl=none",), "ST"),
        ("KD3", ("method.skip_teacher_contrast=true",), "SST"),
        ("SpaceshipNet", ("method.constraint=none",), "ST"),
    ],
)
def test_bare_passes_follow_the_settings(name: str, changes: tuple[str, ...], passes: str) -> None:
    ours, bare = both(name, *changes)
    with watched(ours.task) as found:
        bare.student_step()
        assert "".join(sorted(role for role, *_ in found)) == passes
        assert not any(grad for role, _, _, grad in found if role == "T")
        found.clear()
        ours.student_steps()
        assert "".join(sorted(role for role, *_ in found)) == "".join(sorted(passes * STEPS))


@each
def test_the_work_is_that_of_the_method(name: str) -> None:
    """Multiply-adds: the method's are the bare ones, but for small heads and activation maps that only it computes."""
    ours, bare = both(name)
    torch.manual_seed(3)
    own = count_work(ours.student_steps).flops
    least = sum(count_work(partial(bare.student_step, k)).flops for k in range(STEPS))
    more = 0.10 if name in ("KD3", "SpaceshipNet") else 0.0
    assert least <= own <= (1 + more) * least
    if name in MAKERS and name not in ("STTS", "CMI"):  # torch's counter refuses a leaf (pixels, codes) as an input
        torch.manual_seed(4)
        own = count_work(ours.generator_steps).flops
        torch.manual_seed(4)  # D3K's shape
        bare.prepare()
        least = STEPS * count_work(bare.generator_step).flops
        assert least <= own < 1.002 * least  # NAYER's codes of the newest batch are computed once more, for others


@pytest.mark.parametrize("resample", ["batch", "iteration"])
def test_both_sides_draw_the_same_generator(resample: str) -> None:
    """Otherwise a wide one of ours would be compared with a narrow one."""
    ours, bare = both("D3K", f"method.resample={resample}")
    for seed in range(4):
        torch.manual_seed(seed)
        own = count_work(ours.generator_steps).flops
        torch.manual_seed(seed)
        bare.prepare()
        assert own == sum(count_work(bare.generator_step).flops for _ in range(STEPS))


def test_only_what_is_learnt_is_differentiated() -> None:
    """KD3's student keeps the teacher's classifier; the sides' weights stay what they are in bare passes."""
    ours, bare = both("KD3")
    head = {id(p) for p in (ours.task.student.head or nn.Linear(1, 1)).parameters()}
    assert head
    assert not head & {id(p) for p in trained_weights(ours.task, ours.state)}
    before = {name: p.clone() for name, p in ours.task.student.net.named_parameters()}
    bare.student_step()
    assert all(torch.equal(p, before[name]) for name, p in ours.task.student.net.named_parameters())
    assert all(p.grad is None for p in [*ours.task.student.parameters(), *ours.task.teacher.parameters()])


def test_sizes_are_those_of_the_recipe() -> None:
    case = recipe_case("nayer/cifar10-wrn40-2-wrn16-2", ["plan.lr=0.05"], 4)
    assert isinstance(case.method, NAYER)
    assert (case.teacher, case.student, case.batch) == ("wrn40-2", "wrn16-2", 512)
    assert (case.method.synthesis_batch, case.method.steps, case.method.batches) == (400, 4, 1)
    assert (case.plan.steps, case.plan.lr, case.plan.warmup) == (4, 0.05, 0)
    assert case.job.facts.image_size == (3, 32, 32)
    with pytest.raises(UserError, match="did you mean"):
        recipe_case("nayer/cifar10-wrn40-2-wrn16-3", [], 4)


def test_ratios_are_medians_of_turns() -> None:
    found = ratios({"student/ours": [2.0, 9.0, 3.0], "student/bare": [1.0, 1.0, 2.0]})
    assert found == {"student": 2.0}


def test_a_recipe_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, own = RECIPES["NoiseInput"]
    monkeypatch.setattr(overhead, "write_record", lambda name, content: _write(tmp_path / f"{name}.json", content))
    monkeypatch.setattr("sys.argv", ["overhead", "--recipe", recipe, "--repeats", "1", "--set", *SMALL, *own])
    overhead.main()
    held = json.loads((tmp_path / "speed" / "overhead-now" / "noiseinput-digits-wrn16-2-wrn16-1.json").read_text())
    assert (held["teacher"], held["student"], held["batch"], held["set"]) == ("wrn10-1", "resnet8", 5, [*SMALL, *own])
    assert held["ratio"]["cpu"]["student"] > 0


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
