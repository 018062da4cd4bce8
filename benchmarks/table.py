"""Records as a table: ``python -m benchmarks.table mnist-nayer`` prints Markdown (mean and spread over seeds)."""

import argparse
import inspect
import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import recipes
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS
from benchmarks.rows import Row
from benchmarks.run import slug
from dfkd.identity import settings_of
from dfkd.recipes.figures import RESULTS as PACKAGED
from dfkd.report.files import plain


def records(experiment: str) -> list[dict[str, Any]]:
    """Every record of an experiment."""
    return [json.loads(path.read_text()) for path in sorted((RESULTS / experiment).glob("*.json"))]


def table(experiment: str) -> str:
    """Markdown: one line per row of the experiment that has records."""
    found = records(experiment)
    other_settings, teachers = [], set()
    lines = [
        "| row | teacher | student | accuracy, last round | s.e. | agreement | pixels | hash | seeds | seconds "
        "| paper |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in EXPERIMENTS[experiment][1]():
        mine = [r for r in found if slug(r["row"]) == slug(row.label) and r["accuracy"] is not None]
        if not mine:
            continue
        row_teachers = {r["teacher"]["sha256"] for r in mine}
        if len(row_teachers) > 1:
            raise ValueError(f"{experiment}, {row.label}: its records have {len(row_teachers)} different teachers")
        teachers |= row_teachers
        other_settings += [f"{row.label}, seed {r['seed']}" for r in mine if differs(r, row)]
        accuracy = [100 * r["accuracy"] for r in mine]
        deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else None
        spread = "" if deviation is None else f" ± {deviation:.2f}"
        error = "–" if deviation is None else f"{deviation / math.sqrt(len(accuracy)):.2f}"
        agreement = statistics.mean(100 * r["agreement"] for r in mine)
        seconds = statistics.mean(r["seconds"] for r in mine)
        teacher = f"{mine[0]['teacher']['name']} ({100 * mine[0]['teacher']['accuracy']:.2f})"
        lines.append(
            f"| {row.label} | {teacher} | {row.student} | {statistics.mean(accuracy):.2f}{spread} | {error} "
            f"| {agreement:.2f} | {_diversity(mine, 'pairwise_distance')} | {_diversity(mine, 'hash_distance')} "
            f"| {len(mine)} | {seconds:.0f} | {row.paper} |"
        )
    if len(teachers) > 1:
        lines += ["", "Two teachers of the same recipe, trained on different machines: see the column *teacher*."]
    if other_settings:
        lines += ["", f"Ran with settings that are no longer the row's: {'; '.join(other_settings)}."]
    return "\n".join(lines)


def differs(record: Mapping[str, Any], row: Row) -> bool:
    """Does a record have settings, a plan or networks that are not the row's now? New fields are at their defaults."""
    settings, plan = plain(settings_of(row.method)), plain(settings_of(row.plan))
    return (
        any(record["settings"].get(key, value) != value for key, value in settings.items())
        or any(record["plan"].get(key, value) != value for key, value in plan.items())
        or (record["teacher"]["name"], record["student"]) != (row.teacher, row.student)
    )


def _diversity(found: list[dict[str, Any]], kind: str) -> str:
    """Mean over the runs that have it, or a dash."""
    values = [r["diversity"][kind] for r in found if r.get("diversity")]
    return f"{statistics.mean(values):.3f}" if values else "–"


def page() -> str:
    """Every experiment that has records, as one page."""
    parts = [
        "# Results",
        "",
        "Written by `python -m benchmarks.table --write` from the records in this folder. Accuracy is that of the",
        "last round on the held-out images, in percent, mean and standard deviation over seeds (*s.e.*: standard",
        "error of that mean, which is what two rows are compared by); no round was chosen by it. The settings of the",
        "digits rows were found by trying a few on these same 359 images (four for NAYER, eight for D3K), so they",
        "flatter a little; those of CMI, DAFL and DFND were tried on training images (two, one and one); MNIST took",
        "NAYER's settings over unseen, and those of the other methods were tried on 10,000 of its training images,",
        "never on its test images. `paper` is the figure of the method's paper for that row, on its own data,",
        "networks and budget: it shows which order to expect, not what these small runs should reach. *Pixels* and",
        "*hash* say how different the student's images are: mean distance of two of them in pixels (root of the mean",
        "square, in [0, 1]) and in bits of dHash codes (share that differ). Machine, versions, commit and load are in",
        "the records; unless they say otherwise: one thread of a 2-core AMD EPYC, shared with other work, so that",
        "seconds are upper bounds.",
    ]
    for experiment in sorted(EXPERIMENTS):
        if records(experiment):
            about = inspect.getdoc(EXPERIMENTS[experiment][1]) or ""
            parts += ["", f"## {experiment}", "", *([about, ""] if about else []), table(experiment)]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the tables asked for, or write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=sorted(EXPERIMENTS))
    parser.add_argument("--write", action="store_true", help="write results/README.md and the package's figures")
    options = parser.parse_args()
    if options.write:
        (RESULTS / "README.md").write_text(page())
        PACKAGED.write_text(recipes.text())
        return
    for experiment in options.experiments:
        print(f"\n## {experiment}\n\n{table(experiment)}")


if __name__ == "__main__":
    main()
