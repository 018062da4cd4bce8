"""Files that are old or new, never half: written aside, flushed to the disk, renamed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from dfkd.errors import UserError

__all__ = ["write_aside"]

TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")  # torch tells no more of a failed write
RUST_WRITER = ("I/O error", "IoError")


def write_aside(
    path: Path, write: Callable[[Path], object], advice: str = "free space or permissions, or choose another place"
) -> None:
    """``write(temporary path)``, flush to disk, rename to ``path``: the file is old or new, never half.

    The file is as readable to others as the user's new files are, whatever ``write`` made of it.

    Args:
        path: the file; its folder is made if need be.
        write: gets the path of an empty file and fills or replaces it.
        advice: what to do where that fails, the end of the sentence.

    Raises:
        UserError: no space, or no permission.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        write(aside)
        if aside.stat().st_mode != mode:  # safetensors hides its files from everybody else
            aside.chmod(mode)
        with aside.open("rb+") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        why = _reason(error)
        if why is None:
            raise
        raise UserError(f"{path} needs to be written, got {why!r}; {advice}") from error


def _reason(error: Exception) -> str | None:
    """Why a write failed; None for what is no failed write."""
    lines = str(error).splitlines()
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, OSError):
        return error.strerror or text
    if isinstance(error, SafetensorError):
        return text.rpartition("I/O error: ")[2] if any(word in text for word in RUST_WRITER) else None
    return "no space, or a write that failed" if any(word in str(error) for word in TORCH_WRITER) else None


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
