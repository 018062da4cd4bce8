"""Peak memory of a NAYER run at CIFAR shapes whose pool holds 200,000 images: ``python -m benchmarks.memory``.

The pool is filled with random bytes, every one of them written; then one synthetic batch is made and the student takes
steps on draws from it.
"""

import argparse
from dataclasses import replace
from typing import Any, Literal

import torch

from benchmarks.cases import CASES, SHAPE
from benchmarks.records import write_record
from dfkd.allocator import keep_freed_memory
from dfkd.engine.core import Clock
from dfkd.engine.driver import make_optimizer
from dfkd.engine.work import peak_memory


def measure(
    name: str, rows: int, batch: int, steps: int = 2, precision: Literal["fp32", "bf16"] = "fp32"
) -> dict[str, Any]:
    """The run, with the peak after each part, in MB."""
    case = replace(CASES[name], batch=batch)
    method: Any = replace(case.method, steps=steps, synthesis_batch=batch, memory=rows)  # type: ignore[type-var]
    # enough rounds for the pool to be that large
    task, plan = (
        case.task(precision=precision),
        replace(case.plan, batch_size=512, steps=steps, rounds=-(-rows // batch)),
    )
    peaks = {"networks": peak_mb()}
    state = method.setup(task, plan)
    pool = state.pool
    while pool.added < rows:
        n = min(10_000, rows - pool.added)
        pool.add(images=torch.randint(256, (n, *SHAPE), dtype=torch.uint8), labels=torch.zeros(n, dtype=torch.int64))
    peaks["full pool"] = peak_mb()
    task.student.freeze()
    method.synthesize(task, state, Clock(plan, 1))
    peaks["synthesis"] = peak_mb()
    optimizer = make_optimizer(list(task.student.net.requires_grad_(True).parameters()), plan)
    task.student.train()
    for k in range(steps):
        with torch.no_grad():
            drawn = method.batch(task, state, Clock(plan, 1, k))
        task.runtime.step(method.loss(task, state, drawn), optimizer)
    peaks["student"] = peak_mb()
    images = pool.rows["images"]
    return {
        "case": name,
        "pool_rows": len(pool),
        "pool_image_bytes": images.nbytes,
        "exact_image_bytes": len(pool) * SHAPE[0] * SHAPE[1] * SHAPE[2],
        "synthesis_batch": batch,
        "student_batch": plan.batch_size,
        "precision": precision,
        "peak_mb": peaks,
    }


def peak_mb() -> float:
    """Of this process, so far."""
    return peak_memory(torch.device("cpu")) / 1e6


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="nayer-small", choices=[name for name in CASES if name.startswith("nayer")])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=400, help="images of a generator step; NAYER's own is 400")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = measure(options.case, options.rows, options.batch, precision=options.precision)
    print(found)
    title = "" if options.precision == "fp32" else f"-{options.precision}"
    write_record(f"speed/memory-{options.case}-{options.batch}{title}", found)


if __name__ == "__main__":
    main()
