"""One process at a time in a run folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd.errors import UserError

__all__ = ["LOCK_FILE", "held"]

LOCK_FILE = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which exists, as long as this lasts.

    The system lets go of the lock when the process ends, however it ends; only the empty file may stay. Where there
    are no such locks (Windows, some network file systems) nobody is kept out.

    Raises:
        UserError: another process is in it, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    handle = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        os.close(handle)


def _locked(path: Path) -> int:
    """The open, locked file; one that its last owner removed in between is opened anew."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"out needs a folder that can be written, got {path.parent} ({error.strerror}); choose another"
            ) from None
        _lock(handle, path)
        if _same(handle, path):
            return handle
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"run folder needs to be free, got {path.parent}, which another process is running; wait or choose "
            "another folder"
        ) from None
    except OSError:  # a file system without locks
        return


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
