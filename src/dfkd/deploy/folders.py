"""Where exports read and write: the images of a run, and a folder that is replaced as a whole or not at all."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dfkd.data._sources import decoded_files, image_files
from dfkd.deploy.loading import Opened
from dfkd.deploy.stored import stored_images
from dfkd.errors import UserError
from dfkd.types import Bytes

__all__ = ["EXPORT_FILE", "FEWEST", "check_replaceable", "images_for", "replacing"]

EXPORT_FILE = "export.json"
FEWEST = 64  # images for calibration


def images_for(network: Opened, count: int, source: Bytes | str | Path | None = None, who: str = "export") -> Bytes:
    """At most ``count`` images: those given, of a folder, or the newest of the run.

    Raises:
        UserError: none, or of another size.
    """
    size = network.predictor.image_size
    if source is None:
        return stored_images(network.folder, count, who)[0]
    if isinstance(source, Tensor):
        if source.dtype != torch.uint8 or tuple(source.shape[1:]) != size:
            raise UserError(
                f"{who} needs uint8 images {size}, got {source.dtype} of shape {tuple(source.shape[1:])}; convert them"
            )
        return source[:count].cpu()
    folder = Path(source).expanduser()
    files = image_files(folder)
    step = max(1, len(files) // count)
    blocks = [torch.from_numpy(block) for block, _ in decoded_files(files[::step][:count], size)]
    images = torch.cat(blocks) if blocks else torch.zeros(0, *size, dtype=torch.uint8)
    if not len(images):
        raise UserError(f"{who} needs a folder of images, got {folder} without any that can be read; give another")
    return images


def is_export(folder: Path) -> bool:
    """Whether ``folder`` holds an export."""
    return (folder / EXPORT_FILE).is_file()


def check_replaceable(folder: Path, who: str = "export", is_earlier: Callable[[Path], bool] = is_export) -> None:
    """Refuse, before any work, a folder that holds something else than what is to be replaced.

    Args:
        folder: to be replaced; it may be missing or empty.
        who: writes it, for messages.
        is_earlier: whether a folder holds what ``who`` wrote there before.

    Raises:
        UserError: it is a file, holds something else, or is where the process stands.
    """
    if Path.cwd().is_relative_to(folder.resolve()):  # it would be moved from under the shell
        raise UserError(
            f"{who} needs a folder below the one you are in, or elsewhere, got {folder}; choose another with --out"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{who} needs a folder to write to, got the file {folder}; choose another with --out")
    if folder.is_dir() and any(folder.iterdir()) and not is_earlier(folder):
        raise UserError(
            f"{who} needs a new folder or its own earlier one, got {folder} with other files in it; choose another "
            "with --out"
        )


@contextmanager
def replacing(folder: Path, who: str = "export") -> Iterator[Path]:
    """A folder to write in, which takes the place of ``folder`` at the end; on an error nothing has changed.

    What processes left that were killed here is put right first. ``who`` writes, for messages.

    Raises:
        UserError: no space, or no permission.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _mend(folder)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    except OSError as error:
        raise UserError(
            f"{who} needs to write {folder}, got {error.strerror or str(error)!r}; free space, or choose another "
            "place with --out"
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _mend(folder: Path) -> None:
    """Bring ``folder`` back where a killed process had moved it away, and remove what such processes left beside it."""
    leftovers = _leftovers(folder)
    earlier = [path for path in leftovers if path.suffix == ".old"]
    if earlier and not folder.exists():
        max(earlier, key=lambda path: path.stat().st_mtime).rename(folder)
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    """Folders that :func:`replacing` made beside ``folder`` in processes that are gone."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)\.(?:tmp|old)")
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    matches = [(path, name.fullmatch(path.name)) for path in beside]
    return [
        path
        for path, match in matches
        if match is not None and path.is_dir() and not path.is_symlink() and not _is_another_process(int(match[1]))
    ]


def _is_another_process(number: int) -> bool:
    """Whether a process of this number runs that is not this one: in a container a new one has the old one's number."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
