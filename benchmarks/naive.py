"""NAYER the way research code does it, against ours: ``python -m benchmarks.naive [--pools 1000 8000]``.

The naive side keeps every synthetic image as a PNG file; lists the folder anew and builds a new DataLoader after every
synthetic batch; lets hooks copy and reduce the input of every BatchNorm layer in every forward pass, the student's
steps included; leaves gradients on for the weights of teacher and student while the generator learns; asks for the
loss as a number in every step; runs contiguous tensors and unfused optimisers; doubles the generator's maps before
it convolves them. Networks, losses, batch sizes and numbers of steps are those of our side, and the images decoded are
as many. It has one thing that is better than in the wild: its loader has no worker processes to start.

Rounds of both sides take turns in one process. Seconds are of the processor; the clock's are in the record.
``--ladder`` gives the habits up one after the other and times a round after each, all in one process, in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import dfkd
from benchmarks.cases import CASES, CLASSES, SHAPE, Case
from benchmarks.records import write_record
from dfkd.allocator import keep_freed_memory
from dfkd.engine.core import Clock
from dfkd.engine.driver import make_optimizer
from dfkd.methods.nayer import NayerState
from dfkd.nets.generators import ConvGenerator, NoisyLayer
from dfkd.ops.augment import crop_flip
from dfkd.ops.doubling import DoublingConv
from dfkd.ops.keep_best import keep_best, no_best
from dfkd.ops.moments import moments

STEPS, STUDENT_STEPS = 2, 8  # of a round; the paper has 60 and 400

# What research code does, in the order in which the ladder gives it up.
HABITS = {
    "files": "a PNG file per image, a new DataLoader per batch",
    "hooks": "BatchNorm hooks at work in the student's steps too",
    "statistics": "variances by copying every map",
    "gradients": "gradients for the frozen networks' weights",
    "layout": "contiguous maps",
    "numbers": "a number asked for in every step, unfused optimisers",
    "doubling": "the generator doubles its maps, then convolves them",
}


class _Doubled(nn.Module):
    """A layer of the generator as the papers draw it: double the map, then convolve it."""

    def __init__(self, layer: DoublingConv) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2), self.weight, padding=self.weight.shape[-1] // 2)


class PngFolder(Dataset[Tensor]):
    """Every PNG that is in a folder now, cropped and mirrored one by one."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        pixels = np.asarray(Image.open(self.files[number]).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
        i, j = torch.randint(9, (2,)).tolist()
        image = F.pad(image, (4, 4, 4, 4))[:, i : i + 32, j : j + 32]
        return image.flip(2) if torch.rand(()) < 0.5 else image


