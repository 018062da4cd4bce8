"""What every method promises, whatever it does: the same tests for every row of ``settings.SETTINGS``."""

import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import dfkd.methods
from dfkd.engine.checkpoint import Checkpoint, pack, pools_of, unpack
from dfkd.engine.core import Clock, Method, Need, State, Task, unmet
from dfkd.engine.declared import check_declared, check_grown, parts_of
from dfkd.engine.driver import Watch, run
from dfkd.engine.measures import RUN_MEASURES, is_loss
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer
from dfkd.errors import UserError
from dfkd.identity import weights_hash
from dfkd.methods import METHODS
from dfkd.types import Batch
from settings import SETTINGS, Setting, mostly_slow, tiny_task

HERE = Path(__file__).parent
SOURCE = Path(dfkd.methods.__file__).parent
each = pytest.mark.parametrize("name", sorted(SETTINGS))
Flat = dict[str, Any]


def flat(value: Any, path: str = "") -> Flat:
    """Every leaf of a nest of containers, by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}.{i}").items()}
    return {path: value}


def same(a: Any, b: Any) -> list[str]:
    """Paths at which two nests differ in any bit."""
    left, right = flat(a), flat(b)
    if left.keys() != right.keys():
        return sorted(left.keys() ^ right.keys())
    return [path for path, value in left.items() if not _equal(value, right[path])]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if a.is_floating_point() else torch.equal(a, b)
    return bool(a == b)


def everything(task: Task, state: State) -> Flat:
    """Student, state, pools and random streams."""
    pools = {name: {"added": pool.added, **pool.newest(len(pool))} for name, pool in pools_of(state).items()}
    return {
        "student": task.student.net.state_dict(),
        "state": pack(state),
        "pools": pools,
        "streams": task.runtime.streams(),
    }


def distilled(name: str, **changes: Any) -> tuple[Task, State]:
    row = SETTINGS[name]
    task = tiny_task(row, **changes)
    return task, run(task, row.method, row.plan)


class Stop(Exception):
    """Raised where a run is to be cut off."""


class CutOff(Observer):
    """An observer that stops the run after ``rounds`` rounds, as a kill would: before that round is saved."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def rounded(self, record: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stop


# ---- runs -----------------------------------------------------------------------------------------------------------


@each
def test_two_runs_end_in_the_same_bits(name: str) -> None:
    first, second = everything(*distilled(name)), everything(*distilled(name))
    assert same(first, second) == []
    assert all(t.isfinite().all() for t in first["student"].values() if t.is_floating_point())


@each
def test_the_seed_matters(name: str) -> None:
    (a, _), (b, _) = distilled(name, seed=1), distilled(name, seed=2)
    assert same(a.student.net.state_dict(), b.student.net.state_dict())


@each
@pytest.mark.parametrize("after", [1, 2])
def test_a_run_cut_off_and_resumed_is_the_uninterrupted_run(name: str, after: int, tmp_path: Path) -> None:
    row = SETTINGS[name]
    whole = everything(*distilled(name))
    task = tiny_task(row)
    watch = Watch(observers=[CutOff(after)], checkpoint=Checkpoint(tmp_path), save_every=0)
    with pytest.raises(Stop):
        run(task, row.method, row.plan, watch)
    again = tiny_task(row)
    torch.rand(3)  # whatever the new process did before
    watch = Watch(checkpoint=Checkpoint(tmp_path), save_every=0)
    state = run(again, row.method, row.plan, watch, resume=True)
    assert same(everything(again, state), whole) == []


