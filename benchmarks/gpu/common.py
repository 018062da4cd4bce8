"""What the GPU scripts share: their options, images as files or drawn, networks, records.

The scripts need torch, numpy, Pillow, safetensors, jaxtyping and rich, and no other package; ``--miniature`` does
without files and ends in seconds on a CPU, so that a mistake shows there first.
"""

import argparse
import json
import lzma
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dfkd
from benchmarks.records import RESULTS, write_record
from dfkd.data._formats import read_cifar

SIDE = 40, 25  # images in a column and in a row of a packed sheet


@dataclass(frozen=True)
class Job:
    """What a script was asked for."""

    device: str
    miniature: bool
    data: tuple[Path, ...]
    teacher: Path | None
    out: Path
    seed: int
    precision: str
    compile_mode: str  # "off" or a mode of torch.compile

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the images."""
        return (3, 8, 8) if self.miniature else (3, 32, 32)

    @property
    def pair(self) -> tuple[str, str]:
        """Names of teacher and student."""
        return ("wrn10-1", "resnet8") if self.miniature else ("wrn40-2", "wrn16-2")

    def runtime(self, **changes: Any) -> dfkd.Runtime:
        """One process on the device, with the precision and the compilation asked for."""
        settings: dict[str, Any] = {"precision": self.precision, "compile": self.compile_mode != "off"}
        if settings["compile"]:
            settings["compile_mode"] = self.compile_mode
        # The miniature shows that the path is sound; Triton and a C++ compiler may be missing where it runs.
        backend = "eager" if self.miniature else "inductor"
        return dfkd.Runtime(device=self.device, seed=self.seed, backend=backend, **{**settings, **changes})


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument("--miniature", action="store_true", help="small drawn images, small networks, few steps")
    found.add_argument("--data", type=Path, nargs="+", default=(), help="folders with CIFAR-10, packed or unpacked")
    found.add_argument("--teacher", type=Path, default=None, help="folder that teach.py wrote")
    found.add_argument("--out", type=Path, default=None, help="folder of the record (default: $OUT, else results/gpu)")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    found.add_argument(
        "--compile", dest="compile_mode", choices=("off", "default", "reduce-overhead", "max-autotune"), default="off"
    )
    return found


def job_of(options: argparse.Namespace) -> Job:
    """The job, with the folder of its records made. fp32 means float32: convolutions are not rounded to TF32."""
    out = options.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = options.precision != "fp32"
    return Job(
        options.device,
        options.miniature,
        tuple(options.data),
        options.teacher,
        out,
        options.seed,
        options.precision,
        options.compile_mode,
    )


def images(job: Job, split: str) -> dfkd.ImageSet:
    """Labelled images of ``split`` ("train" or "test"): as many of CIFAR-10's batch files as the folders hold."""
    if job.miniature:
        return make_patterns(job.shape, 256 if split == "train" else 100, split == "train")
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    parts = [part for name in names for part in _batch(job.data, name)]
    if not parts:
        folders = ", ".join(map(str, job.data)) or "no folder"
        raise SystemExit(f"{split} images need CIFAR-10's {names[0]}, packed or not, got {folders}; give --data FOLDER")
    pixels, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return dfkd.ImageSet(pixels, labels, dfkd.class_list("cifar10"), f"cifar10 {split}")


def make_patterns(shape: tuple[int, int, int], n: int, train: bool) -> dfkd.ImageSet:
    """Ten patterns under noise: classes that a small network learns in a few steps."""
    patterns = torch.rand(10, *shape, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1 + train))
    labels = torch.arange(n) % 10
    pixels = (255 * (0.7 * patterns[labels] + 0.3 * noise)).round().to(torch.uint8)
    return dfkd.ImageSet(pixels, labels, dfkd.class_list("cifar10"), "drawn")


