"""Experiment trackers: Weights & Biases and MLflow, one observer each. TensorBoard is in ``dfkd.report.observers``.

Both read where and how from their own environment (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``). Numbers that are
not finite are left out. A resumed run goes on under the same identity, which is that of its folder.
"""

import hashlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dfkd.engine.records import Observer, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.report.files import plain
from dfkd.report.summary import finished_rounds

__all__ = ["MLflow", "WandB", "check_trackers"]

PROJECT = "dfkd"


def check_trackers(names: list[str]) -> None:
    """Refuse, before any work, trackers whose package is missing.

    Raises:
        UserError: with the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking with {name} needs its package, got none installed; run `{install_extra(name)}`")


class WandB(Observer):
    """Weights & Biases (extra ``wandb``).

    Args:
        folder: of the run; the tracker's files go into its ``wandb``.
        project: its name there.
    """

    def __init__(self, folder: Path, project: str = PROJECT) -> None:
        self.folder, self.project = folder, project
        self._run: Any = None

    def started(self, info: RunInfo) -> None:
        """Begin, or go on with, the tracker's run; settings and provenance are its config."""
        check_trackers(["wandb"])
        import wandb

        try:
            self._run = wandb.init(
                project=self.project,
                id=_identity(self.folder),
                name=self.folder.name,
                resume="allow",
                dir=str(self.folder),
                config=dict(_flat(_about(info))),
            )
        except Exception as error:  # no key, no network: whatever its library makes of it
            raise UserError(
                f"tracking with wandb needs a login or WANDB_MODE=offline, got {_reason(error)!r}; set one of them"
            ) from error

    def rounded(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        self._run.log(dict(_numbers(record)), step=finished_rounds(record))

    def finished(self, result: RunResult) -> None:
        """Close the tracker's run."""
        if result.final is not None:
            self._run.summary["accuracy"] = result.final.accuracy
        self._run.finish()


class MLflow(Observer):
    """MLflow (extra ``mlflow``): at ``MLFLOW_TRACKING_URI``, or in a database in the run folder.

    Args:
        folder: of the run.
        experiment: its name there.
    """

    def __init__(self, folder: Path, experiment: str = PROJECT) -> None:
        self.folder, self.experiment = folder, experiment
        self._client: Any = None
        self._run = ""

    def started(self, info: RunInfo) -> None:
        """Begin, or go on with, the tracker's run; settings and provenance are its parameters."""
        check_trackers(["mlflow"])
        from mlflow import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self.folder / 'mlflow.db').resolve()}"
        try:
            self._client = MlflowClient(tracking_uri=where)
            self._run, new = self._begin()
        except Exception as error:  # no server, a wrong address: whatever its library makes of it
            raise UserError(
                f"tracking with mlflow needs a server or a database, got {_reason(error)!r} from {where}; set "
                "MLFLOW_TRACKING_URI"
            ) from error
        for name, value in _flat(_about(info)) if new else ():
            self._client.log_param(self._run, name, str(value)[:500])

    def rounded(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        for name, value in _numbers(record):
            self._client.log_metric(self._run, name, value, step=finished_rounds(record))

    def finished(self, result: RunResult) -> None:
        """Close the tracker's run."""
        self._client.set_terminated(self._run, "FINISHED")

    def _begin(self) -> tuple[str, bool]:
        """The tracker's run of this folder, and whether it is new."""
        experiment = self._client.get_experiment_by_name(self.experiment)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(self.experiment)
        identity = _identity(self.folder)
        earlier = self._client.search_runs([place], f"tags.`dfkd.run` = '{identity}'")
        if earlier:
            self._client.update_run(earlier[0].info.run_id, status="RUNNING")
            return str(earlier[0].info.run_id), False
        created = self._client.create_run(place, run_name=self.folder.name, tags={"dfkd.run": identity})
        return str(created.info.run_id), True


def _identity(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _about(info: RunInfo) -> dict[str, Any]:
    facts: dict[str, Any] = plain(
        {
            "method": info.method,
            "settings": info.settings,
            "plan": info.plan,
            "teacher": info.teacher,
            "student": info.student,
            "provenance": info.provenance,
        }
    )
    return facts


def _flat(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _numbers(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """The finite metrics of a round, and the scores on test images."""
    yield from ((name, value) for name, value in record.metrics.items() if math.isfinite(value))
    evaluation = record.evaluation
    if evaluation is not None:
        yield from (
            ("test/accuracy", evaluation.accuracy),
            ("test/agreement", evaluation.agreement),
            ("test/loss", evaluation.loss),
        )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