class Naive:
    """One run with these habits, in a folder of PNG files or, without the habit, in memory."""

    def __init__(self, case: Case, folder: Path, habits: Collection[str] = tuple(HABITS)) -> None:
        if not isinstance(case.method, dfkd.NAYER):
            raise TypeError("the naive loop is NAYER's")
        self.case, self.method, self.folder, self.made, self.habits = case, case.method, folder, 0, habits
        task = case.task()
        self.T, self.S = task.teacher.release(), task.student.release()
        self.layout = torch.contiguous_format if "layout" in habits else torch.channels_last
        for net in (self.T, self.S):
            net.to(memory_format=self.layout).requires_grad_(True)  # type: ignore[call-overload]
        self.mean, self.scale, self.text = task.teacher.mean, task.teacher.scale, task.text
        self.Z = NoisyLayer(384, self.method.width, case.batch, CLASSES)
        self.G = ConvGenerator(self.method.width, SHAPE, self.method.channels).to(memory_format=self.layout)  # type: ignore[call-overload]
        if "doubling" in habits:
            for block in (self.G.block1, self.G.block2):
                block[0] = _Doubled(block[0])
        self.pool: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.looking = False
        for norm in self._norms():
            norm.register_forward_hook(self._statistics)
        self.fused = "numbers" not in habits
        self.optimizer = torch.optim.SGD(
            self.S.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=False, fused=self.fused
        )
        self.loader: DataLoader[Tensor] | None = None

    def round(self) -> None:
        """One batch of images, then the student's steps."""
        self._synthesise()
        self.S.requires_grad_(True).train()
        self.T.eval()
        self.looking = "hooks" in self.habits
        drawn = self._batches()
        for _ in range(STUDENT_STEPS):
            x = self._normal(next(drawn))
            self.seen = []
            with torch.no_grad():
                t = self.T(x)
            loss = F.kl_div(F.log_softmax(self.S(x) / 20, dim=1), F.softmax(t / 20, dim=1), reduction="batchmean").mul(
                400
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if "numbers" in self.habits:
                loss.item()

    def _batches(self) -> Iterator[Tensor]:
        """The student's batches: from a loader of files, or from memory."""
        if "files" in self.habits:
            yield from self.loader or ()
            return
        images = torch.cat(self.pool)
        for _ in range(STUDENT_STEPS):
            rows = images[torch.randint(len(images), (self.case.batch,))]
            yield crop_flip(rows, torch.default_generator).float().div(255)

    def _synthesise(self) -> None:
        if self.text is None:
            raise RuntimeError("NAYER needs text embeddings")
        for net in (self.T, self.S):
            net.requires_grad_("gradients" in self.habits).eval()
        self.looking = True
        self.Z.redraw()
        y = torch.arange(self.case.batch) % CLASSES
        weights = [*self.G.parameters(), *self.Z.parameters()]
        optimizer = torch.optim.Adam(weights, lr=4e-3, betas=(0.5, 0.999), fused=self.fused)
        best, kept, state = float("inf"), torch.empty(0), no_best(torch.empty(self.case.batch, *SHAPE))
        for _ in range(STEPS):
            x = self.G(self.Z(self.text[y]))
            shown = self._normal(crop_flip(x, torch.default_generator))
            self.seen = []
            t, s = self.T(shown), self.S(shown)
            bn = torch.stack(self.seen).sum()
            agreed = (t.argmax(1) == s.argmax(1)).float()
            adv = -(F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="none").sum(1) * agreed).mean()
            loss = 0.5 * F.cross_entropy(t, y) + 1.33 * adv + 10 * bn
            if "numbers" not in self.habits:
                state = keep_best(state, loss, x)
                kept = state.images
            elif loss.item() < best:
                best, kept = loss.item(), x.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.store(kept.mul(255).to(torch.uint8))
        if "files" not in self.habits:
            return
        drawn = torch.utils.data.RandomSampler(PngFolder(self.folder), True, STUDENT_STEPS * self.case.batch)
        self.loader = DataLoader(PngFolder(self.folder), batch_size=self.case.batch, sampler=drawn)

    def store(self, images: Tensor) -> None:
        """One PNG file each, or all of them in memory."""
        if "files" not in self.habits:
            self.pool = [torch.cat([*self.pool, images.contiguous()])]
            return
        for pixels in images.permute(0, 2, 3, 1).contiguous().numpy():
            Image.fromarray(pixels).save(self.folder / f"{self.made}.png")
            self.made += 1

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.T.modules() if isinstance(module, nn.BatchNorm2d)]

    def _statistics(self, module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if not self.looking:
            return
        x, stored = given[0], module
        if "statistics" in self.habits:
            mean = x.mean([0, 2, 3])
            var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        else:
            mean, var = moments(x)
        self.seen.append((mean - stored.running_mean).norm() + (var - stored.running_var).norm())  # type: ignore[operator]

    def _normal(self, images: Tensor) -> Tensor:
        return ((images - self.mean) * self.scale).contiguous(memory_format=self.layout)


class Ours:
    """The same budget through the method's own verbs."""

    def __init__(self, case: Case, pool: int) -> None:
        method: Any = replace(case.method, steps=STEPS, memory=pool + 50 * case.batch)  # type: ignore[type-var]
        self.method, self.plan = method, replace(case.plan, steps=STUDENT_STEPS)
        self.task = case.task()
        self.state: NayerState = method.setup(self.task, self.plan)
        self.optimizer = make_optimizer(list(self.task.student.net.parameters()), self.plan)

    def round(self) -> None:
        """As the driver does it."""
        self.task.student.freeze()
        self.method.synthesize(self.task, self.state, Clock(self.plan, 1))
        self.task.student.requires_grad_(True).train()
        for k in range(STUDENT_STEPS):
            with torch.no_grad():
                batch = self.method.batch(self.task, self.state, Clock(self.plan, 1, k))
            self.task.runtime.step(self.method.loss(self.task, self.state, batch), self.optimizer)


def compare(case: Case, pool: int, repeats: int) -> dict[str, Any]:
    """Seconds of a round of both sides, with ``pool`` images already there."""
    seconds: dict[str, list[float]] = {f"{side}/{clock}": [] for side in ("ours", "naive") for clock in ("cpu", "wall")}
    images = torch.randint(256, (pool, *SHAPE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        naive, ours = Naive(case, Path(folder)), Ours(case, pool)
        naive.store(images)
        ours.state.pool.add(images=images, labels=torch.zeros(pool, dtype=torch.int64))
        sides = {"ours": ours.round, "naive": naive.round}
        for turn in range(repeats + 1):
            for name, side in sides.items():
                began = time.perf_counter(), time.process_time()
                side()
                if turn:  # the first warms up
                    seconds[f"{name}/wall"].append(time.perf_counter() - began[0])
                    seconds[f"{name}/cpu"].append(time.process_time() - began[1])
    turns = zip(seconds["naive/cpu"], seconds["ours/cpu"], strict=True)
    return {"pool": pool, "seconds": seconds, "times_quicker": statistics.median(a / b for a, b in turns)}


def climb(case: Case, pool: int, repeats: int) -> dict[str, Any]:
    """Rounds an hour with all habits, with one less after the other, and of our loop."""
    images = torch.randint(256, (pool, *SHAPE), dtype=torch.uint8)
    names, sides = list(HABITS), dict[str, Callable[[], None]]()
    with tempfile.TemporaryDirectory() as folder:
        for given_up in range(len(names) + 1):
            rung = Naive(case, Path(folder), names[given_up:])
            rung.store(images)
            sides["all habits" if given_up == 0 else f"without {names[given_up - 1]}"] = rung.round
        ours = Ours(case, pool)
        ours.state.pool.add(images=images, labels=torch.zeros(pool, dtype=torch.int64))
        sides["ours"] = ours.round
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(repeats + 1):
            for name, side in sides.items():
                began = time.process_time()
                side()
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - began)
    return {"pool": pool, "cpu_seconds": seconds, "habits": HABITS}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="nayer-small", choices=[name for name in CASES if name.startswith("nayer")])
    parser.add_argument("--pools", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ladder", action="store_true", help="give the habits up one by one (first of --pools)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    case = CASES[options.case]
    about = {"case": options.case, "batch": case.batch, "steps": STEPS, "student_steps": STUDENT_STEPS}
    if options.ladder:
        rungs = climb(case, options.pools[0], options.repeats)
        print({name: round(3600 / statistics.median(took)) for name, took in rungs["cpu_seconds"].items()})
        write_record(f"speed/ladder-{options.case}", {**about, **rungs})
        return
    found = []
    for pool in options.pools:
        found.append(compare(case, pool, options.repeats))
        print(f"pool of {pool:,}: {found[-1]['times_quicker']:.2f} times quicker", flush=True)
        write_record(f"speed/naive-{options.case}", {**about, "pools": found})


if __name__ == "__main__":
    main()
