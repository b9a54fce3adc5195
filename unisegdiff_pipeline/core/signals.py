"""Starting processes that a Ctrl-C does not reach before they have settled."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back, here until the context is left, in all processes that it starts for as long as they live.

    Ctrl-C reaches every process of a terminal. One that is still importing answers with a traceback; one that was
    forked, with the handlers of its parent; one that is being started, with complaints about a parent that has gone. A
    child that is to hear of these signals takes them up with `take_up`.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    # The mask alone is for the children: the system would hand a signal to another thread of this process.
    in_main = threading.current_thread() is threading.main_thread()
    former: dict[int, Any] = {number: signal.signal(number, remember) for number in numbers} if in_main else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in former.items():
            signal.signal(number, handler)
        if came:  # also where the start failed: most likely the signal has ended what was being started
            signal.raise_signal(came[0])


def take_up(*numbers: signal.Signals) -> None:
    """Let signals through that were held back when this process was started."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
