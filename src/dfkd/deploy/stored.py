"""The synthetic images that lie in the checkpoint of a run, read without its networks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfkd.engine.checkpoint import Checkpoint
from dfkd.errors import UserError
from dfkd.report.files import RUN_FILE
from dfkd.runs import CHECKPOINT_FOLDER
from dfkd.types import Bytes, Labels

__all__ = ["stored_images"]


def stored_images(folder: Path, count: int, who: str = "synthesize") -> tuple[Bytes, Labels]:
    """The newest ``count`` images in the checkpoint of a run, with their labels; every process has its share of them.

    Args:
        folder: of the run.
        count: images at most.
        who: wants them, for messages.

    Raises:
        UserError: no checkpoint, or a method that stores no images.
    """
    saves = Checkpoint(folder / CHECKPOINT_FOLDER)
    if not saves.exists() and not (folder / RUN_FILE).is_file() and who != "synthesize":
        raise UserError(f"{who} needs images, got {folder}, which is no run and has none; give a folder with --images")
    if not saves.exists():
        raise UserError(f"{who} needs a run with a checkpoint, got {folder} without; let it finish a round first")
    paths = saves.pool_files("pool", who)
    parts = [_rows(path, who) for path in paths]
    if not parts or "images" not in parts[0]:
        instead = "give its recipe instead of --run" if who == "synthesize" else "give images of your own"
        raise UserError(f"{who} needs a run whose method stores images, got {folder}; {instead}")
    images = torch.cat([part["images"] for part in parts])
    empty = torch.zeros(0, dtype=torch.int64)
    labels = torch.cat([part.get("labels", empty.new_zeros(len(part["images"]))) for part in parts])
    newest = _ages(paths, [len(part["images"]) for part in parts]).argsort(stable=True)[:count].flip(0)
    return images[newest], labels[newest]


def _ages(paths: Sequence[Path], sizes: Sequence[int]) -> Tensor:
    """How many rows of its own process are newer than each row (n,) of the segments, which lie one after another."""
    processes = [path.name.split("-")[1] for path in paths]  # pool-<process>-<pool>-...
    totals = dict.fromkeys(processes, 0)
    for process, size in zip(processes, sizes, strict=True):
        totals[process] += size
    return torch.cat([torch.arange(total - 1, -1, -1) for total in totals.values()])


def _rows(path: Path, who: str) -> dict[str, Tensor]:
    try:
        rows: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise UserError(f"{who} needs a readable checkpoint, got {path} ({type(error).__name__}); run again") from error
    return rows
