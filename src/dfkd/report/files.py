"""The text files of a run folder: ``run.json`` and ``metrics.jsonl``.

Both are strict JSON: a number that is not finite is written as ``null`` and read back as NaN. ``run.json`` is replaced
whole (written aside, synced, renamed), so a reader never sees half of it. ``metrics.jsonl`` grows by one line a round,
handed to the system at once and synced at least once a second: a kill may tear the last line, a power cut lose those of
the last second. A resume drops torn lines and rounds after the save it goes on from.

``run.json`` is ``{"info": ..., "result": ... | null, "status": "running" | "finished" | "stopped" | "interrupted" |
"failed"}``, where ``result`` is the ``RunResult`` without ``info`` and ``rounds``; ``metrics.jsonl`` holds one
``RoundRecord`` a line, without the sample images.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from dfkd.data.overlap import NearDuplicates, Pair
from dfkd.engine.checkpoint import write_aside
from dfkd.engine.measures import Alarm, Measure
from dfkd.engine.records import Agreement, Estimate, Evaluation, Fitted, Picked, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError

Status = Literal["running", "finished", "stopped", "interrupted", "failed"]

# What reading values from damaged JSON raises; 1e400 is infinite, and that is no number of anything.
DAMAGE = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class StoredRun:
    """What a run folder says in its text files. ``result`` is None until the run has finished or was stopped."""

    info: RunInfo
    rounds: list[RoundRecord]
    result: RunResult | None
    status: Status
    reason: str | None = None  # the sentence with which a failed run ended


@contextmanager
def write_error_sentence(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` (disk full, no permission) into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"the run needs to write {path}, got '{reason}'; free some space or choose another output folder"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step, creating its folder. Raises UserError where that fails."""
    write_aside(path, lambda aside: aside.write_bytes(data))


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file really lies in ``folder``: a link in a stranger's run folder may lead anywhere."""
    return path.resolve().is_relative_to(folder.resolve())


