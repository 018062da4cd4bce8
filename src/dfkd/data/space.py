"""How much room there is: asked once, before a run that stores much."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

__all__ = ["free_disk", "free_memory"]

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on ``device`` now; on the CPU, file caches the system would give up count as free.

    Where the process is in a control group with a limit (a container, a job of a cluster), at most what is left of it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        available = _half_of_memory()
    return min([available, *_free_in_groups()])


def _half_of_memory() -> int:
    """Bytes; where the system does not tell (Windows), 4 GB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 10**9


def _free_in_groups(root: Path = GROUPS, own: Path = OWN_GROUP) -> list[int]:
    """Bytes that the control group (v2) of this process, and each above it, may still take; none without a limit."""
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):  # not Linux, or groups of version 1
        return []
    group = root / path.strip("/")
    return [room for folder in (group, *group.parents) if (room := _free_in_group(folder)) is not None]


def _free_in_group(folder: Path) -> int | None:
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max": no limit
        return None
    caches = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(0, limit - used + caches)


def free_disk(folder: Path | None = None) -> int:
    """Bytes free in ``folder``, by default that of temporary files."""
    return shutil.disk_usage(folder or tempfile.gettempdir()).free
