"""Data-free quantization on digits: one record for each row and seed.

``python -m benchmarks.quantize TEACHER W4A4 SEED [ROUNDS]`` writes ``results/quantize/digits-NETWORK-w4a4-seed0.json``;
TEACHER is a folder of `dfkd teach` on digits.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import write_record
from dfkd.data.readers import STATISTICS
from dfkd.deploy.quantize import quantize
from dfkd.engine.plan import Plan
from dfkd.methods.nayer import NAYER
from dfkd.nets.zoo import build
from dfkd.report.files import plain
from dfkd.weights import find_weights, load_weights, read_sidecar


def main(teacher: str, bits: str, seed: str, rounds: str = "6") -> None:
    """One row, one seed."""
    weights = find_weights(Path(teacher))
    name = read_sidecar(weights).name or ""
    network = replace(build(name, 10, 1), name=name)
    load_weights(network.net, weights)
    method = NAYER(
        steps=20,
        synthesis_batch=200,
        width=256,
        channels=32,
        alpha_bn=1.0,
        batches=1,
        warmup_batches=2,
        flip=False,
        pad=1,
    )
    plan = Plan(rounds=int(rounds), warmup=2, steps=50, batch_size=128, lr=0.02)
    mean, std = STATISTICS["digits"]
    told: dict[str, Any] = {
        "image_size": (1, 8, 8),
        "mean": mean,
        "std": std,
        "classes": 10,
        "test": "digits",
        "seed": int(seed),
    }
    began = time.perf_counter()
    done = quantize(network, bits, method, plan=plan, progress=False, figures=False, **told)
    found = {
        "network": name,
        "bits": bits,
        "seed": int(seed),
        "stages": list(done.stages),
        "teacher_sha256": done.record.info.teacher["sha256"],
        "settings": done.record.info.settings,
        "plan": done.record.info.plan,
        "seconds": time.perf_counter() - began,
    }
    print(write_record(f"quantize/digits-{name}-{bits.lower()}-seed{seed}", plain(found)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
