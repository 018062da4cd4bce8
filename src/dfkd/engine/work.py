"""How much work a computation is, and how fast this machine could be at most."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Ceilings", "Work", "ceilings", "count_work", "peak_memory", "wait"]


@dataclass(frozen=True)
class Work:
    """Floating-point operations of convolutions and products, and bytes that all operations read and write.

    The bytes are what the tensors hold, each counted once per operation: what caches save is not known.
    """

    flops: int
    bytes: int


@dataclass(frozen=True)
class Ceilings:
    """Measured: operations a second of a large matrix product, bytes a second (read plus written) of a large copy."""

    flops: float
    bytes: float


def count_work(work: Callable[[], object]) -> Work:
    """Run ``work`` once, uncompiled, and count what it does, backward passes included."""
    traffic = _Traffic()
    counter = FlopCounterMode(display=False)
    with counter, traffic:
        work()
    return Work(counter.get_total_flops(), traffic.bytes)


def ceilings(device: torch.device, precision: str = "fp32", repeats: int = 5) -> Ceilings:
    """Measure both, in about a second: the best of ``repeats``."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, length = (1024, 2**24) if device.type == "cpu" else (8192, 2**28)
    a = torch.ones(side, side, dtype=dtype, device=device)
    source = torch.zeros(length, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: a @ a, device, repeats)
    copy = _best(lambda: target.copy_(source), device, repeats)
    return Ceilings(2 * side**3 / product, 2 * source.nbytes / copy)


def peak_memory(device: torch.device, reserved: bool = False) -> int:
    """Bytes: the process's largest resident set so far (0 on Windows), or the most the accelerator had allocated.

    ``reserved`` counts what the accelerator's allocator had taken from the device, which other programs cannot use.
    """
    if device.type != "cpu":
        return (torch.accelerator.max_memory_reserved if reserved else torch.accelerator.max_memory_allocated)(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith("empty"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def _best(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least seconds; the first turn only warms up."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
