"""Saves that are whole or absent: ring wrap-around, kills between file operations, full disks, hostile files."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.data.pool import Pool
from dfkd.engine.checkpoint import Checkpoint, write_aside
from dfkd.engine.core import Cache, State
from dfkd.engine.declared import check_declared, check_grown, parts_of
from dfkd.engine.states import pack, pools_of, unpack
from dfkd.errors import UserError
from dfkd.types import Moments

COLUMNS = {"images": ((1, 2, 2), torch.uint8), "labels": ((), torch.int64)}
CPU = torch.device("cpu")


def add(pool: Pool, n: int) -> None:
    number = torch.arange(pool.added, pool.added + n)
    pool.add(images=(number % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels=number)


def contents(pool: Pool) -> tuple[int, dict[str, list[Any]]]:
    return pool.added, {name: rows[: len(pool)].tolist() for name, rows in pool.rows.items()}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), min_size=1, max_size=7))
def test_a_ring_comes_back_at_the_same_places(capacity: int, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, saver = Pool(capacity, COLUMNS), Checkpoint(folder)
        for rounds, n in enumerate(sizes, start=1):
            add(pool, n)
            saver.save(rounds, {"n": n}, {"pool": pool})
            again = Pool(capacity, COLUMNS)
            payload = Checkpoint(folder).load({"pool": again})
            assert payload["n"] == n
            assert contents(again) == contents(pool)
            rows = sum(_rows(path) for path in folder.glob("pool-*"))
            assert rows <= 3 * capacity + 2 * max(sizes)  # of two saves: what left the ring is not kept for long


def _rows(path: Path) -> int:
    return len(torch.load(path, weights_only=True)["labels"])


def test_a_resumed_run_goes_on_saving_where_the_first_stopped(tmp_path: Path) -> None:
    pool, saver = Pool(10, COLUMNS), Checkpoint(tmp_path)
    add(pool, 4)
    saver.save(1, {}, {"pool": pool})
    again, saver = Pool(10, COLUMNS), Checkpoint(tmp_path)
    saver.load({"pool": again})
    for rounds in (2, 3):
        add(again, 4)
        add(pool, 4)
        saver.save(rounds, {}, {"pool": again})
    names = sorted(path.name for path in tmp_path.glob("pool-*"))
    assert names == ["pool-0-pool-0-4.pt", "pool-0-pool-4-8.pt", "pool-0-pool-8-12.pt"]
    last = Pool(10, COLUMNS)
    Checkpoint(tmp_path).load({"pool": last})
    assert contents(last) == contents(pool)


def test_a_save_without_new_rows_writes_no_rows(tmp_path: Path) -> None:
    pool, saver = Pool(10, COLUMNS), Checkpoint(tmp_path)
    saver.save(1, {}, {"pool": pool})
    assert list(tmp_path.glob("pool-*")) == []
    add(pool, 3)
    saver.save(2, {}, {"pool": pool})
    before = next(tmp_path.glob("pool-*")).stat().st_mtime_ns
    saver.save(3, {}, {"pool": pool})
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("pool-*")] == [before]
    assert [path.name for path in sorted(tmp_path.glob("state-*"))] == ["state-0-2.pt", "state-0-3.pt"]


# ---- cut off --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing may clean up after it."""


def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], int]:
    """Every file operation from number ``after`` on raises; returns how many were asked for."""
    count = 0

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > after:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    wrap(Path, "replace")
    wrap(Path, "unlink")
    wrap(os, "fsync")
    wrap(torch, "save")
    return lambda: count


