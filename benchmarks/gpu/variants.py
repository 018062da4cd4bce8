"""Eager, compiled and graphed, in fp32 and bf16: ``python -m benchmarks.gpu.variants --teacher DIR``.

For each variant: images a second of NAYER's synthesis and of the student's steps, compiled graphs after two rounds and
at the end (they must be equal), memory, and how far losses and gradients are from those of eager fp32 on equal weights
and images, with the tolerances of ``benchmarks.precision``.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

import dfkd
from benchmarks.gpu.common import Job, images, job_of, networks, normalisation, parser, peak_bytes, record
from benchmarks.gpu.nayer import SMALL
from benchmarks.precision import TOLERANCES, VARIANTS, compare
from dfkd.engine.core import Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.plan import Plan
from dfkd.engine.records import Keep
from dfkd.methods import NAYER
from dfkd.ops.pixels import as_images


def task_of(job: Job, settings: Mapping[str, Any]) -> Task:
    """The pair on a runtime with these settings alone; networks and embeddings are the same every time."""
    teacher, student = networks(job)
    mean, std = normalisation(job)
    text = torch.randn(10, 384, generator=torch.Generator().manual_seed(0))
    runtime = job.runtime(**{"precision": "fp32", "compile": False, "compile_mode": "default", **settings}).launch()
    return dfkd.build_task(
        teacher, student, image_size=job.shape, mean=mean, std=std, classes=10, text=text, runtime=runtime
    )


def speed(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Four rounds, of which the last is counted."""
    method = SMALL if job.miniature else NAYER()
    steps, batch = (3, 16) if job.miniature else (100, NAYER.default_plan.batch_size)
    task, keep = task_of(job, settings), Keep()
    if task.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(task.runtime.device)
    plan = Plan(rounds=4, steps=steps, batch_size=batch, lr=0.1)
    run(task, method, plan, Watch([keep]))
    last = keep.records[-1].metrics
    return {
        "synthesised_images_per_second": method.batches * method.synthesis_batch / last["seconds/synthesis"],
        "student_images_per_second": steps * batch / last["seconds/student"],
        "seconds_of_first_rounds": sum(r.seconds for r in keep.records[:2]),
        "graphs_after_two_rounds": keep.records[1].metrics.get("graphs", 0.0),
        "graphs_at_the_end": last.get("graphs", 0.0),
        "peak_bytes": peak_bytes(task.runtime),
    }


def distance(job: Job, variant: str) -> dict[str, Any]:
    """Largest relative differences from eager fp32 over three batches, and whether they are within the tolerances."""
    n = 16 if job.miniature else 256
    held = images(job, "test") if job.miniature or job.data else None
    pixels = torch.randint(256, (3 * n, *job.shape), dtype=torch.uint8) if held is None else held.images[: 3 * n]
    labels = torch.arange(3 * n) % 10 if held is None else held.labels[: 3 * n]
    device = job.runtime().device
    batches = [(as_images(x.to(device)), y.to(device)) for x, y in zip(pixels.split(n), labels.split(n), strict=True)]
    found = compare(lambda settings: task_of(job, settings), variant, batches)
    within = all(d.within(variant, what) for what, many in found.items() for d in many)
    differences = {what: [asdict(d) for d in many] for what, many in found.items()}
    return {"differences": differences, "tolerances": TOLERANCES[variant], "within": within}


def main(argv: list[str] | None = None) -> None:
    """Every variant in turn; the record is written after each."""
    options = parser(__doc__)
    options.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    told = options.parse_args(argv)
    job, found = job_of(told), {}
    torch.backends.cudnn.allow_tf32 = False  # fp32 is what the others are compared with
    for variant in told.variants:
        try:
            found[variant] = {**speed(job, VARIANTS[variant]), **distance(job, variant)}
        except RuntimeError as error:
            found[variant] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        record(job, "variants", job.runtime(), {"pair": job.pair, "variants": found})


if __name__ == "__main__":
    main()
