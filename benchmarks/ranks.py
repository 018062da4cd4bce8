"""What working together costs: ``python -m benchmarks.ranks``.

Two processes that share their gradients over gloo, against two that know nothing of each other; one thread each, on the
digits pair with NAYER's digits settings. Joint throughput is the sum over processes of images a second, for the images
a generator step sees and for those a student step sees; the first round is not counted. The goal is a ratio of 0.9.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import dfkd
from benchmarks.experiments import DIGITS_NAYER, DIGITS_PLAN
from benchmarks.records import scheduler, write_record
from benchmarks.rows import DIGITS
from benchmarks.rows import statistics as normalisation
from benchmarks.run import teacher_of
from dfkd.engine.driver import Watch, run
from dfkd.engine.records import Keep, RoundRecord

Rates = dict[str, float]


class Stopwatch:
    """In the place of ``all_reduce``: how long the collectives take, waiting for the other process included."""

    def __init__(self) -> None:
        self.inner, self.seconds, self.calls, self.bytes = torch.distributed.all_reduce, 0.0, 0, 0

    def __call__(self, tensor: Tensor) -> Any:
        began = time.monotonic()
        done = self.inner(tensor)
        self.seconds += time.monotonic() - began
        self.calls, self.bytes = self.calls + 1, self.bytes + tensor.nbytes
        return done


def work(rank: int, together: bool, rounds: int, port: int, barrier: Barrier, folder: Path) -> None:
    """One of two processes: its share of the joint work, or the same amount alone."""
    torch.set_num_threads(1)
    if together:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "GROUP_RANK": "0"}
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ.update(place, TORCHELASTIC_RUN_ID="ranks", **{key: str(value) for key, value in numbers.items()})
    runtime = dfkd.Runtime(device="cpu", devices=2 if together else 1, seed=rank).launch()
    teacher, _ = teacher_of(DIGITS, "wrn16-2")
    torch.manual_seed(0)
    student = dfkd.build("wrn16-1", classes=10, channels=1).net
    mean, std = normalisation(DIGITS)
    names = dfkd.class_list("digits")
    task = dfkd.build_task(
        teacher, student, image_size=DIGITS.shape, mean=mean, std=std, classes=names, runtime=runtime
    )
    keep, watch = Keep(), Stopwatch()
    barrier.wait()
    with patch.object(torch.distributed, "all_reduce", watch):
        run(task, DIGITS_NAYER, replace(DIGITS_PLAN, warmup=0, rounds=rounds), Watch([keep]))
    content = {"rates": rates(keep.records), "collectives": watch.calls, "collective_bytes": watch.bytes}
    content |= {"collective_seconds": watch.seconds, "seconds": sum(r.seconds for r in keep.records)}
    (folder / f"{rank}.json").write_text(json.dumps(content))
    if together:
        runtime.barrier()
        torch.distributed.destroy_process_group()


def rates(records: list[RoundRecord]) -> Rates:
    """Images a second of this process, by phase, without the first round."""
    counted = records[1:]
    spent = {phase: sum(r.metrics[f"seconds/{phase}"] for r in counted) for phase in ("synthesis", "student")}
    seen = {
        "synthesis": DIGITS_NAYER.batches * DIGITS_NAYER.steps * DIGITS_NAYER.synthesis_batch,
        "student": DIGITS_PLAN.steps * DIGITS_PLAN.batch_size,
    }
    whole = len(counted) * sum(seen.values()) / sum(spent.values())
    return {**{phase: len(counted) * seen[phase] / spent[phase] for phase in seen}, "whole": whole}


def pair(together: bool, rounds: int) -> list[dict[str, Any]]:
    """What both processes report."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        barrier = torch.multiprocessing.get_context("spawn").Barrier(2)
        spawn(work, (together, rounds, port, barrier, Path(folder)), nprocs=2)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]


def sum_rates(reports: list[dict[str, Any]]) -> Rates:
    """The sum of both processes' rates."""
    return {phase: sum(report["rates"][phase] for report in reports) for phase in reports[0]["rates"]}


def main() -> None:
    """Measure both in turn, several times, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--name", default="ranks")
    options = parser.parse_args()
    teacher_of(DIGITS, "wrn16-2")  # taught once, before anything is timed
    found: dict[bool, list[list[dict[str, Any]]]] = {True: [], False: []}
    for _ in range(options.repeats):
        for together in (False, True):
            found[together].append(pair(together, options.rounds))
            print("together" if together else "apart", sum_rates(found[together][-1]), flush=True)
    apart, both = ([sum_rates(reports) for reports in found[key]] for key in (False, True))
    ratios = [{phase: b[phase] / a[phase] for phase in a} for a, b in zip(apart, both, strict=True)]
    content = {
        "pair": "wrn16-2 to wrn16-1, digits",
        "method": "NAYER, digits settings",
        "images_per_second": {"two processes apart": apart, "two gloo ranks": both},
        "ratios": ratios,
        "ratio": {phase: statistics.median(r[phase] for r in ratios) for phase in ratios[0]},
        "ranks": found[True],
        "goal": 0.9,
        "scheduler": scheduler(),
    }
    write_record(options.name, content)
    print(content["ratio"])


if __name__ == "__main__":
    main()
