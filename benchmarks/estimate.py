"""How far does agreement on held-out synthetic images tell the accuracy that nobody can measure without test images?

Many short runs of all methods on four small data sets, good ones and spoilt ones, each with the estimate of
``dfkd.engine.heldout`` and, beside it, the accuracy on real test images. Runs are seconds long and their networks tiny:
the study is about how well signals order and predict runs, not about how good methods are.

    python -m benchmarks.estimate run --data .data --hours 1     # resumes where it stopped
    python -m benchmarks.estimate judge                          # tables from what was run
    python -m benchmarks.estimate plot                           # docs/assets/estimate.svg, likewise
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfkd
from benchmarks.estimate_plot import draw
from benchmarks.estimate_tables import judge
from benchmarks.records import RESULTS, provenance
from dfkd.data._formats import read_cifar
from dfkd.data._pixels import resize
from dfkd.data.readers import read_images
from dfkd.data.rows import open_rows
from dfkd.engine.core import Method, Need
from dfkd.engine.driver import Watch
from dfkd.engine.driver import run as drive
from dfkd.engine.heldout import make_gauge
from dfkd.engine.plan import Plan
from dfkd.engine.records import Keep
from dfkd.engine.runtime import Runtime
from dfkd.methods import METHODS
from dfkd.nets.zoo import Classifier
from dfkd.ops.pixels import as_images
from dfkd.prepare import build_task
from dfkd.report.collapse import warnings_of
from dfkd.report.files import plain
from dfkd.settings import Images

FILE = RESULTS / "estimate" / "runs.jsonl"
GENERATES = ("CMI", "D3K", "NAYER", "SpaceshipNet", "STTS")  # their images can collapse
KINDS = ("good", "short", "normalisation", "slow student", "tiny student", "wild synthesis", "long")
LONG = 5  # times as many rounds, with three times the steps for every batch of images
PLAN = Plan(warmup=0, steps=20, batch_size=64, lr=0.1, weight_decay=1e-4)
ROUNDS = {"digits": 16, "mnist": 16, "cifar10": 10, "cifar20": 10}


class Small(nn.Module):
    """Three convolutions with BatchNorm, global pooling, one linear layer."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1 + (i > 0), 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


Taught = tuple[Classifier, list[float], list[float], float]  # network, mean, std, test accuracy


def small(width: int, channels: int, classes: int) -> Classifier:
    """The network with its layers named."""
    return Classifier(Small(width, channels, classes), "head", ("stages.0", "stages.1", "stages.2"))


