"""Signals that end a run in good order, at any moment."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Stopped", "ending_for_sure", "stoppable"]

GRACE = 5.0  # seconds that a signal has to reach Python: a wait inside torch does not return for it


class Stopped(BaseException):
    """SIGTERM arrived. Not an ``Exception``: nothing on the way may swallow it."""

    code = 143


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM raises :class:`Stopped` (in the main thread; elsewhere nothing changes).

    A second signal, SIGTERM or Ctrl-C, is ignored, so that what the first one began is done in order; a third is not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count != 2:
            raise Stopped if number == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell makes background jobs ignore it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_for_sure(last: Callable[[], None], grace: float = GRACE) -> Iterator[None]:
    """Within the block a signal ends the process, also while it waits inside torch (for another process, say).

    A thread hears of the signal at once. Where the block has not been left ``grace`` seconds later, it calls ``last``
    and ends the process with the signal's exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()
    thread = threading.Thread(target=_listen, args=(reader, left, last, grace), daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


def _listen(reader: int, left: threading.Event, last: Callable[[], None], grace: float) -> None:
    codes = {int(signal.SIGINT): 130, int(signal.SIGTERM): Stopped.code}
    while data := os.read(reader, 1):
        if data[0] in codes and not left.wait(grace):
            with suppress(Exception):  # whatever it is, the process has to end
                last()
            os._exit(codes[data[0]])
    os.close(reader)
