"""How long networks take beside each other, measured fairly: in turns, each turn in another order."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Latency", "time_in_turns"]

WARM_UP = 3
LEAST, MOST = 10, 200  # turns


@dataclass(frozen=True)
class Latency:
    """Median seconds of one call, and how many times faster than the reference (median over the turns' ratios)."""

    seconds: float
    speedup: float


def time_in_turns(calls: Mapping[str, Callable[[], object]], reference: str, budget: float = 1.5) -> dict[str, Latency]:
    """Time every call once a turn, so that whatever else the machine does falls on all of them alike.

    Args:
        calls: by name; each does the same work.
        reference: the one that ratios refer to.
        budget: seconds that all turns may take together; there are at least 10 turns and at most 200.
    """
    names = list(calls)
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in names}
    until = time.perf_counter() + budget
    for turn in range(MOST):
        if turn >= LEAST and time.perf_counter() > until:
            break
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            began = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - began)
    return {
        name: Latency(
            statistics.median(seconds),
            statistics.median(base / own for base, own in zip(times[reference], seconds, strict=True)),
        )
        for name, seconds in times.items()
    }
