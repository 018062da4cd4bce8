"""Does a round cost more when more images are stored? ``python -m benchmarks.growth [--rounds 301]``.

NAYER with tiny settings and a pool that keeps everything, saved after every round, through the driver. Compared are
the rounds around number 10 and those around number 300: the processor's seconds of a whole round, saving included.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import dfkd
from benchmarks.records import write_record
from dfkd.allocator import keep_freed_memory
from dfkd.data.readers import STATISTICS
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.driver import Watch, run
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RoundRecord
from dfkd.engine.runtime import Runtime
from dfkd.prepare import build_task

AROUND = 10  # rounds in a window


@dataclass
class Clocks(Observer):
    """An observer that notes when every round ended: (wall, processor)."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    images: list[float] = field(default_factory=list)

    def rounded(self, record: RoundRecord) -> None:
        """One more."""
        self.ends.append((time.perf_counter(), time.process_time()))
        self.images.append(record.metrics["images"])


def measure(rounds: int, batch: int) -> dict[str, object]:
    """One run; medians of both windows."""
    torch.manual_seed(0)
    teacher, student = (dfkd.build("wrn10-1", classes=10, channels=1).net for _ in range(2))
    mean, std = STATISTICS["digits"]
    task = build_task(
        teacher,
        student,
        image_size=(1, 8, 8),
        mean=mean,
        std=std,
        classes=10,
        text="index",
        runtime=Runtime(device="cpu").launch(),
    )
    method = dfkd.NAYER(steps=2, synthesis_batch=batch, batches=1, width=16, channels=4, pad=1, renew=None)
    clocks = Clocks()
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch([clocks], checkpoint=Checkpoint(Path(folder)), save_every=0.0)
        run(task, method, Plan(rounds=rounds, steps=4, batch_size=64), watch)
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(clocks.ends, clocks.ends[1:], strict=False)]
    windows = {"10": gaps[5 : 5 + AROUND], "300": gaps[-AROUND:]}
    return {
        "rounds": rounds,
        "batch": batch,
        "images": {"10": clocks.images[9], "300": clocks.images[-1]},
        "wall_seconds": {name: statistics.median(one[0] for one in part) for name, part in windows.items()},
        "cpu_seconds": {name: statistics.median(one[1] for one in part) for name, part in windows.items()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=301)
    parser.add_argument("--batch", type=int, default=200, help="images a round adds to the pool")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = measure(options.rounds, options.batch)
    print(found)
    write_record("speed/growth", found)


if __name__ == "__main__":
    main()