def normalisation(job: Job) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std."""
    return ((0.5,) * 3, (0.25,) * 3) if job.miniature else dfkd.STATISTICS["cifar10"]


def networks(job: Job) -> tuple[nn.Module, nn.Module]:
    """The teacher, trained where ``job.teacher`` or the miniature says so, and a fresh student."""
    torch.manual_seed(job.seed)
    teacher, student = (dfkd.build(name, classes=10).net for name in job.pair)
    if job.teacher is not None:
        from safetensors.torch import load_file

        teacher.load_state_dict(load_file(job.teacher / "weights.safetensors"))
    elif job.miniature:
        from dfkd.teacher import TeachPlan, teach

        mean, std = normalisation(job)
        held = images(job, "train")
        plan = TeachPlan(epochs=6, batch_size=32, flip=False, pad=0)
        teach(teacher, held.images, held.labels, plan, mean=mean, std=std, runtime=dfkd.Runtime(device=job.device))
    else:
        raise SystemExit("teacher needs trained weights, got none; run teach.py and give its folder with --teacher")
    return teacher, student


def matmul_rate(runtime: dfkd.Runtime, side: int) -> float:
    """FLOP/s of one large matrix product in the run's precision: what this device can do at best."""
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=runtime.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    runtime.wait()
    began = time.monotonic()
    for _ in range(10):
        a @ b
    runtime.wait()
    return 10 * 2 * side**3 / (time.monotonic() - began)


@torch.no_grad()
def macs(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds that one image (or code) of ``shape`` adds to a forward pass; the network's mode is put back."""
    training, like = net.training, next(net.parameters())
    net.eval()
    counted: list[int] = []
    for n in (1, 2):  # the difference leaves out what a pass costs once, such as adding up a generator's kernels
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(n, *shape, device=like.device))
        counted.append(int(counter.get_total_flops()))
    net.train(training)
    return (counted[1] - counted[0]) // 2


def peak_bytes(runtime: dfkd.Runtime) -> int | None:
    """Largest use of device memory so far; None on a CPU."""
    return torch.cuda.max_memory_allocated(runtime.device) if runtime.device.type == "cuda" else None


def record(job: Job, name: str, runtime: dfkd.Runtime, content: dict[str, Any]) -> Path:
    """Write ``NAME.json`` with what the device is, and show it."""
    cuda = runtime.device.type == "cuda"
    about = {
        "miniature": job.miniature,
        "device": torch.cuda.get_device_name(runtime.device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "precision": runtime.precision,
        "compile": runtime.compile_mode if runtime.compiled else "off",
        "seed": job.seed,
    }
    path = write_record(name, {**about, **content}, job.out)
    print(json.dumps({**about, **content}, indent=1), flush=True)
    return path


def _batch(folders: tuple[Path, ...], name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The images and labels of one batch file, from the first folder that has it; nothing where none has."""
    for folder in folders:
        for place in (folder, folder / "cifar-10-batches-py", folder / "cifar10"):
            if (place / name).is_file():
                return [_read_cifar(place / name)]
            if (place / f"{name}.frame.xz").is_file():
                with tempfile.TemporaryDirectory() as aside:
                    path = Path(aside) / name
                    path.write_bytes(_rebuild_file(place, name))
                    return [_read_cifar(path)]
    return []


def _read_cifar(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    held = read_cifar(path)
    pixels = torch.from_numpy(np.asarray(held["data"])).reshape(-1, 3, 32, 32)
    return pixels, torch.tensor(held["labels"], dtype=torch.int64)


def _rebuild_file(folder: Path, name: str) -> bytes:
    """The published file: the pixels of WebP sheets put into the frame that was left of it.

    A frame begins with the length of its first part (four bytes, little-endian); the pixels come after that part.
    """
    from PIL import Image

    frame = lzma.decompress((folder / f"{name}.frame.xz").read_bytes())
    cut = struct.unpack("<I", frame[:4])[0] + 4
    rows, columns = SIDE
    sheets = []
    for path in sorted(folder.glob(f"{name}.[0-9][0-9].webp")):
        sheet = np.asarray(Image.open(path).convert("RGB")).reshape(rows, 32, columns, 32, 3)
        sheets.append(sheet.transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32))
    return frame[4:cut] + np.concatenate(sheets).tobytes() + frame[cut:]
