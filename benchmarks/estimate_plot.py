"""The picture of the study of the estimate: agreement on synthetic images against that on test images, run by run."""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.estimate_tables import agreement
from benchmarks.records import RESULTS

__all__ = ["draw"]

PICTURE = RESULTS.parent.parent / "docs/assets/estimate.svg"
KINDS = {"inverted": "images made from the teacher alone", "own": "images of the run's method"}
GROUPS = {
    "good and long": ("#2f7d4f", "o"),
    "wrong mean and std": ("#c0392b", "x"),
    "spoilt otherwise": ("#7f8890", "."),
}


def draw(file: Path, picture: Path = PICTURE) -> Path:
    """Write it as SVG, on white, from the lines of ``file``."""
    rows = [row for row in map(json.loads, file.read_text().splitlines()) if row.get("estimate")]
    data = sorted({row["case"][0] for row in rows}, key=["digits", "mnist", "cifar10", "cifar20"].index)
    with matplotlib.rc_context({"svg.hashsalt": "estimate", "font.size": 8.0, "svg.fonttype": "none"}):
        figure = Figure(figsize=(2.2 * len(data), 2.3 * len(KINDS)), layout="constrained")
        panels = figure.subplots(len(KINDS), len(data), sharex=True, sharey=True)
        for line, (kind, title) in zip(panels, KINDS.items(), strict=True):
            for axes, name in zip(line, data, strict=True):
                axes.plot([0, 100], [0, 100], color="#d5d8dc", linewidth=0.8, zorder=0)
                for group, (colour, marker) in GROUPS.items():
                    points = [
                        (100 * value, 100 * row["agreement"])
                        for row in rows
                        if row["case"][0] == name and _group(row["case"][2]) == group
                        if (value := agreement(row, kind)) is not None
                    ]
                    x, y = zip(*points, strict=True) if points else ((), ())
                    axes.scatter(x, y, s=16, color=colour, marker=marker, linewidths=0.8, label=group)
                axes.set_title(name, fontsize=8)
                axes.spines[["top", "right"]].set_visible(False)
            line[0].set_ylabel("agreement on\ntest images, %")
            line[1].set_xlabel(f"agreement on {title}, %", x=1.1)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, metadata={"Date": None}, facecolor="white")
    return picture


def _group(kind: str) -> str:
    if kind in ("good", "long"):
        return "good and long"
    return "wrong mean and std" if kind == "normalisation" else "spoilt otherwise"
