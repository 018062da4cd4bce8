"""A small run of any method through the front door, in a process that can be killed at any file operation.

Processes are forked from one that has the package loaded: a kill costs the run, not the import.
"""

import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

import dfkd
from settings import SETTINGS, tiny_task

__all__ = ["finished", "settings_for", "train"]

OPERATIONS = (
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "touch"),
    (Path, "write_text"),
    (torch, "save"),
)


def settings_for(name: str) -> dict[str, Any]:
    """What ``dfkd.distill`` takes for a row of ``settings.SETTINGS``: the same networks and inputs in every process."""
    row = SETTINGS[name]
    task = tiny_task(row)
    channels = row.image_shape[0]
    return {
        "teacher": task.teacher.release(),
        "student": task.student.release(),
        "method": row.method,
        "plan": row.plan,
        "image_size": row.image_shape,
        "mean": [0.4] * channels,
        "std": [0.3] * channels,
        "classes": row.classes,
        "text": task.text,
        "web": task.web,
        "real": task.real,
        "progress": False,
        "export": False,
        "figures": False,
        "save_every": 0,
        "runtime": dfkd.Runtime(device="cpu"),
    }


def train(name: str, folder: str, resume: bool, kill_at: int | None, half: bool, count: Any) -> None:
    """Run to the end, or to the file operation of that number, before or in the middle of which SIGKILL comes."""
    torch.set_num_threads(1)
    _count(kill_at, half, count)
    dfkd.distill(**settings_for(name), out=folder, resume=resume)


def _count(kill_at: int | None, half: bool, count: Any) -> None:
    """Count every file operation in ``count``; SIGKILL in that of number ``kill_at``."""

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            count.value += 1
            if kill_at is not None and count.value == kill_at:
                if half and name == "save":
                    real(*args, **kwargs)
                    os.truncate(args[1], os.stat(args[1]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, counted)

    for owner, name in OPERATIONS:
        wrap(owner, name)


def server() -> ForkServerContext:
    """Where the processes come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashes"])
    return context


def finished(
    name: str, folder: Path, kill_at: int | None = None, after: float | None = None, half: bool = False
) -> tuple[bool, int]:
    """Start or continue the run in ``folder``; whether it came to its end, and how many file operations there were.

    Args:
        name: of a row of ``settings.SETTINGS``.
        folder: of the run; its ``run.json`` decides between start and resume, as it does for a user.
        kill_at: SIGKILL at this file operation.
        after: SIGKILL after this many seconds.
        half: a write that is killed leaves half of its file.
    """
    context = server()
    count = context.Value("i", 0)
    resume = (folder / "run.json").exists()
    process = context.Process(target=train, args=(name, str(folder), resume, kill_at, half, count))
    process.start()
    process.join(300 if after is None else after)
    if after is None and process.is_alive():
        raise TimeoutError(f"a run of {name} hangs in {folder}")
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run of {name} in {folder} ended with {process.exitcode} after {time.ctime()}")
    return process.exitcode == 0, int(count.value)
