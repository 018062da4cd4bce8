"""The time of phases that take turns, without waiting for the device between them."""

import time

import torch

__all__ = ["Laps"]


class Laps:
    """Seconds of each phase. CUDA notes the times itself, in the order of its work, and is asked once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, phase: str) -> None:
        """Begin ``phase``: work queued from now on counts for it; an empty name ends the timing."""
        if self.device.type != "cuda":
            self._marks.append((phase, time.monotonic()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._marks.append((phase, event))

    def seconds(self, phase: str) -> float:
        """All turns of ``phase`` together; waits until the device is done with them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return sum(_seconds_between(begin, end) for (name, begin), (_, end) in pairs if name == phase)


def _seconds_between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(begin.elapsed_time(end)) / 1000
    return float(end) - float(begin)  # type: ignore[arg-type]
