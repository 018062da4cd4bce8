"""A run as a folder: whether one may begin there, be continued there, or be removed."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.lock import LOCK_FILE, lock_folder
from dfkd.engine.plan import Plan
from dfkd.engine.records import Fitted, RunInfo
from dfkd.errors import UserError
from dfkd.identity import settings_of
from dfkd.report.dotted import dotted_settings
from dfkd.report.files import METRICS_FILE, RUN_FILE, SAMPLES_FOLDER, StoredRun, plain, read_run

__all__ = ["CHECKPOINT_FOLDER", "begun_plan", "check_free", "forget_run", "note_resume", "open_run"]

CHECKPOINT_FOLDER = "checkpoint"
RECIPE_FILE = "recipe.yaml"
RECIPE_HEAD = b"# written by dfkd"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what ``write_aside`` writes to
EVENTS = "events.out.tfevents."
TRACKED = ("mlartifacts", "mlflow.db", "mlruns", "wandb")  # of trackers: another run is logged beside the one before


@contextmanager
def open_run(folder: Path, info: RunInfo, resume: bool, save_every: float = 30.0) -> Iterator[StoredRun | None]:
    """Prepare ``folder`` for a run, and keep other processes out of it as long as this lasts.

    Nothing that is in the folder changes but temporaries of a start that was killed, which are removed. Gives the run
    that is continued; None where a new one begins.

    Args:
        folder: the run's.
        info: of the run that is to begin or to go on.
        resume: continue the run that is there. One that was killed before it wrote its ``run.json`` begins.
        save_every: least seconds between saves of the run.

    Raises:
        UserError: the folder holds another run (or other files) and ``resume`` is off, or the run there had other
            settings or lost its checkpoint, or another process runs it, or the folder cannot be written.
    """
    if resume and not any((folder / name).exists() for name in (RUN_FILE, RECIPE_FILE)):
        raise UserError(f"resume needs a run folder, got {folder} without {RUN_FILE}; start it without resume")
    if not (resume and (folder / RUN_FILE).exists()):
        check_free(folder)
        _make(folder)
    with lock_folder(folder):
        record = None
        if resume and (folder / RUN_FILE).exists():
            record = read_run(folder, mend=True)
            _check_same(record.info, info, folder)
            _check_saved(record, folder, save_every)
        else:
            check_free(folder)  # again, for a run that began in between
        _sweep(folder)
        yield record


def begun_plan(folder: Path, plan: Plan, hours: float | None) -> tuple[Plan, Fitted | None]:
    """The plan that was decided on when the run in ``folder`` began with ``plan`` and ``hours``, and how.

    ``hours`` may be left out. One that the run had not, or another plan, comes back as it is: it is refused as any
    other setting that has changed.

    Raises:
        UserError: it began with another number of hours.
    """
    info = read_run(folder, mend=True).info
    before = None if info.fitted is None else info.fitted.hours
    if hours is None and info.fitted is None:
        return plan, None
    if info.fitted is None or hours not in (None, before):
        raise UserError(
            f"resume needs the settings the run in {folder} began with, got stop.hours = {hours!r} instead of "
            f"{before!r}; leave it out: the plan is in {RUN_FILE}"
        )
    if plain(settings_of(plan)) != plain(info.fitted.asked):
        return plan, info.fitted
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in info.plan.items()}
    return Plan(**values), info.fitted  # type: ignore[arg-type]


def note_resume(info: RunInfo, record: StoredRun, rounds: int, notes: Sequence[str] = ()) -> RunInfo:
    """``info`` of a run that goes on after ``rounds`` rounds: still the same run, with what its resumes found.

    Warns, once, of versions, machine and threads that are not those of the start before: they change no setting, but
    the student may differ in its last bits from that of a run that was never stopped.
    """
    changes = _differences(record.info, info)
    if changes:
        text = f"bits of the student may differ from those of a run that was never stopped: {', '.join(changes)}"
        warnings.warn(f"{text}", stacklevel=2)
        notes = [*notes, text]
    before, now = (str(run.provenance.get("device", "")).partition(":")[0] for run in (record.info, info))
    if before and before != now:
        notes = [*notes, f"random streams are seeded anew: {now} cannot go on with those of {before}"]
    lines = tuple(f"resumed after round {rounds} on {info.provenance['date']}: {note}" for note in notes)
    return replace(info, notes=(*record.info.notes, *lines), identity=record.info.identity)


def _differences(old: RunInfo, new: RunInfo) -> list[str]:
    """What of code and machine is not as it was: "torch 2.12 instead of 2.11"."""
    names = {"dfkd": "dfkd", "commit": "commit of dfkd", "python": "Python", "torch": "torch"}
    names |= {"device": "device", "hardware": "hardware", "threads": "threads"}
    differences = []
    for key, name in names.items():
        before, now = old.provenance.get(key), new.provenance.get(key)
        if before is not None and now is not None and before != now:
            differences.append(f"{name} {now} instead of {before}")
    return differences


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out needs a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from None


def _check_saved(record: StoredRun, folder: Path, save_every: float) -> None:
    """Refuse to begin again where something was reached. A run that was stopped before its first save may."""
    saves = Checkpoint(folder / CHECKPOINT_FOLDER)
    if saves.exists():
        return
    rounds = record.rounds
    has_saved = len(rounds) > 1 and sum(past.seconds for past in rounds[:-1]) >= save_every
    if has_saved or record.status in ("finished", "stopped") or (folder / "student.safetensors").exists():
        raise UserError(
            f"resume needs the checkpoint of the {len(rounds)} rounds that were run, got none at {saves.path}; put it "
            "back, or start in a new folder"
        )


def check_free(folder: Path) -> None:
    """Refuse a folder in which a new run cannot begin. What a start that was killed left there does not count.

    Raises:
        UserError: it is a file, or holds a run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out needs a folder, got the file {folder}; choose another path")
    if (folder / RUN_FILE).exists():
        raise UserError(
            f"out needs a folder without a run, got {folder}, which holds one; choose another folder, or continue "
            "that run with resume (`dfkd distill --resume`)"
        )
    if folder.exists() and not all(path.name in TRACKED or _left_behind(path) for path in folder.iterdir()):
        raise UserError(f"out needs an empty or new folder, got {folder} with other files in it; choose another folder")


