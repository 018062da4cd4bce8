"""Ask the C library to keep the memory that tensors give back, so that the next tensors need no fresh pages.

On a CPU every large tensor is otherwise mapped, cleared page by page by the kernel, and unmapped again: a tenth and
more of the time of a step of a small network. This module does not import torch.
"""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# Names and numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the system; best called before torch is imported.

    Affects the whole process, which is why the command line calls it and ``import dfkd`` does not. Memory that was
    freed stays with the process until it ends. Left alone where the environment sets ``MALLOC_...`` variables.

    Returns:
        Whether it was done: False without glibc, or where the environment decides.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # One arena: backward passes run on another thread, and other arenas hold no block of more than 64 MiB.
    options = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: LARGEST, TOP_PAD: 64 * 2**20, ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in options.items())
