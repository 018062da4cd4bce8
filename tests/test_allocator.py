"""The allocator setting: fewer page faults for the same work, and hands off where the user decides."""

import os
import subprocess
import sys

import pytest

from dfkd.allocator import keep_freed_memory

WORK = """
import resource, sys
from dfkd.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "on" else None
import torch
for _ in range(3):
    torch.ones(40 * 2**20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(40 * 2**20, dtype=torch.uint8)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> tuple[str, int]:
    """Page faults of 20 tensors of 40 MiB in a fresh process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", WORK, mode], capture_output=True, text=True, check=True, env=env)
    done, count = run.stdout.split()
    return done, int(count)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_is_reused() -> None:
    _, without = faults("off")
    for _ in range(3):  # a system short of memory takes pages back in between
        done, with_it = faults("on")
        if done != "True":
            pytest.skip("this C library has no mallopt")
        if with_it < without / 2:
            return
    assert with_it < without / 2


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory() is False


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
