"""`dfkd synthesize`: only the transfer set."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.cli.config import Distill, Synthesize
from dfkd.cli.job import full_recipe, prepare_job, task_of
from dfkd.cli.parse import Tree, fill
from dfkd.cli.setup import resolve, with_recipe
from dfkd.deploy.stored import stored_images
from dfkd.engine.checkpoint import pools_of, write_aside
from dfkd.engine.core import Clock, Method, Task
from dfkd.engine.driver import Watch
from dfkd.engine.driver import run as drive
from dfkd.engine.plan import Plan
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.ops.pixels import as_bytes
from dfkd.recipes import yaml_of
from dfkd.report.files import read_run
from dfkd.types import Bytes, Labels

__all__ = ["run"]


def run(tree: Tree, show: bool = False) -> int:
    """Take the newest images of a run, or run a recipe's plan and take those."""
    own_tree: Tree = {key: tree.pop(key) for key in ("run", "count", "format", "out") if key in tree}
    own_settings = fill(Synthesize, own_tree)
    if show:
        print(yaml_of(full_recipe(prepare_job(*resolve(Distill, with_recipe(tree))))), end="")
        return 0
    out = _free(own_settings)
    if own_settings.run is not None:
        if tree:
            raise UserError(f"synthesize needs --run alone, got also {', '.join(tree)}; a run keeps its own settings")
        images, labels, names = _from_run(Path(own_settings.run), own_settings.count)
    else:
        images, labels, names = _from_recipe(tree, own_settings.count)
    if own_settings.format == "png":
        _write_folder(out, images, labels, names)
    else:
        _write_file(out, images, labels, names)
    print(f"{len(images):,} images of {len(labels.unique())} classes in {out}")
    return 0


def _from_run(folder: Path, count: int) -> tuple[Bytes, Labels, tuple[str, ...]]:
    info = read_run(folder).info
    images, labels = stored_images(folder, count)
    return images, labels, info.names


def _from_recipe(tree: Tree, count: int) -> tuple[Bytes, Labels, tuple[str, ...]]:
    job = prepare_job(*resolve(Distill, with_recipe(tree)))
    task = task_of(job, runtime_of(job.settings.runtime).launch())
    images, labels = _make_images(task, job.method, job.plan, count)
    return images, labels, job.facts.names


def _make_images(task: Task, method: Method[Any], plan: Plan, count: int) -> tuple[Bytes, Labels]:
    """Run the plan; take what is stored, or, of a method that stores no images, what the student would see next."""
    state = drive(task, method, plan, Watch())
    pool = pools_of(state).get("pool")
    if pool is not None and "images" in pool.columns:
        rows = pool.newest(min(count, len(pool)))
        return rows["images"].cpu(), rows.get("labels", torch.zeros(len(rows["images"]), dtype=torch.int64)).cpu()
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.no_grad():
        while sum(len(part) for part in images) < count:
            batch = method.batch(task, state, Clock(plan, plan.total - 1, len(images) % plan.steps))
            images.append(as_bytes(batch.images).cpu())
            labels.append(
                (task.teacher(batch.images).logits.argmax(dim=1) if batch.labels is None else batch.labels).cpu()
            )
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def _free(settings: Synthesize) -> Path:
    if settings.count < 1:
        raise UserError(f"synthesize needs --count of at least 1, got {settings.count}; raise it")
    if settings.out is None:
        raise UserError("synthesize needs a place for the images, got none; give --out FOLDER")
    out = Path(settings.out)
    if out.exists():
        raise UserError(f"out needs a new folder, got {out}, which is there; choose another with --out")
    return out


def _write_folder(out: Path, images: Bytes, labels: Labels, names: tuple[str, ...]) -> None:
    """One folder for each class, written aside and renamed."""
    from PIL import Image

    if images.shape[1] not in (1, 3):
        raise UserError(f"PNG needs 1 or 3 channels, got {images.shape[1]}; use --format safetensors")
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = aside / _folder_name(label, names)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(folder / f"{number:06d}.png")
        aside.rename(out)
    except OSError as error:
        raise UserError(
            f"synthesize needs to write {out}, got {error.strerror or str(error)!r}; free space or choose another"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _folder_name(label: int, names: tuple[str, ...]) -> str:
    """The label, zeros in front so that folders sort in label order, and the class name without odd characters."""
    name = "".join(c if c.isalnum() else "_" for c in names[label])[:40] if names else ""
    return f"{label:04d}_{name}" if name else f"{label:04d}"


def _write_file(out: Path, images: Bytes, labels: Labels, names: tuple[str, ...]) -> None:
    """One file with images (uint8, n c h w) and labels."""
    from safetensors.torch import save_file

    tensors = {"images": images.contiguous(), "labels": labels.contiguous()}
    path = out / "images.safetensors"
    write_aside(path, lambda aside: save_file(tensors, aside, metadata={"names": json.dumps(list(names))}))
