"""Experiment trackers: Weights & Biases and MLflow, one observer each. TensorBoard is in ``dfkd.report.observers``.

Both read where and how from their own environment (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``). Numbers that are
not finite are left out. A resumed run goes on under the identity that it was given at its first start (``RunInfo``). A
tracker that cannot be reached refuses the start of a run; a run that has started goes on without it.
"""

import hashlib
import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from dfkd.engine.records import Ending, Observer, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import plain
from dfkd.report.observers import scalars_of
from dfkd.report.summary import finished_rounds

__all__ = ["MLflow", "WandB", "check_trackers"]

PROJECT = "dfkd"
TRACKERS = ("wandb", "mlflow")
PAUSE = 10.0  # nothing is sent after a failure for so many times as long as it took

# How a run ended, in the words of the trackers; a run that was stopped by a rule has a result.
EXIT_CODES: Mapping[Ending, int] = {"finished": 0, "stopped": 0, "interrupted": 255, "failed": 1}
STATES: Mapping[Ending, str] = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


def check_trackers(names: list[str]) -> None:
    """Refuse, before any work, what is no tracker, and trackers whose package is missing.

    Raises:
        UserError: with the names of those there are, or with the command that installs the package.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"track needs {' or '.join(TRACKERS)}, got {name!r}; choose one of them, or none")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking with {name} needs its package, got none installed; run `{install_extra(name)}`")


@final
class _Link:
    """The way to a tracker. Where it fails, the run goes on; the first time, a warning says so.

    A library may take minutes to give up on a server. After a failure nothing is sent for :data:`PAUSE` times as long,
    so that an outage takes little of a run's time.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._has_warned = False
        self._silent_until = -math.inf  # seconds, monotonic

    def send(self, work: Callable[[], object]) -> None:
        """Attempt ``work``, but for a while after a failure."""
        if time.monotonic() >= self._silent_until:
            self.attempt(work)

    def attempt(self, work: Callable[[], object]) -> None:
        """Call ``work``; what it raises is warned of, once."""
        began = time.monotonic()
        try:
            work()
        except Exception as error:  # no network, no server: whatever its library makes of it
            now = time.monotonic()
            self._silent_until = now + PAUSE * (now - began)
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"tracking with {self.name} failed ({_reason(error)}) and the run goes on; rounds that are missing "
                    "there are in metrics.jsonl",
                    stacklevel=2,
                )


class WandB(Observer):
    """Weights & Biases (extra ``wandb``).

    Args:
        folder: of the run; the tracker's files go into its ``wandb``.
        project: its name there.
    """

    def __init__(self, folder: Path, project: str = PROJECT) -> None:
        self.folder, self.project = folder, project
        self._link = _Link("wandb")
        self._run: Any = None  # while it is open

    def started(self, info: RunInfo) -> None:
        """Begin, or go on with, the tracker's run; settings and provenance are its config."""
        check_trackers(["wandb"])
        import wandb

        try:
            self._run = wandb.init(
                project=self.project,
                id=_identity(info, self.folder),
                name=self.folder.name,
                resume="allow",
                dir=str(self.folder),
                config=dotted_settings(_about(info)),
            )
        except Exception as error:  # no key, no network: whatever its library makes of it
            raise UserError(
                f"tracking with wandb needs a login or WANDB_MODE=offline, got {_reason(error)!r}; set one of them"
            ) from error

    def rounded(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        run = self._run
        if run is not None:
            self._link.send(lambda: run.log(scalars_of(record), step=finished_rounds(record)))

    def finished(self, result: RunResult) -> None:
        """Close the tracker's run."""
        run, final = self._run, result.final
        if run is not None and final is not None:
            self._link.attempt(lambda: run.summary.update({"accuracy": final.accuracy}))
        self._close(EXIT_CODES["finished"])

    def ended(self, status: Ending) -> None:
        """Close the tracker's run where it is open still."""
        self._close(EXIT_CODES[status])

    def _close(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._link.attempt(lambda: run.finish(exit_code=exit_code))


class MLflow(Observer):
    """MLflow (extra ``mlflow``): at ``MLFLOW_TRACKING_URI``, or in a database in the run folder.

    Args:
        folder: of the run.
        experiment: its name there.
    """

    def __init__(self, folder: Path, experiment: str = PROJECT) -> None:
        self.folder, self.experiment = folder, experiment
        self._link = _Link("mlflow")
        self._client: Any = None
        self._run = ""  # its identity, while it is open

    def started(self, info: RunInfo) -> None:
        """Begin, or go on with, the tracker's run; settings and provenance are its parameters."""
        check_trackers(["mlflow"])
        from mlflow import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self.folder / 'mlflow.db').resolve()}"
        try:
            self._client = MlflowClient(tracking_uri=where)
            self._run, new = self._begin(_identity(info, self.folder))
            for name, value in dotted_settings(_about(info)).items() if new else ():
                self._client.log_param(self._run, name, str(value)[:500])
        except Exception as error:  # no server, a wrong address: whatever its library makes of it
            raise UserError(
                f"tracking with mlflow needs a server or a database, got {_reason(error)!r} from {where}; set "
                "MLFLOW_TRACKING_URI"
            ) from error

    def rounded(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        if self._run:
            self._link.send(lambda: self._log(record))

    def finished(self, result: RunResult) -> None:
        """Close the tracker's run."""
        self._close(STATES["finished"])

    def ended(self, status: Ending) -> None:
        """Close the tracker's run where it is open still."""
        self._close(STATES[status])

    def _log(self, record: RoundRecord) -> None:
        for name, value in scalars_of(record).items():
            self._client.log_metric(self._run, name, value, step=finished_rounds(record))

    def _close(self, state: str) -> None:
        run, self._run = self._run, ""
        if run:
            self._link.attempt(lambda: self._client.set_terminated(run, state))

    def _begin(self, identity: str) -> tuple[str, bool]:
        """The tracker's run with this identity, and whether it is new."""
        experiment = self._client.get_experiment_by_name(self.experiment)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(self.experiment)
        earlier = self._client.search_runs([place], f"tags.`dfkd.run` = '{identity}'")
        if earlier:
            self._client.update_run(earlier[0].info.run_id, status="RUNNING")
            return str(earlier[0].info.run_id), False
        created = self._client.create_run(place, run_name=self.folder.name, tags={"dfkd.run": identity})
        return str(created.info.run_id), True


def _identity(info: RunInfo, folder: Path) -> str:
    """What the tracker knows the run by; runs that began before it was recorded go on under that of their path."""
    return info.identity or hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


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


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
