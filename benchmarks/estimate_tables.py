"""Tables of the study of the estimate: failures first, then ranks, errors, intervals, and alarms."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["judge"]

Row = dict[str, Any]
SIGNALS = ("own", "inverted", "shifted", "mixed", "noise")
READINGS = ("confidence", "retention", "within", "roughness", "statistics")
GREY = ("digits", "mnist")


def judge(file: Path) -> str:
    """All tables as Markdown, from the lines of ``file``."""
    rows = [row for row in map(json.loads, file.read_text().splitlines()) if row.get("estimate")]
    parts = [_counts(rows), _failures(rows), _ranks(rows), _errors(rows), _intervals(rows), _alarms(rows)]
    return "".join(parts).strip() + "\n"


def agreement(row: Row, kind: str) -> float | None:
    """On one kind of held-out images."""
    held = row["estimate"]["sets"].get(kind)
    return None if held is None else float(held["agreement"])


def signal_value(row: Row, name: str) -> float | None:
    """A signal about the newest images."""
    value = row["estimate"]["signals"].get(name)
    return None if value is None else float(value)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with a blank line after it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _counts(rows: Sequence[Row]) -> str:
    kinds = sorted({row["case"][2] for row in rows})
    data = sorted({row["case"][0] for row in rows})
    many = Counter((row["case"][0], row["case"][2]) for row in rows)
    cells = [[name, *(many[name, kind] for kind in kinds)] for name in data]
    return f"### {len(rows)} runs\n\n" + table(["data", *kinds], cells)


def _failures(rows: Sequence[Row], most: int = 6) -> str:
    """Where agreement on inverted images is furthest from the accuracy on test images."""
    far = sorted(rows, key=lambda row: -abs((agreement(row, "inverted") or 0.0) - row["accuracy"]))[:most]
    cells = []
    for row in far:
        numbers = (agreement(row, "own"), agreement(row, "inverted"), row["agreement"], row["accuracy"])
        cells.append([", ".join(row["case"]), *map(_percent, numbers), ", ".join(row["warnings"]) or "none"])
    head = ["run", "own", "inverted", "agreement on test images", "accuracy", "warnings"]
    return "### Where it fails\n\n" + table(head, cells)


def _ranks(rows: Sequence[Row]) -> str:
    """Spearman's correlation with the agreement on test images: of all runs, and its mean within data sets."""
    signals: dict[str, Callable[[Row], float | None]] = {kind: partial(agreement, kind=kind) for kind in SIGNALS}
    signals |= {name: partial(signal_value, name=name) for name in READINGS}
    sets = sorted({row["case"][0] for row in rows})
    cells = []
    for name, value in signals.items():
        known = [row for row in rows if value(row) is not None]
        by_data = [[row for row in known if row["case"][0] == data] for data in sets]
        within = [rho for part in by_data for rho in [_spearman(part, value)] if rho is not None]
        shown = (_spearman(known, value), statistics.fmean(within) if within else None)
        cells.append([name, len(known), *("–" if rho is None else f"{rho:+.2f}" for rho in shown)])
    return "### Rank correlation with the agreement on test images\n\n" + table(
        ["signal", "runs", "all", "mean within data sets"], cells
    )


def _spearman(rows: Sequence[Row], value: Callable[[Row], float | None], least: int = 5) -> float | None:
    from scipy.stats import spearmanr

    if len(rows) < least:
        return None
    rho = float(spearmanr([value(row) for row in rows], [row["agreement"] for row in rows]).statistic)
    return rho if math.isfinite(rho) else None


def _errors(rows: Sequence[Row]) -> str:
    """Mean absolute error of the agreement as it is, and of a line fitted on the other pair of data sets."""
    cells = []
    for kind in ("own", "inverted"):
        known = [row for row in rows if agreement(row, kind) is not None]
        parts = [[row for row in known if (row["case"][0] in GREY) == grey] for grey in (True, False)]
        for name, fit, test in (("digits, mnist", parts[1], parts[0]), ("cifar10, cifar20", parts[0], parts[1])):
            if len(fit) < 3 or not test:
                continue
            raw = statistics.fmean(abs((agreement(row, kind) or 0.0) - row["agreement"]) for row in test)
            x, y = [agreement(row, kind) or 0.0 for row in fit], [row["agreement"] for row in fit]
            line = statistics.linear_regression(x, y) if len(set(x)) > 1 else None
            fitted = None
            if line is not None:
                guess = [line.slope * (agreement(row, kind) or 0.0) + line.intercept for row in test]
                fitted = statistics.fmean(abs(g - row["agreement"]) for g, row in zip(guess, test, strict=True))
            cells.append([kind, name, len(test), _percent(raw), _percent(fitted)])
    head = ["signal", "judged on", "runs", "error as it is", "error of a line fitted on the others"]
    return "### Error, in points of agreement\n\n" + table(head, cells)


def _intervals(rows: Sequence[Row]) -> str:
    cells = []
    for kind in ("own", "inverted"):
        asked = [row for row in rows if agreement(row, kind) is not None]
        known = [row["estimate"]["sets"][kind] | {"truth": row["agreement"]} for row in asked]
        inside = sum(held["low"] <= held["truth"] <= held["high"] for held in known)
        cells.append([kind, len(known), inside, _percent(inside / len(known)) if known else "–"])
    head = ["signal", "runs", "agreement on test images within the 95 % interval", "%"]
    return "### The intervals\n\n" + table(head, cells)


def _alarms(rows: Sequence[Row]) -> str:
    """Warnings of runs whose student came within 10 % of the teacher (false alarms), and of the others (hits)."""
    good = [row for row in rows if row["accuracy"] >= 0.9 * row["teacher_accuracy"]]
    bad = [row for row in rows if row["accuracy"] < 0.5 * row["teacher_accuracy"]]
    cells = [
        ["at least 90 % of the teacher's accuracy", len(good), sum(bool(row["warnings"]) for row in good)],
        ["below half of it", len(bad), sum(bool(row["warnings"]) for row in bad)],
    ]
    return "### Warnings\n\n" + table(["runs that reached", "runs", "of them warned of"], cells)