def test_a_kill_between_any_two_file_operations_leaves_a_whole_save(tmp_path: Path) -> None:
    after, finished = 0, False
    seen = set()
    while not finished:
        folder = tmp_path / str(after)
        pool, saver = Pool(6, COLUMNS), Checkpoint(folder)
        wanted = {}
        for rounds in (1, 2):
            add(pool, 4)
            saver.save(rounds, {"rounds": rounds}, {"pool": pool})
            wanted[rounds] = contents(pool)
        add(pool, 4)
        wanted[3] = contents(pool)
        with pytest.MonkeyPatch.context() as patch:
            asked = dying(patch, after)
            with suppress(Killed):
                saver.save(3, {"rounds": 3}, {"pool": pool})
            finished = asked() <= after
        again, reader = Pool(6, COLUMNS), Checkpoint(folder)
        found = reader.load({"pool": again})["rounds"]
        seen.add(found)
        assert found in (2, 3)
        assert contents(again) == wanted[found]
        for rounds in range(found + 1, 5):  # and the run goes on as if nothing had happened
            add(again, 4)
            reader.save(rounds, {"rounds": rounds}, {"pool": again})
        last = Pool(6, COLUMNS)
        assert Checkpoint(folder).load({"pool": last})["rounds"] == 4
        assert last.newest(6)["labels"].tolist() == list(range(10, 16))
        assert list(folder.glob(".*tmp")) == []
        after += 1
    assert seen == {2, 3}
    assert after > 8


def test_a_full_disk_leaves_the_last_save_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, saver = Pool(6, COLUMNS), Checkpoint(tmp_path)
    add(pool, 4)
    saver.save(1, {"rounds": 1}, {"pool": pool})
    whole = contents(pool)
    add(pool, 1)
    real = torch.save

    def full(thing: object, path: Path) -> None:
        real(thing, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"got 'No space left on device'; free space .* earlier saves are whole$"):
        saver.save(2, {"rounds": 2}, {"pool": pool})
    monkeypatch.undo()
    again = Pool(6, COLUMNS)
    assert Checkpoint(tmp_path).load({"pool": again})["rounds"] == 1
    assert contents(again) == whole
    assert list(tmp_path.glob(".*tmp")) == []
    saver.save(2, {"rounds": 2}, {"pool": pool})
    assert Checkpoint(tmp_path).load({"pool": Pool(6, COLUMNS)})["rounds"] == 2


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from dfkd.cli.do_synthesize import _write_file, _write_folder
from dfkd.data.pool import Pool
from dfkd.engine.checkpoint import Checkpoint, write_aside
from dfkd.errors import UserError
from dfkd.nets.zoo import build
from dfkd.teacher import TeachResult, save_teacher
from dfkd.teacher_plan import TeachPlan

