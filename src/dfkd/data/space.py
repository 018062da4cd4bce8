"""How much room there is: asked once, before a run that stores much."""

import os
import shutil
import tempfile

import torch

__all__ = ["free_disk", "free_memory"]


def free_memory(device: torch.device) -> int:
    """Bytes free on ``device`` now; on the CPU, memory that nothing uses, not even the file cache."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_disk() -> int:
    """Bytes free in the folder of temporary files."""
    return shutil.disk_usage(tempfile.gettempdir()).free