@dataclass(frozen=True)
class Set:
    """Images for a teacher, images for the test, and unlabelled ones for methods that select."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    web: Tensor
    epochs: int

    @property
    def classes(self) -> int:
        """K."""
        return int(self.train[1].max()) + 1


def sets(data: Path) -> Mapping[str, Callable[[], Set]]:
    """The data sets by name, each read when it is asked for."""

    def digits() -> Set:
        train, test = (read_images("digits", split) for split in ("train", "test"))
        return Set(
            (train.images, train.labels), (test.images, test.labels), _web(data / "strokes32.npy", (1, 8, 8)), 30
        )

    def mnist() -> Set:
        source = f"mnist:{data / 'MNIST' / 'raw'}"
        parts = [_small_images(source, split, n, 1, side=8) for split, n in (("train", 8000), ("test", 1000))]
        return Set(parts[0], parts[1], _web(data / "strokes32.npy", (1, 8, 8)), 8)

    def cifar10() -> Set:
        folder = data / "cifar-10-batches-py"
        parts = [_small_images(f"cifar10:{folder}", split, n, 3) for split, n in (("train", 10_000), ("test", 1000))]
        return Set(parts[0], parts[1], _web(data / "web32.npy", (3, 16, 16)), 10)

    def cifar20() -> Set:
        held: Any = read_cifar(data / "cifar-100-python" / "test")  # its 20 coarse classes
        pixels = torch.from_numpy(resize(held["data"].reshape(-1, 3, 32, 32), 16, 16))
        labels = torch.tensor(held["coarse_labels"])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        teach, test = order[:8000], order[8000:9000]
        web = _web(data / "web32.npy", (3, 16, 16))
        return Set((pixels[teach], labels[teach]), (pixels[test], labels[test]), web, 12)

    return {"digits": digits, "mnist": mnist, "cifar10": cifar10, "cifar20": cifar20}


def _web(file: Path, shape: tuple[int, int, int], count: int = 2000) -> Tensor:
    """The first images of a file, resized."""
    rows = open_rows(file, (3, 32, 32) if shape[0] == 3 else (1, 32, 32))
    images = rows.take(torch.arange(min(count, len(rows))))
    return torch.from_numpy(resize(images.numpy(), shape[1], shape[2]))


def _small_images(source: str, split: str, count: int, channels: int, side: int = 16) -> tuple[Tensor, Tensor]:
    held = read_images(source, split, side=side, channels=channels)
    chosen = torch.randperm(len(held.labels), generator=torch.Generator().manual_seed(0))[:count]
    return held.images[chosen], held.labels[chosen]


def teacher_of(held: Set, width: int = 16) -> Taught:
    """A teacher with its normalisation and its test accuracy; the same weights every time."""
    x, y = as_images(held.train[0]), held.train[1]
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    torch.manual_seed(0)
    teacher = small(width, x.shape[1], held.classes)
    normal = (x - mean[None, :, None, None]) / std[None, :, None, None]
    optimizer = torch.optim.SGD(teacher.net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, held.epochs)
    for _ in range(held.epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(teacher.net(normal[rows]), y[rows]).backward()
            optimizer.step()
        rate.step()
    teacher.net.eval()
    test = (as_images(held.test[0]) - mean[None, :, None, None]) / std[None, :, None, None]
    with torch.no_grad():
        accuracy = float((teacher.net(test).argmax(1) == held.test[1]).double().mean())
    return teacher, mean.tolist(), std.tolist(), accuracy


def method_for(name: str, kind: str, shape: tuple[int, int, int]) -> Method[Any]:
    """Sizes for seconds; wild: steps so large that images do not follow what they are made for."""
    sizes: dict[str, Any] = {"steps": 8, "synthesis_batch": 64, "batches": 1, "warmup_batches": 1, "memory": 2048}
    sizes |= {"channels": 8}
    sizes |= {"width": 32, "widths": (8, 32), "flip": shape[0] == 3, "bank": 512, "negatives": 256, "head_width": 32}
    sizes |= {"pad": shape[1] // 8, "block": 256, "v_th": 0.5}
    kind_of: Any = METHODS[name]
    known = {item.name: item.default for item in fields(kind_of)}
    told = {key: value for key, value in sizes.items() if key in known}
    told |= {"share_head": False} if "share_head" in known else {}
    if name == "STTS":
        told |= {"steps": 40, "batches": 4, "lr": 0.05}
    else:
        told |= {"lr": 0.01} if "lr" in known else {}
    if kind == "wild synthesis":
        told["lr"] = 3.0
    if kind == "long" and "steps" in told:
        told["steps"] *= 3
    made: Method[Any] = kind_of(**told)
    return made


def cases() -> list[tuple[str, str, str]]:
    """(data, method, kind), in an order in which every part is a fair sample of the whole; the long ones last."""
    every = [
        (data, method, kind)
        for data in ("digits", "mnist", "cifar10", "cifar20")
        for method in ("CMI", "D3K", "DFND", "KD3", "NAYER", "NoiseInput", "STTS", "SpaceshipNet", "VanillaKD")
        for kind in KINDS
        if (kind != "wild synthesis" or method in GENERATES) and (method, kind) != ("KD3", "tiny student")
    ]
    parts = [[case for case in every if (case[2] == "long") == long] for long in (False, True)]
    orders = [torch.randperm(len(part), generator=torch.Generator().manual_seed(0)).tolist() for part in parts]
    return [part[i] for part, order in zip(parts, orders, strict=True) for i in order]


def distil_once(
    held: Set, teacher: tuple[Classifier, list[float], list[float], float], name: str, kind: str, rounds: int
) -> dict[str, Any]:
    """One run: what was estimated, what the test images say."""
    network, mean, std, reference = teacher
    channels, side = held.train[0].shape[1], held.train[0].shape[2]
    shape = (channels, side, side)
    if kind == "normalisation":
        mean, std = [0.0] * channels, [3.0 * value for value in std]
    method = method_for(name, kind, shape)
    rounds = {"short": 1, "long": LONG * rounds}.get(kind, rounds)
    plan = replace(PLAN, rounds=rounds, lr=1e-4 if kind == "slow student" else PLAN.lr)
    plan = replace(plan, warmup=2 if name == "STTS" else 0)
    torch.manual_seed(1)
    width = 16 if name == "KD3" else 10  # KD3's student reads the teacher's features
    student = small(1 if kind == "tiny student" else width, channels, held.classes)
    needs = method.needs()
    data = Images(image_size=shape, mean=mean, std=std, classes=held.classes)
    data.web = held.web if Need.WEB in needs else None
    data.real = held.train if Need.REAL in needs else None
    runtime = Runtime(device="cpu", seed=1, channels_last=False).launch()
    began = time.process_time()
    task = build_task(network, student, data=data, text="index", runtime=runtime)
    keep = Keep()
    gauge = make_gauge(task, method, plan)
    made = time.process_time()
    watch = Watch(observers=(keep,), test=held.test, evaluate_every=99, gauge=gauge)
    drive(task, method, plan, watch)
    last = keep.records[-1]
    task.teacher.release()
    task.student.release()
    return {
        "teacher_accuracy": reference,
        "accuracy": last.evaluation.accuracy if last.evaluation else None,
        "agreement": last.evaluation.agreement if last.evaluation else None,
        "estimate": plain(last.estimate),
        "metrics": plain(last.metrics),
        "warnings": [concern.kind for concern in warnings_of(keep.records, held.classes)],
        "cpu_seconds": {"held-out images": made - began, "run": time.process_time() - made},
    }


def run(data: Path, out: Path, hours: float) -> None:
    """Run what has not been run yet, one line a run, until the time is up."""
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.read_text().splitlines() if out.exists() else []
    done = {tuple(json.loads(line)["case"]) for line in lines}
    known = sets(data)
    made: dict[str, tuple[Set, Taught]] = {}
    until = time.monotonic() + 3600 * hours
    for case in cases():
        if case in done or time.monotonic() > until:
            continue
        name, method, kind = case
        if name not in made:
            held = known[name]()
            made[name] = held, teacher_of(held)
            print(name, f"teacher {made[name][1][3]:.3f}", flush=True)
        row: dict[str, Any] = {"case": case}
        try:
            row |= distil_once(*made[name], method, kind, ROUNDS[name])
        except dfkd.UserError as error:  # a lost student is a result too
            row |= {"failed": str(error)}
        with out.open("a") as file:
            file.write(json.dumps({**row, "provenance": provenance()}, ensure_ascii=False) + "\n")
        print(*case, row.get("accuracy"), row.get("failed", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "judge", "plot"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--hours", type=float, default=1.0)
    told = parser.parse_args()
    if told.what == "run":
        run(told.data, told.file, told.hours)
    elif told.what == "plot":
        print(draw(told.file))
    else:
        print(judge(told.file))


if __name__ == "__main__":
    main()
