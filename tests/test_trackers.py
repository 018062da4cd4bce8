"""Trackers in their offline modes hold what the metrics of the run hold."""

import importlib.util
import json
import math
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import dfkd
from dfkd.engine.records import Agreement, Estimate
from dfkd.report import trackers
from dfkd.report.files import read_run
from dfkd.report.trackers import MLflow, WandB, check_trackers

pytestmark = pytest.mark.filterwarnings("ignore")


def skipped(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"the extra {name} is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def play(observer: Any, run: Path, rounds: slice) -> None:
    """A finished run, told to an observer as the driver tells it."""
    stored = read_run(run)
    assert stored.result is not None
    observer.started(stored.info)
    for record in stored.rounds[rounds]:
        observer.rounded(record)
    observer.finished(stored.result)


def numbers(run: Path) -> Iterator[tuple[int, str, float]]:
    for record in read_run(run).rounds:
        yield from ((record.round + 1, name, value) for name, value in record.metrics.items() if value == value)


@skipped("wandb")
@pytest.mark.slow
def test_wandb_offline(finished_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    play(WandB(folder), finished_run, slice(None))
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    parts, deadline = (b"seconds/student", b"test/accuracy", b"NAYER", b"wrn10-1"), time.monotonic() + 60
    while not all(part in file.read_bytes() for part in parts) and time.monotonic() < deadline:
        time.sleep(0.2)  # wandb's own process writes the file, now and then after finish() has returned
    content = file.read_bytes()
    for part in parts:
        assert part in content


@skipped("mlflow")
@pytest.mark.slow
def test_mlflow_in_a_database_and_a_resume_goes_on(
    finished_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    play(MLflow(folder), finished_run, slice(0, 1))
    play(MLflow(folder), finished_run, slice(1, None))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    place = client.get_experiment_by_name("dfkd")
    assert place is not None
    (run,) = client.search_runs([place.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "NAYER"
    assert run.data.params["student.name"] == "wrn10-1"
    for step, name, value in numbers(finished_run):
        logged = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        assert logged[step] == pytest.approx(value)
    final = json.loads((finished_run / "run.json").read_text())["result"]["final"]
    assert run.data.metrics["test/accuracy"] == pytest.approx(final["accuracy"])


@dataclass
class Server:
    """Where the stand-ins of both packages write; ``works`` metrics arrive, then the server is gone."""

    works: float = math.inf
    attempts: int = 0
    logged: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)  # of the runs that were begun or gone on with
    state: str | int = "none"

    def log(self, name: str) -> None:
        self.attempts += 1
        if self.attempts > self.works:
            raise ConnectionError("connection refused\nand more")
        self.logged.append(name)

    def log_all(self, numbers: Iterable[str], step: int) -> None:
        for name in numbers:
            self.log(name)

    def end(self, state: str | int) -> None:
        assert self.state == "RUNNING"
        self.state = state

    def client(self, tracking_uri: str) -> SimpleNamespace:
        def open_run(identity: str) -> SimpleNamespace:
            self.state = "RUNNING"
            self.identities.append(identity)
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def search_runs(places: list[str], query: str) -> list[SimpleNamespace]:
            identity = query.split("'")[1]
            return [open_run(identity)] if identity in self.identities else []

        return SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: "1",
            search_runs=search_runs,
            create_run=lambda place, run_name, tags: open_run(tags["dfkd.run"]),
            update_run=lambda run, status: None,
            log_param=lambda *_: None,
            log_metric=lambda run, name, value, step: self.log(name),
            set_terminated=lambda run, state: self.end(state),
        )

    def wandb_run(self, id: str, **_: Any) -> SimpleNamespace:
        self.state = "RUNNING"
        self.identities.append(id)
        return SimpleNamespace(
            log=self.log_all,
            summary={},
            finish=lambda exit_code: self.end(exit_code),
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    for name, entries in (("mlflow", {"MlflowClient": server.client}), ("wandb", {"init": server.wandb_run})):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    return server


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Any) -> Any:
        return self.fc(x.flatten(1))


class End(dfkd.Observer):
    """Ends a run after its second round, and notes how it was told of the end."""

    def __init__(self, how: BaseException | str | None) -> None:
        self.how = how
        self.told: list[str] = []

    def rounded(self, record: dfkd.RoundRecord) -> str | None:
        if isinstance(self.how, BaseException) and record.round == 1:
            raise self.how
        return self.how if isinstance(self.how, str) else None

    def ended(self, status: str) -> None:
        self.told.append(status)


def distil(out: Path, *observers: Any, **settings: Any) -> dfkd.Distilled:
    return dfkd.distill(
        Net(), Net(), dfkd.NoiseInput(), plan=dfkd.Plan(rounds=3, steps=1, batch_size=4), image_size=(1, 8, 8),
        mean=(0.3,), std=(0.4,), out=out, observers=observers, progress=False, figures=False, export=False,
        estimate=False, device="cpu", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_run_outlives_its_tracker(name: str, server: Server, tmp_path: Path) -> None:
    server.works = 3
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        distil(tmp_path / "run", track=name)
    sentences = [str(w.message) for w in told if "tracking" in str(w.message)]
    assert sentences == [
        f"tracking with {name} failed (connection refused) and the run goes on; rounds that are missing there are in "
        "metrics.jsonl"
    ]
    assert len(server.logged) == 3
    stored = read_run(tmp_path / "run")
    assert (stored.status, len(stored.rounds)) == ("finished", 3)
    assert server.state == {"mlflow": "FINISHED", "wandb": 0}[name]


def test_a_tracker_that_makes_the_run_wait_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [100.0], []
    monkeypatch.setattr(trackers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    link = trackers._Link("mlflow")

    def wait_and_fail() -> None:
        calls.append(now[0])
        now[0] += 60.0
        raise ConnectionError

    for _ in range(30):
        link.send(wait_and_fail)
        now[0] += 30.0
    assert calls == [100.0, 760.0]  # from 160 on, ten times 60 seconds


@pytest.mark.parametrize(
    ("how", "status", "state", "code"),
    [
        (None, "finished", "FINISHED", 0),
        ("enough", "stopped", "FINISHED", 0),
        (KeyboardInterrupt(), "interrupted", "KILLED", 255),
        (RuntimeError("broken"), "failed", "FAILED", 1),
    ],
)
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_trackers_are_told_how_the_run_ended(
    how: Any, status: str, state: str, code: int, name: str, server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    end, before = End(how), set(threading.enumerate())
    with suppress(KeyboardInterrupt, RuntimeError):
        distil(tmp_path / "run", end, track=name, tensorboard=True)
    assert read_run(tmp_path / "run").status == status
    assert end.told == [status]
    assert server.state == (state if name == "mlflow" else code)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_resume_goes_on_and_a_new_run_in_the_same_folder_is_another(
    name: str, server: Server, tmp_path: Path
) -> None:
    for _ in range(2):
        torch.manual_seed(0)
        with suppress(KeyboardInterrupt):
            distil(tmp_path / "run", End(KeyboardInterrupt()), track=name)
        torch.manual_seed(0)
        distil(tmp_path / "run", track=name, resume=True)
        shutil.rmtree(tmp_path / "run")
    first, again, other, again_other = server.identities
    assert first == again != other == again_other


def test_a_run_from_before_identities_goes_on_under_that_of_its_path(
    server: Server, finished_run: Path, folder: Path
) -> None:
    info = replace(read_run(finished_run).info, identity="")
    for place in (folder, folder, folder.parent):
        WandB(place).started(info)
    first, again, other = server.identities
    assert first == again != other


class Fails(dfkd.Observer):
    def ended(self, status: str) -> None:
        raise OSError("no space")


class Plain:
    """Has the four older hooks, as an object that is no Observer may."""

    started = finished = stepped = rounded = lambda *_: None


def test_every_observer_is_told_of_the_end_whatever_another_one_raises(tmp_path: Path) -> None:
    end = End(None)
    with pytest.raises(OSError, match="no space"):
        distil(tmp_path / "a", Fails(), Plain(), end)
    assert end.told == ["finished"]
    end = End(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        distil(tmp_path / "b", Fails(), Plain(), end)
    assert end.told == ["failed"]


class Refuses(dfkd.Observer):
    def started(self, info: dfkd.RunInfo) -> None:
        raise KeyboardInterrupt


def test_a_run_that_ends_before_its_first_round_leaves_no_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "run", Refuses(), tensorboard=True)
    assert list((tmp_path / "run").iterdir()) == []
    assert set(threading.enumerate()) <= before


def test_scores_that_are_not_finite_are_left_out(server: Server, finished_run: Path, folder: Path) -> None:
    stored = read_run(finished_run)
    record = stored.rounds[-1]
    assert record.evaluation is not None
    observer = MLflow(folder)
    observer.started(stored.info)
    observer.rounded(replace(record, evaluation=replace(record.evaluation, loss=math.nan)))
    assert "test/accuracy" in server.logged
    assert "test/loss" not in server.logged


@pytest.mark.parametrize("tracker", [MLflow, WandB])
def test_what_stands_for_test_images_is_logged_too(
    tracker: type[MLflow] | type[WandB], server: Server, finished_run: Path, folder: Path
) -> None:
    stored = read_run(finished_run)
    held = Agreement(0.875, 0.8, 0.93, 128, 0.1)
    estimate = Estimate({"own": held, "inverted": held}, {"confidence": 0.5, "within": math.nan}, 0.1)
    observer = tracker(folder)
    observer.started(stored.info)
    observer.rounded(replace(stored.rounds[-1], evaluation=None, estimate=estimate))
    names = {name for name in server.logged if name.startswith(("heldout/", "signals/"))}
    assert names == {"heldout/own/agreement", "heldout/inverted/agreement", "signals/confidence"}


@pytest.mark.parametrize("name", ["tensorboard", "neptune"])
def test_what_is_no_tracker_is_refused(name: str, tmp_path: Path) -> None:
    sentence = f"^track needs wandb or mlflow, got '{name}'; choose one of them, or none$"
    with pytest.raises(dfkd.UserError, match=sentence):
        check_trackers([name])
    with pytest.raises(dfkd.UserError, match=f"^watch needs track to be one of none, wandb, mlflow, got '{name}'"):
        distil(tmp_path / "run", watch=dfkd.Watching(track=name, export=False))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_told_before_any_work(
    digits_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    names = ("wandb", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else find(name, *a))
    for name in names:
        with pytest.raises(
            dfkd.UserError, match=f"tracking with {name} needs its package, got none installed; run `pip"
        ):
            check_trackers([name])
        with pytest.raises(dfkd.UserError, match="needs its package"):
            dfkd.distill(
                digits_teacher, dfkd.build("wrn10-1", 10, 1), image_size=(1, 8, 8), mean=(0.3,), std=(0.4,),
                track=name, out=tmp_path / "run", progress=False,
            )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_tracking_needs_a_folder(digits_teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dfkd.UserError, match="track needs a run folder"):
        dfkd.distill(
            digits_teacher, dfkd.build("wrn10-1", 10, 1), image_size=(1, 8, 8), mean=(0.3,), std=(0.4,),
            track="wandb", progress=False,
        )  # fmt: skip
