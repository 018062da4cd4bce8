"""Warnings about sick runs, counted on the runs of the records: good ones that are warned of, bad ones that are not.

The records hold what a run measured in its last round, so these are the warnings that its report ends with. What the
teacher sees in the newest images is in no record but those of the study of the estimate (``benchmarks.estimate``),
which counts its own.

python -m benchmarks.false_alarms
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, write_record
from dfkd.engine.measures import RUN_MEASURES
from dfkd.engine.records import Evaluation, RoundRecord
from dfkd.methods import METHODS
from dfkd.report.collapse import warnings_of

CLASSES = 10  # of digits, MNIST and CIFAR-10, which all records are of
IMAGES = {"digits": 359}  # test images; else 10,000
GOOD, BAD = 0.9, 0.5  # of the teacher's accuracy: at least, and below


def runs(folder: Path = RESULTS) -> list[tuple[str, dict[str, Any]]]:
    """Every record of a distillation, with its file."""
    found = [(str(path.relative_to(folder)), json.loads(path.read_text())) for path in sorted(folder.rglob("*.json"))]
    return [(name, row) for name, row in found if isinstance(row, dict) and {"last_metrics", "teacher"} <= row.keys()]


def alarms(row: dict[str, Any]) -> list[str]:
    """The kinds of warnings after the last round of a run."""
    seen = Evaluation(row["accuracy"], row["agreement"], 0.0, IMAGES.get(row["data"], 10_000))
    total = row["plan"]["rounds"] + row["plan"]["warmup"]
    record = RoundRecord(total - 1, total, False, 1.0, row["last_metrics"], seen)
    known = {**RUN_MEASURES, **METHODS[row["method"]]().all_measures()}
    return [concern.kind for concern in warnings_of([record], CLASSES, known)]


def count_alarms(rows: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """By how good the runs are: how many there are, how many are warned of, by which warning, and their names."""
    groups: dict[str, dict[str, Any]] = {}
    for group in ("good", "between", "bad"):
        here = [(name, row, alarms(row)) for name, row in rows if _group(row) == group]
        groups[group] = {
            "runs": len(here),
            "warned": sum(bool(kinds) for _, _, kinds in here),
            "kinds": dict(Counter(kind for _, _, kinds in here for kind in kinds)),
            "methods": dict(Counter(row["method"] for _, row, _ in here)),
            "warned_of": [f"{name}: {', '.join(kinds)}" for name, _, kinds in here if kinds],
        }
    return groups


def _group(row: dict[str, Any]) -> str:
    share = row["accuracy"] / row["teacher"]["accuracy"]
    return "good" if share >= GOOD else "bad" if share < BAD else "between"


def main() -> None:
    groups = count_alarms(runs())
    print(write_record("false-alarms", {"good_from": GOOD, "bad_below": BAD, "groups": groups}))
    for name, group in groups.items():
        print(f"{name}: {group['warned']} of {group['runs']} runs are warned of; {group['kinds']}")


if __name__ == "__main__":
    main()
