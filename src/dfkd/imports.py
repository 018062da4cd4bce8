"""Code of the user's own, named ``package.module:attribute``: importing it, and saying what is wrong with it."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from dfkd.errors import UserError

__all__ = ["first_line", "own_module", "working_folder_importable"]


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Put the working folder first in the import path, as ``python -m`` does, for the time of the block."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def own_module(name: str, module: str) -> ModuleType:
    """Import ``module``, which the user named in ``name``.

    Raises:
        UserError: it is not there, or it is and fails itself; with the first line of its error.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module of the user may fail in any way
        raise _not_imported(name, module, error) from error


def first_line(error: BaseException) -> str:
    """The kind of ``error`` and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _not_imported(name: str, module: str, error: Exception) -> UserError:
    """The module is not there, or it is and fails itself."""
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return UserError(
            f"{name} needs an importable module {module}, got none; run from the folder that holds it or install it"
        )
    return UserError(
        f"{name} needs a module {module} that can be imported, got {first_line(error)}; "
        "correct it or install what it lacks (--debug shows where)"
    )