def _left_behind(path: Path) -> bool:
    """Is this what a start that was killed before its first round leaves: written by us, and of no use?"""
    if path.is_symlink():
        return False
    if path.is_dir():
        names = (CHECKPOINT_FOLDER, SAMPLES_FOLDER, "tensorboard")
        return path.name in names and all(_left_behind(inner) for inner in path.iterdir())
    if path.name == RECIPE_FILE:
        return path.read_bytes().startswith(RECIPE_HEAD)
    if path.name == METRICS_FILE:
        return path.stat().st_size == 0
    return path.name == LOCK_FILE or bool(TEMPORARY.fullmatch(path.name)) or path.name.startswith(EVENTS)


def _sweep(folder: Path) -> None:
    """Remove temporaries that killed writes left, here and below."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def forget_run(folder: Path) -> None:
    """Remove what a run wrote before its first round; other files, and a folder that holds any, stay."""
    for name in (RUN_FILE, METRICS_FILE, RECIPE_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "tensorboard").glob(f"{EVENTS}*"):
        path.unlink(missing_ok=True)
    _sweep(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _check_same(old: RunInfo, new: RunInfo, folder: Path) -> None:
    """Name the first setting in which a run to be continued differs from the one on disk."""
    for what, before, now in _settings(old, new):
        if before != now:
            raise UserError(
                f"resume needs the settings the run in {folder} began with, got {what} = {now!r} instead of "
                f"{before!r}; set it back, or start in a new folder"
            )


def _settings(old: RunInfo, new: RunInfo) -> Sequence[tuple[str, object, object]]:
    pairs: list[tuple[str, object, object]] = [("method", old.method, new.method)]
    for group in ("settings", "plan"):
        at = "method" if group == "settings" else group
        was, now = (dotted_settings(plain(getattr(run, group)), f"{at}.") for run in (old, new))
        was = {**({"plan.turns": 1} if group == "plan" else {}), **was}  # newer than the first run folders
        pairs += [(key, was.get(key), now.get(key)) for key in {**was, **now}]
    for who in ("teacher", "student"):
        for key in ("kind", "sha256", "parameters", "mean", "std", "head", "stages"):
            pairs.append((f"{who}.{key}", plain(getattr(old, who).get(key)), plain(getattr(new, who).get(key))))
        newer = ["precision", "channels_last"]  # as the network bears them; newer than the first run folders
        # Another version of torch may tell more of the same layers.
        newer += ["layers"] if old.provenance.get("torch") == new.provenance.get("torch") else []
        for key in newer:
            now = getattr(new, who).get(key)
            pairs.append((f"{who}.{key}", getattr(old, who).get(key, now), now))
    for key in ("seed", "precision", "processes", "compile", "channels_last"):
        pairs.append((key, old.provenance.get(key), new.provenance.get(key)))
    for key, before in (("compile_mode", "default"), ("sync_bn", False)):  # newer than the first run folders
        pairs.append((key, old.provenance.get(key, before), new.provenance.get(key, before)))
    shape = ("image_shape", tuple(old.image_shape), tuple(new.image_shape))
    pairs += [shape, ("classes", old.classes, new.classes), ("text", old.text, new.text)]
    pairs += [(key, old.inputs[key], now) for key, now in new.inputs.items() if key in old.inputs]
    return [*pairs, *_names(old.names, new.names)]


def _names(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, object, object]]:
    """The first class whose name differs."""
    if len(old) != len(new):
        yield "names of classes", len(old), len(new)
    for label, (before, now) in enumerate(zip(old, new, strict=False)):
        yield f"the name of class {label}", before, now
