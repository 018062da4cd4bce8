"""How much room there is: asked once, before a run that stores much."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

__all__ = ["free_disk", "free_memory"]


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on ``device`` now; on the CPU, file caches the system would give up count as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def free_disk(folder: Path | None = None) -> int:
    """Bytes free in ``folder``, by default that of temporary files."""
    return shutil.disk_usage(folder or tempfile.gettempdir()).free
