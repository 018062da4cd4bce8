"""Teach WRN-40-2 on CIFAR-10: ``python -m benchmarks.gpu.teach --data DIR --out DIR``.

Goal: at least 94.5 % on the test images within six minutes on one GPU. Writes the record ``teach.json`` and the folder
``teacher`` for the other scripts.
"""

import torch

import dfkd
from benchmarks.gpu.common import Job, images, job_of, macs, matmul_rate, normalisation, parser, peak_bytes, record
from dfkd.teacher import Epoch, TeachPlan, save_teacher, teach


def plan_of(job: Job, epochs: int | None, batch_size: int | None) -> TeachPlan:
    """Larger batches than usual, the rate raised with them, for a device that wants much at once."""
    if job.miniature:
        return TeachPlan(epochs=epochs or 3, batch_size=batch_size or 32, pad=0, flip=False)
    size = batch_size or 512
    return TeachPlan(epochs=epochs or 100, batch_size=size, lr=0.1 * size / 128)


def show(epoch: Epoch) -> None:
    """One line in ten."""
    if epoch.number % 10 == 0 or epoch.number == epoch.epochs:
        print(f"epoch {epoch.number}/{epoch.epochs} loss {epoch.loss:.3f} train {epoch.accuracy:.2%}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Teach, measure, write."""
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=None)
    options.add_argument("--batch-size", type=int, default=None)
    told = options.parse_args(argv)
    job, runtime = job_of(told), None
    plan, (mean, std) = plan_of(job, told.epochs, told.batch_size), normalisation(job)
    train, test = images(job, "train"), images(job, "test")
    torch.manual_seed(job.seed)
    built = dfkd.build(job.pair[0], classes=10)
    runtime = job.runtime()
    done = teach(
        built.net,
        train.images,
        train.labels,
        plan,
        mean=mean,
        std=std,
        test=(test.images, test.labels),
        runtime=runtime,
        watch=show,
    )
    names = train.names
    save_teacher(
        job.out / "teacher",
        done,
        spec=built.spec,
        image_shape=job.shape,
        names=names,
        classes=10,
        mean=mean,
        std=std,
        plan=plan,
        seed=job.seed,
    )
    flops = 6 * macs(built.net, job.shape) * plan.epochs * (len(train.images) // plan.batch_size) * plan.batch_size
    content = {
        "network": job.pair[0],
        "images": len(train.images),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "accuracy": done.accuracy,
        "seconds": done.seconds,
        "flops": flops,
        "flops_per_second": flops / done.seconds,
        "matmul_flops_per_second": matmul_rate(runtime, 256 if job.miniature else 8192),
        "peak_bytes": peak_bytes(runtime),
        "goal": {"accuracy": 0.945, "seconds": 360},
    }
    record(job, "teach", runtime, content)


if __name__ == "__main__":
    main()
