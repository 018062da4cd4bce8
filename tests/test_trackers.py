"""Trackers in their offline modes hold what the metrics of the run hold."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dfkd
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
    content = file.read_bytes()
    for part in (b"seconds/student", b"test/accuracy", b"NAYER", b"wrn10-1"):
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