def plain(value: object) -> Any:
    """``value`` as strict JSON allows it: NaN and infinities become None, anything unknown its text.

    Numbers of NumPy and torch become Python's own. Halves of characters, as in the names of files that are no UTF-8,
    become question marks.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def record_line(record: RoundRecord) -> str:
    """One line of ``metrics.jsonl`` (without the line break); the samples are left out."""
    row = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "samples"}
    return json.dumps(plain(row), allow_nan=False, ensure_ascii=False)


def record_from(row: Mapping[str, Any]) -> RoundRecord:
    """The inverse of ``record_line``, samples being None. Raises KeyError, TypeError or ValueError on other
    rows."""
    return RoundRecord(
        round=int(row["round"]),
        rounds=int(row["rounds"]),
        warmup=bool(row["warmup"]),
        seconds=_float(row["seconds"]),
        metrics={str(name): _float(value) for name, value in row["metrics"].items()},
        evaluation=_evaluation(row["evaluation"]),
        samples=None,
        estimate=_estimate(row.get("estimate")),
        stopped=_text(row.get("stopped")),
    )


def write_run(folder: Path, info: RunInfo, result: RunResult | None, status: Status, reason: str | None = None) -> None:
    """Write ``run.json`` into ``folder``; ``reason`` is the sentence with which a run failed."""
    content = None
    if result is not None:
        content = {
            "final": result.final,
            "teacher_evaluation": result.teacher_evaluation,
            "seconds": result.seconds,
            "files": result.files,
            "stopped": result.stopped,
            "picked": result.picked,
        }
    page = plain({"info": asdict(info), "result": content, "status": status, "reason": reason})
    text = json.dumps(page, allow_nan=False, ensure_ascii=False, indent=1)
    write_whole(folder / RUN_FILE, text.encode() + b"\n")


def status_of(result: RunResult) -> Status:
    """The status of a run that came to its end."""
    return "finished" if result.stopped is None else "stopped"


def read_run(folder: Path, mend: bool = False) -> StoredRun:
    """Read ``run.json`` and ``metrics.jsonl`` of a run folder.

    Raises UserError where the folder holds no run or its files are damaged. A torn last line of the metrics
    (the process was killed while writing it) is left out, and with ``mend`` every damaged one, as a resume does;
    missing metrics are no rounds.
    """
    path = folder / RUN_FILE
    try:
        row = json.loads(path.read_text("utf-8"))
        info = _info(row["info"])
        rounds = read_rounds(folder / METRICS_FILE, mend)
        status = row["status"]
        if status not in get_args(Status):
            raise ValueError("status")
        return StoredRun(info, rounds, _result(info, rounds, row["result"]), status, _text(row.get("reason")))
    except OSError as error:
        raise UserError(
            f"a run's folder needs the file {path}, got '{error.strerror}'; give the folder of a distillation run"
        ) from error
    except DAMAGE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"a run's folder needs a run description in {path}, got something else; give the folder of a distillation "
            "run"
        ) from error


def read_rounds(path: Path, mend: bool = False) -> list[RoundRecord]:
    """The rounds of ``metrics.jsonl`` in order, each once (the last line of a round counts); none without the file.

    A torn last line is left out, and with ``mend`` every damaged one. Raises UserError on a damaged line otherwise.
    """
    records: dict[int, RoundRecord] = {}
    lines = _lines(path)
    for number, (_, record) in enumerate(lines, start=1):
        if record is not None:
            records[record.round] = record
        elif number < len(lines) and not mend:
            raise UserError(
                f"a run's folder needs one round a line in {path}, got something else in line {number}; "
                "remove that line or resume the run"
            )
    return [records[round] for round in sorted(records)]


def keep_rounds(path: Path, before: int) -> None:
    """Bring ``metrics.jsonl`` to the state it had when round ``before`` began: one sound line for each round.

    Lines that are torn or damaged are dropped, with a warning unless it is the last one, which a kill may have cut.
    """
    lines = _lines(path)
    unreadable = sum(record is None for _, record in lines[:-1])
    if unreadable:
        warnings.warn(f"{unreadable} damaged lines of {path} are dropped: these rounds have no record", stacklevel=2)
    by_round = {record.round: line for line, record in lines if record is not None and record.round < before}
    write_whole(path, "".join(by_round[round] + "\n" for round in sorted(by_round)).encode())


def _lines(path: Path) -> list[tuple[str, RoundRecord | None]]:
    """Every line with the round it records; None for one that records none."""
    parsed: list[tuple[str, RoundRecord | None]] = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            parsed.append((line, record_from(json.loads(line))))
        except DAMAGE:
            parsed.append((line, None))
    return parsed


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _evaluation(row: Mapping[str, Any] | None) -> Evaluation | None:
    if row is None:
        return None
    return Evaluation(
        accuracy=_float(row["accuracy"]),
        agreement=_float(row["agreement"]),
        loss=_float(row["loss"]),
        images=int(row["images"]),
        class_accuracy=tuple(_float(value) for value in row["class_accuracy"]),
        class_agreement=tuple(_float(value) for value in row["class_agreement"]),
    )


def _estimate(row: Mapping[str, Any] | None) -> Estimate | None:
    if row is None:
        return None
    sets = {str(name): _agreement(agreement) for name, agreement in row["sets"].items()}
    signals = {str(name): _float(value) for name, value in row["signals"].items()}
    return Estimate(sets, signals, _float(row["seconds"]))


def _agreement(row: Mapping[str, Any]) -> Agreement:
    return Agreement(
        agreement=_float(row["agreement"]),
        low=_float(row["low"]),
        high=_float(row["high"]),
        images=int(row["images"]),
        calibration=_float(row["calibration"]),
        class_agreement=tuple(_float(value) for value in row["class_agreement"]),
    )


def _info(row: Mapping[str, Any]) -> RunInfo:
    channels, height, width = (int(size) for size in row["image_shape"])
    return RunInfo(
        method=str(row["method"]),
        settings=dict(row["settings"]),
        plan=dict(row["plan"]),
        teacher=dict(row["teacher"]),
        student=dict(row["student"]),
        image_shape=(channels, height, width),
        classes=int(row["classes"]),
        names=tuple(str(name) for name in row["names"]),
        text=None if row["text"] is None else {str(key): str(value) for key, value in row["text"].items()},
        provenance=dict(row["provenance"]),
        overlap=_overlap(row.get("overlap")),  # newer than the first run folders, as is what follows
        measures={str(name): _measure(about) for name, about in row.get("measures", {}).items()},
        continues=_text(row.get("continues")),
        fitted=_read_fitted(row.get("fitted")),
        inputs={str(key): str(value) for key, value in row.get("inputs", {}).items()},
        notes=tuple(str(note) for note in row.get("notes", ())),
        test_images=None if row.get("test_images") is None else int(row["test_images"]),
        identity=_text(row.get("identity")) or "",
    )


def _read_fitted(row: Mapping[str, Any] | None) -> Fitted | None:
    return None if row is None else Fitted(_float(row["hours"]), _float(row["seconds"]), dict(row["asked"]))


def _overlap(row: Mapping[str, Any] | None) -> NearDuplicates | None:
    if row is None:
        return None
    pairs = tuple(
        Pair(int(web), int(image), int(bits), float(similarity)) for web, image, bits, similarity in row["pairs"]
    )
    counts = {name: int(row[name]) for name in ("web", "images", "found", "alike", "at_most")}
    return NearDuplicates(**counts, pairs=pairs)


def _measure(row: Mapping[str, Any]) -> Measure:
    alarm = row.get("alarm")
    return Measure(**{**row, "alarm": None if alarm is None else Alarm(**alarm)})


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _result(info: RunInfo, rounds: list[RoundRecord], row: Mapping[str, Any] | None) -> RunResult | None:
    if row is None:
        return None
    return RunResult(
        info=info,
        rounds=rounds,
        final=_evaluation(row["final"]),
        teacher_evaluation=_evaluation(row["teacher_evaluation"]),
        seconds=_float(row["seconds"]),
        files={str(name): str(value) for name, value in row["files"].items()},
        stopped=_text(row.get("stopped")),
        picked=_read_picked(row.get("picked")),
    )


def _read_picked(row: Mapping[str, Any] | None) -> Picked | None:
    return None if row is None else Picked(int(row["round"]), _float(row["agreement"]), str(row["held_out"]))
