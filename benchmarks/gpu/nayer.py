"""NAYER, E = 100, WRN-40-2 to WRN-16-2 on CIFAR-10: ``python -m benchmarks.gpu.nayer --data DIR --teacher DIR``.

Goal: at least 93.48 % (the paper's figure) within five minutes on one GPU, and where the time goes: the multiply-adds
of both phases, and what they would take at the rate of a large matrix product.
"""

import time
from dataclasses import replace

import dfkd
from benchmarks.gpu.common import (
    Job,
    images,
    job_of,
    macs,
    matmul_rate,
    networks,
    normalisation,
    parser,
    peak_bytes,
    record,
)
from dfkd.engine.plan import Plan
from dfkd.methods import NAYER
from dfkd.nets.generators import ConvGenerator

PLAN = replace(NAYER.default_plan, rounds=100)
SMALL = NAYER(steps=3, synthesis_batch=20, batches=1, warmup_batches=1, width=16, channels=8, pad=1, flip=False)


def flops(job: Job, method: NAYER, plan: Plan, teacher: int, student: int) -> tuple[int, int]:
    """FLOPs of the student phase and of synthesis; a backward pass costs one forward pass for each thing it finds.

    Student phase: T forward; S forward, and backward for inputs and weights. Synthesis: G forward and twice backward,
    T forward and backward for the inputs, S the same but for warm-up rounds.
    """
    generator = macs(ConvGenerator(method.width, job.shape, method.channels), (method.width,))
    learnt = 2 * plan.rounds * plan.steps * plan.batch_size * (teacher + 3 * student)
    warm = plan.warmup * method.warmup_batches * (3 * generator + 2 * teacher)
    rest = plan.rounds * method.batches * (3 * generator + 2 * teacher + 2 * student)
    return learnt, 2 * method.synthesis_batch * method.steps * (warm + rest)


def main(argv: list[str] | None = None) -> None:
    """Distil, evaluate at the end only, break the time down."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=None)
    told = options.parse_args(argv)
    job = job_of(told)
    small = Plan(rounds=2, warmup=1, steps=4, batch_size=16, lr=0.05)
    plan = small if job.miniature else PLAN
    plan = plan if told.rounds is None else replace(plan, rounds=told.rounds)
    method = SMALL if job.miniature else NAYER()
    (mean, std), (teacher, student), test = normalisation(job), networks(job), images(job, "test")
    cost = macs(teacher, job.shape), macs(student, job.shape)
    runtime = job.runtime()
    began = time.monotonic()
    done = dfkd.distill(
        dfkd.Classifier(teacher, name=job.pair[0]),
        dfkd.Classifier(student, name=job.pair[1]),
        method,
        image_size=job.shape,
        mean=mean,
        std=std,
        classes=test.names,
        plan=plan,
        test=test,
        runtime=runtime,
        progress=False,
        evaluate_every=plan.total,
        samples_every=0,
    )
    seconds = time.monotonic() - began
    rounds, rate = done.record.rounds, matmul_rate(runtime, 256 if job.miniature else 8192)
    learnt, made = flops(job, method, plan, *cost)
    spent = {phase: sum(r.metrics[f"seconds/{phase}"] for r in rounds) for phase in ("student", "synthesis")}
    first = rounds[0].seconds + rounds[plan.warmup].seconds
    teacher_score, graphs = done.record.teacher_evaluation, [r.metrics.get("graphs", 0.0) for r in rounds]
    content = {
        "pair": job.pair,
        "rounds": plan.rounds,
        "accuracy": done.accuracy,
        "teacher_accuracy": None if teacher_score is None else teacher_score.accuracy,
        "seconds": seconds,
        "seconds_by_phase": {**spent, "other": seconds - sum(spent.values())},
        "seconds_of_first_rounds": first,
        "flops": {"student": learnt, "synthesis": made},
        "matmul_flops_per_second": rate,
        "floor_seconds": (learnt + made) / rate,
        "share_of_floor_rate": {
            "student": learnt / spent["student"] / rate,
            "synthesis": made / spent["synthesis"] / rate,
        },
        "images": rounds[-1].metrics.get("images"),
        "graphs_after_first_rounds": graphs[min(plan.warmup, len(graphs) - 1)],
        "graphs_at_the_end": graphs[-1],
        "peak_bytes": peak_bytes(runtime),
        "goal": {"accuracy": 0.9348, "seconds": 300},
    }
    record(job, "nayer", runtime, content)


if __name__ == "__main__":
    main()
