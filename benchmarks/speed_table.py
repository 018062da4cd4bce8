"""The speed records as one page: ``python -m benchmarks.speed_table --write`` writes ``results/speed.md``."""

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.cases import CASES
from benchmarks.records import RESULTS

__all__ = ["speed_page"]

HEAD = """# Speed

Written by `python -m benchmarks.speed_table --write` from the records in `results/speed`. One thread of a 2-core
machine that other work kept busy (the load is in the records): times are the processor's, not the clock's, both sides
of a comparison took turns in one process, and medians over the turns are shown. Absolute times are upper bounds.
"""

OVERHEAD = """## Overhead ratio

Time of the method's own code divided by that of the forward and backward passes it cannot avoid on the same networks
(`benchmarks/bare.py` says which those are: no statistics, no augmentation, no losses, no optimiser, no pool). What a
synthetic batch costs once is spread over 4 generator steps here, over 30 to 200 in a run. *With statistics*: the
comparison of BatchNorm statistics, which these methods' losses contain, is counted as unavoidable too. Medians of 3
to 7 turns; those of *before* were taken at a load of 6 to 11 and scatter by several hundredths. Between the columns
lie quicker batch statistics, a quicker channel exchange, one conversion of stored features instead of two, and, on both
sides, memory that is kept when tensors give it back (`dfkd.allocator`). The goal is 1.10.
"""

NAIVE = """## Against the naive loop

NAYER the way research code does it (`benchmarks/naive.py`: a PNG file for every image, a new loader every batch, hooks
always on, gradients for the teacher's weights, a number asked for in every step) is the 1x line. The same networks,
losses and budget on both sides.
"""

LADDER = """## Habit by habit

The naive loop gives up one habit after the other (`python -m benchmarks.naive --ladder --pools 20000`); medians of
rounds taken in turns in one process, by the processor's time. A round here is 2 generator steps and 8 student steps, so
what a synthetic batch costs once (files, a new optimiser) weighs more than in a run.
"""

GROWTH = """## Cost and stored images

Seconds of a whole round, saving included, of one NAYER run whose pool keeps everything.
"""

MEMORY = """## Memory

A NAYER run at CIFAR shapes (WRN-16-1 to ResNet-8) with a full pool; the peak is the process's resident set after each
part. What a larger synthetic batch adds is the activations of generator, teacher and student. The goal is 614 MB and
1.5 GB, 2,114 MB. Keeping memory that tensors give back (`dfkd.allocator`) costs some of the peak, and how much differs
by some hundredths from run to run.
"""

SELECTION = """## KD3's selection

Random 32 x 32 images in a mapped file; the first pass asks both networks and keeps the teacher's probabilities, the
second asks the student alone. The peak counts pages of the mapped file.
"""


def speed_page() -> str:
    """All sections that have records."""
    parts = [HEAD]
    for intro, lines in (
        (OVERHEAD, list(_overhead())),
        (NAIVE, list(_naive())),
        (LADDER, list(_ladder())),
        (GROWTH, list(_growth())),
        (MEMORY, list(_memory())),
        (SELECTION, list(_selection())),
    ):
        if lines:
            parts.append(intro + "\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _record(name: str) -> dict[str, Any] | None:
    path = RESULTS / "speed" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _overhead() -> Iterator[str]:
    rows = [(name, _record(f"overhead-before/{name}"), _record(f"overhead-now/{name}")) for name in CASES]
    if not any(before or now for _, before, now in rows):
        return
    yield "| case | pair, batch | phase | before | now |"
    yield "|---|---|---|---|---|"
    for name, before, now in rows:
        phases = [*(before or now or {"ratio": {"cpu": {}}})["ratio"]["cpu"]]
        for phase in phases:
            case = CASES[name]
            cells = [_ratio(record, phase) for record in (before, now)]
            yield f"| {name} | {case.teacher} → {case.student}, {case.batch} | {phase} | {cells[0]} | {cells[1]} |"


def _ratio(record: dict[str, Any] | None, phase: str) -> str:
    value = None if record is None else record["ratio"]["cpu"].get(phase)
    return "" if value is None else f"{value:.2f}"


def _naive() -> Iterator[str]:
    found = _record("naive-nayer-small")
    if found is None:
        return
    yield "| images stored | naive, s / round | ours, s / round | ours is quicker |"
    yield "|---|---|---|---|"
    for pool in found["pools"]:
        naive, ours = (statistics.median(pool["seconds"][f"{side}/cpu"]) for side in ("naive", "ours"))
        yield f"| {pool['pool']:,} | {naive:.2f} | {ours:.2f} | {pool['times_quicker']:.2f}x |"


def _ladder() -> Iterator[str]:
    found = _record("ladder-nayer-small")
    if found is None:
        return
    yield f"| {found['pool']:,} images stored | given up | s / round | rounds / hour |"
    yield "|---|---|---|---|"
    for name, seconds in found["cpu_seconds"].items():
        took, habit = statistics.median(seconds), found["habits"].get(name.removeprefix("without "), "")
        yield f"| {name} | {habit} | {took:.2f} | {3600 / took:,.0f} |"


def _growth() -> Iterator[str]:
    found = _record("growth")
    if found is None:
        return
    yield "| round | images stored | s / round | rounds / hour |"
    yield "|---|---|---|---|"
    for name, seconds in found["cpu_seconds"].items():
        yield f"| around {name} | {found['images'][name]:,.0f} | {seconds:.4f} | {3600 / seconds:,.0f} |"


def _memory() -> Iterator[str]:
    names = ("200", "400", "200-bf16", "400-bf16")
    found = [one for name in names if (one := _record(f"memory-nayer-small-{name}")) is not None]
    if not found:
        return
    parts = list(found[0]["peak_mb"])
    peaks = " | ".join(f"peak, MB: {part}" for part in parts)
    yield f"| batch synthesised, learnt from | precision | images stored | their MB | {peaks} |"
    yield "|---" * (4 + len(parts)) + "|"
    for one in found:
        exact = ", exactly their pixels" if one["pool_image_bytes"] == one["exact_image_bytes"] else ""
        peaks = " | ".join(f"{one['peak_mb'][part]:,.0f}" for part in parts)
        sizes = f"{one.get('precision', 'fp32')} | {one['pool_rows']:,} | {one['pool_image_bytes'] / 1e6:,.1f}{exact}"
        yield f"| {one['synthesis_batch']}, {one['student_batch']} | {sizes} | {peaks} |"


def _selection() -> Iterator[str]:
    found = _record("selection")
    if found is None:
        return
    teacher, student = found["pair"]
    yield f"{found['rows']:,} rows ({found['file_mb']:,.0f} MB), {teacher} → {student}; the kept probabilities take"
    yield f"{found['cache_mb']:,.0f} MB; before the first pass the process had {found['peak_before_mb']:,.0f} MB."
    yield ""
    yield "| pass | rows / s of processor time | peak, MB |"
    yield "|---|---|---|"
    for number, one in enumerate(found["passes"], 1):
        yield f"| {number} | {found['rows'] / one['cpu_seconds']:,.0f} | {one['peak_mb']:,.0f} |"


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write results/speed.md")
    if parser.parse_args().write:
        (RESULTS / "speed.md").write_text(speed_page())
    else:
        print(speed_page())


if __name__ == "__main__":
    main()
