"""The folder of a search: what is searched, the images all trials are judged on, and who may change it now.

``search.json`` is written last: a folder that has it has all that another process needs to join.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from dfkd.engine.checkpoint import write_aside
from dfkd.engine.lock import lock_folder
from dfkd.errors import UserError
from dfkd.report.files import plain, write_whole
from dfkd.report.trials import SEARCH_FILE, read_search
from dfkd.types import Bytes

__all__ = ["HELDOUT_FILE", "JOURNAL_FILE", "claim", "heldout_images", "open_folder", "search_lock"]

HELDOUT_FILE = "heldout.safetensors"
JOURNAL_FILE = "study.journal"
LOCK = ".search.lock"


@contextmanager
def search_lock(folder: Path) -> Iterator[None]:
    """Hold the search's lock: other processes wait until the block ends, so keep it to moments.

    On file systems without locks no process waits.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK, thread_local=False))
        except (NotImplementedError, OSError) as error:
            if not (folder.is_dir() and isinstance(error, NotImplementedError)):
                reason = error.strerror if isinstance(error, OSError) else error
                raise UserError(
                    f"search needs a folder that can be written, got {folder} ({reason}); choose another"
                ) from error
        yield


def claim(folder: Path, number: int) -> ExitStack | None:
    """Hold a trial for this process, until the stack is closed or the process ends; None: another one has it."""
    place = folder / "claims" / f"{number:04d}"
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_remove, place)
        try:
            stack.enter_context(lock_folder(place))
        except UserError:
            return None
        return stack.pop_all()
    return None


def _remove(place: Path) -> None:
    with suppress(OSError):  # somebody else looks whether the trial is free
        place.rmdir()


def open_folder(folder: Path, about: Mapping[str, Any], make: Callable[[], Bytes]) -> Tensor:
    """Begin a search in ``folder``, or join the one that is there; the held-out images (uint8, N C H W).

    Args:
        folder: new, empty, or that of a search with the same settings.
        about: content of ``search.json``: ``ranges``, ``settings``, ``pair`` and whatever else.
        make: makes the held-out images, for a new search.

    Raises:
        UserError: the folder holds something else or a search with other settings, or cannot be written.
    """
    _check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"search needs a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from error
    with search_lock(folder):
        if (folder / SEARCH_FILE).exists():
            _check_same(read_search(folder), plain(about), folder)
            return heldout_images(folder)
        from safetensors.torch import save_file

        images = make().cpu()
        write_aside(folder / HELDOUT_FILE, lambda path: save_file({"images": images}, path))
        text = json.dumps(plain(about), allow_nan=False, ensure_ascii=False, indent=1)
        write_whole(folder / SEARCH_FILE, text.encode() + b"\n")
        return images


def heldout_images(folder: Path) -> Tensor:
    """The images that every trial is judged on (uint8, N C H W).

    Raises:
        UserError: they are gone or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / HELDOUT_FILE)["images"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"search needs the images its trials were judged on, got none that can be read in {folder / HELDOUT_FILE}; "
            "put the file back, or choose another folder"
        ) from error


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"search needs a folder, got the file {folder}; choose another path")
    if not folder.exists() or (folder / SEARCH_FILE).exists():
        return
    others = [path for path in folder.iterdir() if path.name not in (LOCK, HELDOUT_FILE) and path.suffix != ".tmp"]
    if others:
        raise UserError(
            f"search needs an empty or new folder, or that of a search, got {folder} with other files in it; choose "
            "another folder"
        )


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """Name the first setting in which a process that joins differs from the search."""
    for group in ("ranges", "settings"):
        was, now = old[group], new[group]
        for key in {**was, **now}:
            if was.get(key) != now.get(key):
                raise UserError(
                    f"search needs the settings the one in {folder} began with, got {key} = {now.get(key)!r} instead "
                    f"of {was.get(key)!r}; set it back, or choose another folder"
                )
