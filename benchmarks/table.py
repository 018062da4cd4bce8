"""Records as a table: ``python -m benchmarks.table mnist-nayer`` prints Markdown (mean and spread over seeds)."""

import argparse
import json
import statistics
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS
from benchmarks.run import slug


def records(experiment: str) -> list[dict[str, Any]]:
    """Every record of an experiment."""
    return [json.loads(path.read_text()) for path in sorted((RESULTS / experiment).glob("*.json"))]


def table(experiment: str) -> str:
    """Markdown: one line per row of the experiment that has records."""
    found = records(experiment)
    lines = [
        "| row | teacher | student | accuracy, last round | agreement | seeds | seconds | paper (own data, budget) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in EXPERIMENTS[experiment][1]():
        mine = [r for r in found if slug(r["row"]) == slug(row.label) and r["accuracy"] is not None]
        if not mine:
            continue
        accuracy = [100 * r["accuracy"] for r in mine]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        agreement = statistics.mean(100 * r["agreement"] for r in mine)
        seconds = statistics.mean(r["seconds"] for r in mine)
        teacher = f"{mine[0]['teacher']['name']} ({100 * mine[0]['teacher']['accuracy']:.2f})"
        lines.append(
            f"| {row.label} | {teacher} | {row.student} | {statistics.mean(accuracy):.2f}{spread} | {agreement:.2f} "
            f"| {len(mine)} | {seconds:.0f} | {row.paper} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=sorted(EXPERIMENTS))
    for experiment in parser.parse_args().experiments:
        print(f"\n## {experiment}\n\n{table(experiment)}")


if __name__ == "__main__":
    main()