def kinds(value: Any, path: str = "") -> dict[str, type]:
    """The type of every part of a state, by its path."""
    found = {path: type(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    elif isinstance(value, dict):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {str(i): part for i, part in enumerate(value)}
    else:
        parts = {}
    for key, part in parts.items():
        found |= kinds(part, f"{path}.{key}")
    return found


@each
def test_a_state_comes_back_with_its_types(name: str, tmp_path: Path) -> None:
    row = SETTINGS[name]
    task, state = distilled(name)
    torch.save(pack(state), tmp_path / "state.pt")
    other = tiny_task(row)
    restored = row.method.setup(other, row.plan)
    other.runtime.place(restored.joint)
    check_declared(restored)
    check_grown(parts_of(restored), state)  # nothing came that setup had not made
    unpack(torch.load(tmp_path / "state.pt", weights_only=True), restored, other.runtime.device)
    assert kinds(restored) == kinds(state)
    assert same(pack(restored), pack(state)) == []
    assert task.runtime.device == other.runtime.device


@each
def test_saving_and_watching_change_nothing(name: str, tmp_path: Path) -> None:
    row = SETTINGS[name]
    task = tiny_task(row)
    c, h, w = row.image_shape
    test = (torch.zeros(6, c, h, w, dtype=torch.uint8), torch.arange(6) % row.classes)
    watch = Watch(test=test, samples_every=1, checkpoint=Checkpoint(tmp_path), save_every=0)
    state = run(task, row.method, row.plan, watch)
    assert same(everything(task, state), everything(*distilled(name))) == []


@each
def test_the_method_is_its_page(name: str) -> None:
    row = SETTINGS[name]
    task, _ = distilled(name)
    plain = tiny_task(row)
    importlib.import_module(f"pages.{row.page}").train(plain, row.method, row.plan)
    assert same(task.student.net.state_dict(), plain.student.net.state_dict()) == []


# ---- who may touch what ---------------------------------------------------------------------------------------------


@each
def test_the_teacher_is_untouched(name: str) -> None:
    row = SETTINGS[name]
    task = tiny_task(row)
    before = weights_hash(task.teacher.net)
    run(task, row.method, row.plan)
    assert weights_hash(task.teacher.net) == before
    assert not task.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())


@each
def test_synthesis_and_batches_leave_the_student_alone(name: str) -> None:
    row = SETTINGS[name]
    task = tiny_task(row)
    state = row.method.setup(task, row.plan)
    task.student.freeze()
    before = {key: value.clone() for key, value in task.student.net.state_dict().items()}
    for round in range(row.plan.total):
        row.method.synthesize(task, state, Clock(row.plan, round))
        assert not task.student.training
        assert not any(module.training for module in task.student.modules())
        with torch.no_grad():
            row.method.batch(task, state, Clock(row.plan, round))
    assert same(task.student.net.state_dict(), before) == []
    assert all(p.grad is None and not p.requires_grad for p in task.student.parameters())


@each
def test_parameters_the_user_froze_stay_frozen(name: str) -> None:
    row = SETTINGS[name]
    task = tiny_task(row)
    frozen = dict(list(task.student.net.named_parameters())[:2])
    before = {key: parameter.detach().clone() for key, parameter in frozen.items()}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    run(task, row.method, row.plan)
    for key, parameter in frozen.items():
        assert torch.equal(parameter, before[key])
        assert not parameter.requires_grad


@each
def test_the_global_random_streams_of_python_and_numpy_are_not_used(name: str) -> None:
    import random

    import numpy

    before = random.getstate(), numpy.random.get_state()[1].copy()  # type: ignore[index]
    distilled(name)
    assert random.getstate() == before[0]
    assert (numpy.random.get_state()[1] == before[1]).all()  # type: ignore[index]


# ---- values ---------------------------------------------------------------------------------------------------------


def ready(name: str, **changes: Any) -> tuple[Setting, Task, State]:
    """A task and state after the rounds that only synthesise, and one more synthesis."""
    row = SETTINGS[name]
    task = tiny_task(row, **changes)
    state = row.method.setup(task, row.plan)
    task.runtime.place(state.joint)
    task.student.freeze()
    for round in range(row.plan.warmup + 1):
        row.method.synthesize(task, state, Clock(row.plan, round))
    return row, task, state


def next_batch(row: Setting, task: Task, state: State, step: int = 0) -> Batch:
    with torch.no_grad():
        return row.method.batch(task, state, Clock(row.plan, row.plan.warmup, step))


@each
def test_images_are_images(name: str) -> None:
    row, task, state = ready(name)
    batch = next_batch(row, task, state)
    assert batch.images.shape == (row.plan.batch_size, *row.image_shape)
    assert batch.images.dtype == torch.float32
    assert not batch.images.requires_grad
    assert 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    assert float(batch.images.std()) > 0
    if batch.labels is not None:
        assert batch.labels.dtype == torch.int64
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < row.classes
    pool = pools_of(state).get("pool")
    if pool is not None and "images" in pool.columns:
        assert pool.columns["images"] == (row.image_shape, torch.uint8)


@each
def test_metrics_are_finite_scalars(name: str) -> None:
    row = SETTINGS[name]
    task = tiny_task(row)
    state = row.method.setup(task, row.plan)
    task.student.freeze()
    for round in range(row.plan.total):
        for key, value in row.method.synthesize(task, state, Clock(row.plan, round)).items():
            assert torch.as_tensor(value).numel() == 1, key
            assert torch.as_tensor(value).isfinite(), key
            assert is_loss(key) or key in RUN_MEASURES or key in row.method.all_measures(), key
            assert not (isinstance(value, Tensor) and value.requires_grad), key


@each
def test_the_loss_is_pure_and_reaches_only_the_student(name: str) -> None:
    row, task, state = ready(name)
    batch = next_batch(row, task, state)
    task.student.requires_grad_(True).train()
    state.joint.train()
    before = task.runtime.streams()
    loss = row.method.loss(task, state, batch)
    assert loss.shape == ()
    assert loss.isfinite()
    assert same(task.runtime.streams(), before) == []
    grads = torch.autograd.grad(loss, list(task.student.parameters()), allow_unused=True)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in grads)
    task.student.eval()
    values = [row.method.loss(task, state, batch) for _ in range(2)]
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, "NAYER", "STTS", "VanillaKD"))
def test_the_loss_is_one_graph_and_is_compiled_once(name: str) -> None:
    row, task, state = ready(name, compile=True)
    torch._dynamo.reset()
    task.student.requires_grad_(True).train()
    state.joint.train()
    compiled = task.runtime.compile(lambda batch: row.method.loss(task, state, batch))
    first = next_batch(row, task, state)
    compiled(first)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1
    compiled(next_batch(row, task, state, 1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    task.student.eval()
    plain = row.method.loss(task, state, first)
    torch.testing.assert_close(compiled(first), plain)


@each
def test_half_precision_gives_a_finite_student(name: str) -> None:
    task, _ = distilled(name, precision="bf16")
    for tensor in task.student.net.state_dict().values():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert tensor.isfinite().all()


# ---- what a method is -----------------------------------------------------------------------------------------------


def without(task: Task, need: Need) -> Task:
    """The same task, lacking one thing."""
    c = task.image_shape[0]
    lost: dict[Need, Any] = {
        Need.TEXT: {"text": None},
        Need.WEB: {"web": None},
        Need.REAL: {"real": None},
        Need.sides_of(4): {"image_shape": (c, 10, 10)},
        Need.sides_of(8): {"image_shape": (c, 12, 12)},
    }
    if need is Need.BN:
        task.teacher.norms = []
    elif need is Need.HEAD:
        task.teacher.head_name = None
    elif need is Need.SAME_HEAD:
        task.student.head_name = None
    elif need is Need.STAGES:
        task.student.stage_names = ()
    elif need is Need.GRADIENT:
        task.teacher.passes_gradients = False
    return replace(task, **lost.get(need, {}))


@each
def test_a_missing_need_is_named_before_any_work(name: str) -> None:
    row = SETTINGS[name]
    assert unmet(tiny_task(row), row.method) == []
    for need in row.method.needs():
        with pytest.raises(UserError) as caught:
            run(without(tiny_task(row), need), row.method, row.plan)
        said = str(caught.value)
        assert said.startswith(f"{name} needs {need.what}")
        assert said.count(";") == 1
        assert "\n" not in said


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_a_final_frozen_dataclass_of_plain_values(name: str) -> None:
    kind = METHODS[name]
    method = kind()
    assert kind.__name__ == name
    assert kind.__bases__ == (Method,)
    assert getattr(kind, "__final__", False)
    assert isinstance(kind.default_plan, Plan)
    assert hash(method) == hash(kind())
    hints = get_type_hints(kind)
    for item in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, item.name)
        parts = value if isinstance(value, tuple) else (value,)
        assert all(part is None or isinstance(part, bool | int | float | str) for part in parts), item.name
        choices = [c for c in (hints[item.name], *get_args(hints[item.name])) if "Literal" in str(c)]
        assert not choices or value is None or value in get_args(choices[0]), item.name
        with pytest.raises(FrozenInstanceError):
            setattr(method, item.name, value)
    assert kind.__doc__
    assert all(inspect.getdoc(getattr(kind, verb)) for verb in ("setup", "synthesize", "batch", "loss", "needs"))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_choice_that_does_not_exist_is_refused(name: str) -> None:
    kind = METHODS[name]
    hints = get_type_hints(kind)
    chosen = [item.name for item in dataclasses.fields(kind) if "Literal" in str(hints[item.name])]  # type: ignore[arg-type]
    for field in chosen:
        with pytest.raises(UserError, match=f"{name} needs {field} to be one of .*, got 'nonsense'"):
            kind(**{field: "nonsense"})


def files(folder: Path, pattern: str, *others: str) -> set[str]:
    return {path.stem for path in folder.glob(pattern)} - {"__init__", *others}


def test_methods_files_pages_cards_and_settings_are_the_same_list() -> None:
    where = {Path(inspect.getfile(kind)).stem for kind in METHODS.values()}
    assert where == files(SOURCE, "*.py")
    assert where == files(HERE / "pages", "*.py")
    assert set(METHODS) == set(SETTINGS)
    assert {row.page for row in SETTINGS.values()} == where
    assert all(type(row.method) is METHODS[name] for name, row in SETTINGS.items())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lr": 0.0}, "lr above 0 and finite, got 0.0"),
        ({"lr": float("inf")}, "lr above 0 and finite, got inf"),
        ({"lr": float("nan")}, "lr above 0 and finite, got nan"),
        ({"temperature": 0.0}, "temperature above 0 and finite, got 0.0"),
        ({"temperature": -4.0}, "temperature above 0 and finite, got -4.0"),
        ({"momentum": 2.0}, "momentum from 0 to 1, got 2.0"),
        ({"pad": -3}, "pad of at least 0, got -3"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"betas": (0.5, float("nan"))}, "betas"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_in_every_method_that_has_them(values: dict[str, Any], says: str) -> None:
    (name,) = values
    adam = tuple[float, float]  # STTS's betas are another thing
    kinds = [kind for kind in METHODS.values() if get_type_hints(kind).get(name) in (int, float, adam)]
    assert kinds
    for kind in kinds:
        with pytest.raises(UserError, match=f"^{kind.__name__} needs .*{says}.*; "):
            kind(**values)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("D3K", {"bn_eps": -1.0}),
        ("D3K", {"bn_cap": 0.0}),
        ("SpaceshipNet", {"mix_alpha": 0.0}),
        ("KD3", {"v_th": 1.5}),
        ("KD3", {"label_temperature": 0.0}),
        ("KD3", {"delta": 0.0}),
        ("KD3", {"reference_batch": 0}),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_by_their_method(method: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{method} needs {next(iter(values))} .*, got .*; "):
        METHODS[method](**values)


def test_every_method_has_a_card() -> None:
    where = {Path(inspect.getfile(kind)).stem for kind in METHODS.values()}
    cards = files(HERE.parent / "docs" / "methods", "*.md", "index", "template")
    assert cards == where


def test_every_method_has_a_recipe() -> None:
    from dfkd.recipes.table import ROWS

    assert {row.method for row in ROWS} == set(METHODS)


def test_settings_see_all_rounds_and_stand_alone() -> None:
    for name, row in SETTINGS.items():
        assert row.plan.total >= 3, name
        assert isinstance(tiny_task(row).student.net, nn.Module)


CHECKED = """
import sys
sys.path.insert(0, {here!r})
from jaxtyping import install_import_hook
from types import ModuleType
from beartype import BeartypeConf, beartype
sys.modules["checker"] = checker = ModuleType("checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
rooms = ["dfkd.losses", "dfkd.ops", "dfkd.engine", "dfkd.methods", "dfkd.data", "dfkd.nets.generators"]
with install_import_hook(rooms, "checker.check"):
    from settings import SETTINGS, tiny_task
    from dfkd.engine.driver import run
    for row in SETTINGS.values():
        run(tiny_task(row), row.method, row.plan)
print("checked", len(SETTINGS))
"""


def test_shapes_are_what_the_annotations_say() -> None:
    # In a process of its own: wrapped functions cannot be compiled as one graph, which other tests demand.
    script = CHECKED.format(here=str(HERE))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"checked {len(SETTINGS)}"
