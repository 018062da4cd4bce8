"""KD3's selection over a million web images in bounded memory: ``python -m benchmarks.selection [--rows 1000000]``.

Random bytes are written to a temporary .npy file of 3 kB a row, which is mapped, as a user's would be. The first pass
asks teacher and student about every row and keeps the teacher's probabilities; the second asks the student alone. The
peak is the process's resident set, pages of the mapped file included.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import dfkd
from benchmarks.cases import CLASSES, SHAPE
from benchmarks.records import write_record
from dfkd.engine.core import Clock
from dfkd.engine.runtime import Runtime
from dfkd.engine.work import peak_memory
from dfkd.prepare import build_task

PAIR = ("lenet5", "lenet5-half")


def write_rows(path: Path, rows: int, block: int = 10_000) -> None:
    """Random uint8 images (rows, 3, 32, 32), never all in memory."""
    stream = np.random.default_rng(0)
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, *SHAPE))
    kept.flush()
    del kept
    with path.open("r+b") as handle:
        np.lib.format.read_magic(handle)
        np.lib.format.read_array_header_1_0(handle)
        for start in range(0, rows, block):
            handle.write(stream.bytes(min(block, rows - start) * int(np.prod(SHAPE))))


def measure(path: Path) -> dict[str, object]:
    """Two passes."""
    rows = len(np.load(path, mmap_mode="r"))
    torch.manual_seed(0)
    nets = [dfkd.build(name, classes=CLASSES, channels=SHAPE[0]).net for name in PAIR]
    method = dfkd.KD3(v_th=0.01)  # networks that know nothing are sure of nothing: let them choose all the same
    plan = replace(dfkd.KD3.default_plan, rounds=2)
    runtime = Runtime(device="cpu").launch()
    half = (0.5, 0.5, 0.5)
    task = build_task(*nets, image_size=SHAPE, mean=half, std=half, classes=CLASSES, web=path, runtime=runtime)
    before = peak_mb()
    state = method.setup(task, plan)
    task.student.freeze()
    passes = []
    for round in range(2):
        began = time.perf_counter(), time.process_time()
        method.synthesize(task, state, Clock(plan, round))
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        passes.append({"seconds": wall, "cpu_seconds": cpu, "rows_per_second": rows / wall, "peak_mb": peak_mb()})
        print(f"pass {round + 1}: {rows / wall:,.0f} rows/s, peak {peak_mb():,.0f} MB", flush=True)
    known = state.teacher.value
    return {
        "rows": rows,
        "file_mb": path.stat().st_size / 1e6,
        "pair": PAIR,
        "block": method.block,
        "peak_before_mb": before,
        "cache_mb": 0.0 if known is None else known.nbytes / 1e6,
        "selected": len(state.chosen),
        "passes": passes,
    }


def peak_mb() -> float:
    """Largest resident set of this process so far."""
    return peak_memory(torch.device("cpu")) / 1e6


def main() -> None:
    """Write the rows, select twice, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--file", type=Path, help="a .npy of such rows that is there already")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "web.npy"
        if options.file is None:
            write_rows(path, options.rows)
        found = measure(path)
    write_record("speed/selection", found)


if __name__ == "__main__":
    main()