def refused(work):
    for size in (0, 1000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            work()
            print("written")
        except UserError as error:
            print(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

folder, big = Path(sys.argv[1]), torch.zeros(100_000)
images, labels = torch.randint(256, (3, 3, 120, 120), dtype=torch.uint8), torch.arange(3)
pool = Pool(200, {"images": ((1, 16, 16), torch.uint8)})
pool.add(images=torch.zeros(200, 1, 16, 16, dtype=torch.uint8))
shape = {"image_shape": (1, 8, 8), "names": (), "classes": 10, "mean": (0.0,), "std": (1.0,)}
taught = TeachResult(build("wrn16-1", 10, 1).net, (), None, 1.0)
refused(lambda: Checkpoint(folder).save(1, {"x": big}, {}))
refused(lambda: Checkpoint(folder).save(1, {}, {"pool": pool}))
refused(lambda: write_aside(folder / "x.safetensors", lambda path: save_file({"x": big}, path)))
refused(lambda: save_teacher(folder, taught, spec={}, plan=TeachPlan(), seed=0, **shape))
refused(lambda: _write_file(folder, images, labels, ()))
refused(lambda: _write_folder(folder / "png", images, labels, ()))
"""


def test_a_file_system_that_takes_no_more_is_named(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    told = child.stdout.splitlines()
    assert len(told) == 18
    for line in told:
        assert " needs to be written, got " in line or "synthesize needs to write" in line, told
        assert "no space" in line or "File too large" in line, told
        assert "; free space" in line, told
    assert list(tmp_path.iterdir()) == []


def test_a_writer_of_torch_on_a_full_disk_is_named_too(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0")

    with pytest.raises(UserError, match="x needs to be written, got 'no space, or a write that failed'; free space"):
        write_aside(tmp_path / "x", broken)

    for kind in (RuntimeError, SafetensorError):

        def bug(path: Path, kind: type[Exception] = kind) -> None:
            raise kind("shapes of this file differ")

        with pytest.raises(kind, match="shapes of this file differ"):
            write_aside(tmp_path / "x", bug)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_are_as_readable_as_other_files(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_aside(tmp_path / "x", lambda path: save_file({"x": torch.zeros(1)}, path))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="needs to be written, got"):
        Checkpoint(tmp_path / "file").save(1, {}, {})


# ---- damaged, hostile, foreign --------------------------------------------------------------------------------------


def a_save(folder: Path) -> Path:
    pool, saver = Pool(6, COLUMNS), Checkpoint(folder)
    add(pool, 4)
    saver.save(3, {"rounds": 3}, {"pool": pool})
    return folder / "state-0-3.pt"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def hostile(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.parent / "pwned"),)

    path.write_bytes(pickle.dumps({"segments": Evil()}))


def hostile_zip(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.parent / "pwned"),)

    torch.save({"segments": {}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(Evil(), 2) if name.endswith("data.pkl") else data)


def other_content(path: Path) -> None:
    torch.save([1, 2, 3], path)


def no_segments(path: Path) -> None:
    torch.save({"rounds": 3}, path)


def odd_segments(path: Path) -> None:
    torch.save({"segments": {"pool": [[0]]}}, path)


def unlink(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage", [truncate, empty, hostile, hostile_zip, other_content, no_segments, odd_segments, unlink]
)
@pytest.mark.parametrize("which", ["state", "pool"])
def test_a_damaged_file_is_named_and_runs_nothing(damage: Callable[[Path], None], which: str, tmp_path: Path) -> None:
    state = a_save(tmp_path)
    path = state if which == "state" else next(tmp_path.glob("pool-*"))
    damage(path)
    with pytest.raises(UserError, match=r"resume needs a readable checkpoint, got .*; start again in a new folder"):
        Checkpoint(tmp_path).load({"pool": Pool(6, COLUMNS)})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rounds": "x", "world": 1}', "\x00\xff"])
def test_a_damaged_commit_is_named(text: str, tmp_path: Path) -> None:
    a_save(tmp_path)
    (tmp_path / "commit.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"resume needs a readable checkpoint, got .*commit\.json"):
        Checkpoint(tmp_path).load({"pool": Pool(6, COLUMNS)})


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    a_save(tmp_path)
    with pytest.raises(UserError, match="resume needs the 1 processes the run began with, got 2; start as many"):
        Checkpoint(tmp_path, rank=0, world=2).load({"pool": Pool(6, COLUMNS)})


def test_every_process_has_its_own_files(tmp_path: Path) -> None:
    pools = [Pool(6, COLUMNS) for _ in range(2)]
    for rank in (1, 0):  # as if a barrier were between: process 0 commits last
        add(pools[rank], 3 + rank)
        Checkpoint(tmp_path, rank, 2).save(1, {"rank": rank}, {"pool": pools[rank]})
    commit = json.loads((tmp_path / "commit.json").read_text())
    assert (commit["rounds"], commit["world"]) == (1, 2)
    states = [path for path in sorted(tmp_path.glob("*.pt")) if path.name in commit["files"]]
    assert {path.name for path in states} == commit["files"].keys() >= {"state-0-1.pt", "state-1-1.pt"}
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in states] == [
        commit["files"][path.name] for path in states
    ]
    for rank in (0, 1):
        again = Pool(6, COLUMNS)
        assert Checkpoint(tmp_path, rank, 2).load({"pool": again})["rank"] == rank
        assert contents(again) == contents(pools[rank])


# ---- packing --------------------------------------------------------------------------------------------------------


@dataclass
class Everything(State):
    """One field of every kind."""

    pool: Pool
    net: nn.Module
    optimizer: torch.optim.Optimizer
    pixels: nn.Parameter
    tensor: Tensor
    half: Tensor
    number: int
    share: float
    word: str
    nothing: Tensor | None
    moments: list[Moments]
    mixed: dict[str, Any]
    cache: Cache[Tensor] = field(default_factory=Cache)


def a_state(seed: int) -> Everything:
    torch.manual_seed(seed)
    pixels = nn.Parameter(torch.randn(2, 3))
    optimizer = torch.optim.Adam([pixels], lr=0.1)
    for _ in range(seed):
        pixels.square().sum().backward()
        optimizer.step()
    return Everything(
        Pool(3, COLUMNS),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        optimizer,
        pixels,
        torch.randn(4),
        torch.randn(3, dtype=torch.float16),
        seed,
        seed / 3,
        f"word {seed}",
        torch.ones(seed) if seed % 2 else None,
        [Moments(torch.randn(2), torch.rand(2)) for _ in range(seed)],
        {
            "list": [torch.randn(2), (1, None, "x")],
            "moments": {"dict": {3: torch.arange(seed)}},
            "flag": bool(seed % 2),
        },
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (2, 5), (4, 2)])
def test_every_kind_of_field_comes_back(old: int, new: int, tmp_path: Path) -> None:
    saved, into = a_state(old), a_state(new)
    torch.save(pack(saved), tmp_path / "x.pt")
    into.cache.value = torch.ones(1)
    held, module = into.pixels, into.net
    unpack(torch.load(tmp_path / "x.pt", weights_only=True), into, CPU)
    assert same(pack(into), pack(saved))
    assert into.pixels is held  # the optimiser still moves it
    assert into.net is module
    assert isinstance(into.moments[0], Moments)
    assert same(into.mixed, saved.mixed)
    assert pools_of(into).keys() == {"pool"}
    for state in (saved, into):
        state.pixels.grad = torch.ones(2, 3)
        state.optimizer.step()
    assert torch.equal(into.pixels, saved.pixels)


def test_what_cannot_be_saved_is_a_bug_and_says_so() -> None:
    with pytest.raises(TypeError, match="fields that can be saved, got object"):
        pack({"x": object()})


@dataclass
class Nested(State):
    """Pools in every place."""

    inner: Everything
    listed: list[Pool]
    pool: Pool


def nested(seed: int) -> Nested:
    inner = a_state(seed)
    return Nested(inner, [Pool(4, COLUMNS), Pool(5, COLUMNS)], inner.pool)


def test_pools_are_found_wherever_they_are(tmp_path: Path) -> None:
    saved, into = nested(1), nested(2)
    assert pools_of(saved).keys() == {"pool", "listed.0", "listed.1"}  # the inner state's is the outer one
    for n, pool in enumerate(pools_of(saved).values(), start=2):
        add(pool, n)
    Checkpoint(tmp_path).save(1, {"state": pack(saved)}, pools_of(saved))
    payload = Checkpoint(tmp_path).load(pools_of(into))
    unpack(payload["state"], into, CPU)
    for a, b in zip(pools_of(saved).values(), pools_of(into).values(), strict=True):
        assert contents(a) == contents(b)
    assert into.inner.pool is into.pool


def test_a_field_that_was_renamed_is_read_from_an_older_checkpoint() -> None:
    saved = pack(State(fixed_parameters=("head.weight",)))
    saved["fields"]["held"] = saved["fields"].pop("fixed_parameters")
    state = State()
    unpack(saved, state, torch.device("cpu"))
    assert state.fixed_parameters == ("head.weight",)


def test_packing_copies() -> None:
    x = torch.zeros(2)
    packed = pack([x])
    x.fill_(1)
    assert packed["list"][0].tolist() == [0, 0]


class Pair(NamedTuple):
    """A named tuple that no module of ours knows."""

    left: Tensor
    right: int


@dataclass(frozen=True)
class Best:
    """A frozen dataclass within a state."""

    score: float
    pairs: tuple[Pair, ...] = ()


@dataclass
class Later(State):
    """Fields that are filled after setup."""

    best: Best | None = None
    newest: Pair | None = None
    pairs: list[Pair] = field(default_factory=list)
    codes: list[nn.Parameter] = field(default_factory=list)
    by_class: dict[int, Best] = field(default_factory=dict)


def test_what_came_after_setup_comes_back_with_its_type(tmp_path: Path) -> None:
    best = Best(0.5, (Pair(torch.ones(2), 3),))
    saved = Later(best, Pair(torch.zeros(1), 1), [Pair(torch.rand(3), 2)], [nn.Parameter(torch.rand(2))], {7: best})
    Checkpoint(tmp_path).save(1, {"state": pack(saved)}, {})
    into = Later(codes=[nn.Parameter(torch.zeros(5), requires_grad=False)])
    unpack(Checkpoint(tmp_path).load({})["state"], into, CPU)
    assert isinstance(into.best, Best)
    assert isinstance(into.best.pairs[0], Pair)
    assert isinstance(into.newest, Pair)
    assert isinstance(into.pairs[0], Pair)
    assert isinstance(into.codes[0], nn.Parameter)
    assert isinstance(into.by_class[7], Best)
    assert same(pack(into), pack(saved))
    emptied = Later()
    unpack(pack(emptied), into, CPU)
    assert same(pack(into), pack(emptied))


def test_the_format_before_still_loads() -> None:
    old: dict[str, Any] = {
        "joint": {},
        "held": {"tuple": []},
        "best": None,
        "newest": {"tuple": [torch.ones(2), 4]},
        "pairs": None,
    }
    old |= {"pairs": {"list": [{"tuple": [torch.ones(1), 1]}]}, "codes": {"list": []}, "by_class": {"dict": {}}}
    into = unpack(old, Later(newest=Pair(torch.zeros(2), 0), pairs=[Pair(torch.zeros(1), 0)]), CPU)
    assert isinstance(into.newest, Pair)
    assert into.newest.right == 4
    assert isinstance(into.pairs[0], Pair)
    assert unpack({"moments": [torch.ones(1), torch.zeros(1)]}, None, CPU) == Moments(torch.ones(1), torch.zeros(1))


@dataclass
class Growing(State):
    nets: list[nn.Module] = field(default_factory=list)


@dataclass
class Late(State):
    optimizer: torch.optim.Optimizer | None = None


@dataclass
class Odd(State):
    seen: set[int] = field(default_factory=set)


@dataclass
class Outer(State):
    inner: Late = field(default_factory=Late)


@dataclass
class Mapped(State):
    parts: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (Growing(), r"Growing\.nets needs its modules and optimisers at setup, got a list of them, which may grow"),
        (Late(), r"Late\.optimizer needs its modules .*, got None in the place of Optimizer, which a resume"),
        (Outer(), r"Outer\.inner\.optimizer needs its modules and optimisers at setup"),
        (Odd(), r"Odd needs fields of tensors.* got set in Odd\.seen; declare it otherwise, or as a Cache"),
        (Mapped(parts={"score": np.float64(1)}), r"got float64 in Mapped\.parts\.score; declare"),
        (Mapped(parts={"keys": {(1, 2): 3}}), r"got dict in Mapped\.parts\.keys; declare"),
    ],
)
def test_a_field_that_no_resume_could_restore_is_refused_at_setup_by_name(state: State, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_declared(state)
    check_declared(a_state(1))
    check_declared(Later())


def test_what_grew_since_setup_is_refused_before_it_is_saved() -> None:
    state = Mapped(parts={"heads": nn.ModuleList([nn.Linear(2, 2)])})
    before = parts_of(state)
    check_grown(before, state)
    state.parts["heads"].append(nn.Linear(2, 2))
    with pytest.raises(
        UserError, match=r"^Mapped\.parts\.heads needs to be the module that setup made, got one that grew"
    ):
        check_grown(before, state)
    state = Mapped()
    before = parts_of(state)
    state.parts["adam"] = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    with pytest.raises(
        UserError, match=r"^Mapped\.parts\.adam needs to be the optimiser that setup made, got one that came"
    ):
        check_grown(before, state)


# ---- rot ------------------------------------------------------------------------------------------------------------


def two_saves(folder: Path) -> list[tuple[int, dict[str, list[Any]]]]:
    """Two saves of a small pool; returns what the pool held at each."""
    pool, saver, found = Pool(6, COLUMNS), Checkpoint(folder), []
    for rounds in (1, 2):
        add(pool, 4)
        saver.save(rounds, {"rounds": rounds, "weights": torch.arange(3)}, {"pool": pool})
        found.append(contents(pool))
    return found


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("places", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(places: int, tmp_path: Path) -> None:
    """Single bits of every file of a checkpoint: the newest save is taken whole, or the one before, or none."""
    wanted = two_saves(tmp_path)
    files = sorted(path for path in tmp_path.iterdir())
    outcomes: Counter[str] = Counter()
    for file in files:
        whole = file.read_bytes()
        for bit in {8 * len(whole) * i // places + i % 8 for i in range(places)}:
            flip(file, min(bit, 8 * len(whole) - 1))
            pool, reader = Pool(6, COLUMNS), Checkpoint(tmp_path)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    rounds = reader.load({"pool": pool})["rounds"]
                    assert contents(pool) == wanted[rounds - 1]
                    assert (rounds == 1) == bool(said) == bool(reader.notes), (file.name, bit)
                    outcomes[f"{file.name} {rounds}"] += 1
                except UserError as error:
                    outcomes[
                        f"{file.name} {'refused' if '; start again in a new folder' in str(error) else error}"
                    ] += 1
            file.write_bytes(whole)
    assert sum(outcomes.values()) >= 0.9 * places * len(files)
    # What only one save uses costs that save; the rows that both share cost both.
    assert {key for key in outcomes if not key.startswith("commit.json 2")} == {
        "commit.json 1",
        "state-0-2.pt 1",
        "pool-0-pool-4-8.pt 1",
        "commit-before.json 2",
        "state-0-1.pt 2",
        "pool-0-pool-0-4.pt refused",
    }


def test_a_run_goes_on_from_the_save_before(tmp_path: Path) -> None:
    wanted = two_saves(tmp_path)
    flip(tmp_path / "state-0-2.pt", 4000)
    pool, saver = Pool(6, COLUMNS), Checkpoint(tmp_path)
    with pytest.warns(UserWarning, match=r"newest save is damaged \(state-0-2\.pt: its SHA-256 is another\); the one"):
        assert saver.rounds() == 1
    saver.load({"pool": pool})
    add(pool, 4)
    assert contents(pool) == wanted[1]
    saver.save(2, {"rounds": 2}, {"pool": pool})
    again = Pool(6, COLUMNS)
    assert Checkpoint(tmp_path).load({"pool": again})["rounds"] == 2
    assert contents(again) == wanted[1]
    flip(tmp_path / "commit.json", 100)
    with pytest.warns(UserWarning, match=r"damaged \(commit\.json: "):
        assert Checkpoint(tmp_path).rounds() == 1
    flip(tmp_path / "state-0-1.pt", 4000)
    with pytest.raises(
        UserError, match=r"\(commit\.json: .*, and the save before it is damaged too: state-0-1\.pt: its"
    ):
        Checkpoint(tmp_path).rounds()


def test_a_save_before_there_were_sums_still_loads(tmp_path: Path) -> None:
    wanted = two_saves(tmp_path)
    (tmp_path / "commit-before.json").unlink()
    (tmp_path / "commit.json").write_text('{"rounds": 2, "world": 1}')
    pool, saver = Pool(6, COLUMNS), Checkpoint(tmp_path)
    assert saver.load({"pool": pool})["rounds"] == 2
    assert contents(pool) == wanted[1]
    add(pool, 1)
    saver.save(3, {"rounds": 3}, {"pool": pool})
    assert Checkpoint(tmp_path).newest().files is not None
    flip(tmp_path / "state-0-3.pt", 4000)
    with pytest.warns(UserWarning, match="newest save is damaged"):
        assert Checkpoint(tmp_path).load({"pool": Pool(6, COLUMNS)})["rounds"] == 2
