"""One round of every method, WRN-40-2 to WRN-16-2, CIFAR-10's size: ``python -m benchmarks.gpu.rounds --teacher DIR``.

Every method runs with its own settings and its published plan, of which :func:`dfkd.estimate` measures the first
rounds and says what the whole would take. The record is written after each method, so a run that is cut off leaves what
it has. ``--methods NAYER STTS`` picks some.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import torch

import dfkd
from benchmarks.gpu.common import Job, images, job_of, networks, normalisation, parser, peak_bytes, record
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.methods import CMI, D3K, DAFL, DFND, KD3, METHODS, NAYER, STTS, NoiseInput, SpaceshipNet, VanillaKD

SMALL: Mapping[str, Method[Any]] = MappingProxyType(
    {
        "CMI": CMI(steps=2, synthesis_batch=10, bank=20, negatives=10, width=8, channels=4, pad=1),
        "D3K": D3K(steps=2, synthesis_batch=10, batches=1, widths=(4, 8), width=8, pad=1, hash_pool=2),
        "DAFL": DAFL(width=8, channels=4),
        "DFND": DFND(selected=20, pad=1, block=32),
        "KD3": KD3(v_th=0.2, head_width=8, pad=1, block=32),
        "NAYER": NAYER(steps=2, synthesis_batch=10, batches=1, warmup_batches=1, width=8, channels=4, pad=1),
        "NoiseInput": NoiseInput(),
        "SpaceshipNet": SpaceshipNet(steps=2, synthesis_batch=10, width=8, channels=4, pad=1),
        "STTS": STTS(steps=2, synthesis_batch=10, pad=1),
        "VanillaKD": VanillaKD(pad=1),
    }
)


def settings(job: Job, name: str) -> tuple[Method[Any], Plan]:
    """The method and its plan: as published, or as small as can be."""
    method = SMALL[name] if job.miniature else METHODS[name]()
    plan = type(method).default_plan
    if job.miniature:
        turns = 3 if plan.turns > 1 else 1
        plan = replace(plan, rounds=3, warmup=min(plan.warmup, 2), steps=3, turns=turns, batch_size=16)
    return method, plan


def measure(job: Job, name: str, web: torch.Tensor) -> dict[str, Any]:
    """One method's estimate; the seconds it took to make it say what a first look costs."""
    method, plan = settings(job, name)
    teacher, student = networks(job)
    if name == "KD3":
        student = dfkd.share_head(teacher, student, job.shape)
    mean, std = normalisation(job)
    runtime = job.runtime().launch()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(runtime.device)
    labels = torch.arange(len(web)) % 10  # for the yardstick on real data: only its speed is asked for
    task = dfkd.build_task(
        teacher, student, image_size=job.shape, mean=mean, std=std, classes=10, text=torch.randn(10, 384), web=web,
        real=(web, labels), runtime=runtime,
    )  # fmt: skip
    began = time.monotonic()
    found = dfkd.estimate(task, method, plan)
    return {
        **asdict(found),
        "hours": found.total / 3600,
        "rounds": plan.total,
        "seconds_per_round": (found.total - found.seconds["start"]) / plan.total,
        "student_steps_per_second": plan.rounds * plan.steps / found.seconds["student"],
        "measured_in_seconds": time.monotonic() - began,
        "peak_bytes": peak_bytes(runtime),
        "graphs": runtime.graphs,
    }


def main(argv: list[str] | None = None) -> None:
    """Every method in turn."""
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    told = options.parse_args(argv)
    job = job_of(told)
    # KD3 selects from natural images; the miniature takes those its teacher knows, or it would find none to select.
    web = images(job, "train").images if job.miniature or job.data else drawn_web(job)
    found: dict[str, Any] = {}
    for name in told.methods:
        try:
            found[name] = measure(job, name, web)
        except (dfkd.UserError, RuntimeError) as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        record(job, "rounds", job.runtime(), {"pair": job.pair, "methods": found})


def drawn_web(job: Job) -> torch.Tensor:
    """As many random images as CIFAR-10 has."""
    stream = torch.Generator().manual_seed(job.seed)
    return torch.randint(256, (50_000, *job.shape), dtype=torch.uint8, generator=stream)


if __name__ == "__main__":
    main()
