"""What runs of the packaged recipes reached, as ``results.json`` beside this file holds it.

The file is written from the records under ``benchmarks/results`` by ``python -m benchmarks.table --write``; it is part
of the package, so that an installed one shows the same figures as a checkout.
"""

import functools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.recipes.table import Row

__all__ = ["RESULTS", "Reached", "expected_block", "figures_of"]

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Reached:
    """What records of runs with exactly these settings say; one entry a seed, in the order of the seeds.

    Attributes:
        seeds, accuracies: of each run; accuracies in [0, 1], of the last round.
        seconds: of a run, mean over seeds.
        hardware, commits: every machine, and every commit of this repository, that the runs were made with.
    """

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    seconds: float
    hardware: tuple[str, ...]
    commits: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def figures_of(row: Row, file: Path = RESULTS) -> Reached | None:
    """What was measured with this recipe, or None where nobody ran it.

    Args:
        row: the recipe.
        file: the runs of every recipe that has some.
    """
    runs = _read_results(file).get(row.name)
    if not runs:
        return None
    return Reached(
        tuple(run["seed"] for run in runs),
        tuple(run["accuracy"] for run in runs),
        statistics.fmean(run["seconds"] for run in runs),
        tuple(dict.fromkeys(run["hardware"] for run in runs)),
        tuple(dict.fromkeys(run["commit"] for run in runs)),
    )


def expected_block(row: Row, file: Path = RESULTS) -> dict[str, Any]:
    """The block ``expected`` of a recipe file, which a run ignores: accuracies in percent, the paper's and ours.

    Args:
        row: the recipe.
        file: as of :func:`figures_of`.
    """
    figures: dict[str, Any] = {}
    if row.paper is not None:
        figures["paper"] = {"accuracy": row.paper}
    reached = figures_of(row, file)
    if reached is not None:
        figures["here"] = {
            "accuracy": round(100 * reached.mean, 2),
            **({} if reached.spread is None else {"spread": round(100 * reached.spread, 2)}),
            "seeds": list(reached.seeds),
            "hardware": "; ".join(reached.hardware),
            "seconds": round(reached.seconds),
            "commit": ", ".join(reached.commits),
        }
    return figures


@functools.cache
def _read_results(file: Path) -> dict[str, list[dict[str, Any]]]:
    records: dict[str, list[dict[str, Any]]] = json.loads(file.read_text("utf-8"))
    return records
