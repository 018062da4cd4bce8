"""One process at a time in a run folder."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from dfkd.errors import UserError

__all__ = ["LOCK_FILE", "lock_folder"]

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which exists, as long as this lasts.

    The system lets go of the lock when the process ends, however it ends; only the empty file may stay. On file systems
    without locks (some of the network) nobody is kept out.

    Raises:
        UserError: another process is in it, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    lock = _take_lock(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        if lock is not None:
            lock.release()


def _take_lock(path: Path) -> BaseFileLock | None:
    """The lock, taken on the file that is there now; None where there are no locks."""
    while True:
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"run folder needs to be free, got {path.parent}, which another process is running; wait or choose "
                "another folder"
            ) from None
        except NotImplementedError:
            return None
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise UserError(
                f"out needs a folder that can be written, got {path.parent} ({error.strerror}); choose another"
            ) from None
        if os.path.lexists(path):
            return lock
        lock.release()  # its last owner removed it in between
