"""SIGINT and SIGTERM end a training at once, but never between two halves of a step; steps with a time limit."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType

LEAST_LIMIT_S = 1e-3


class TrainingInterrupted(BaseException):
    """Training was stopped on request; `signal_number` says which signal asked.

    No `Exception`, as little as KeyboardInterrupt: what forgives a failed picture or report must not swallow it.
    """

    def __init__(self, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; what has been trained is saved, run the same command again to continue")
        self.signal_number = signal_number


class _TimeIsUp(BaseException):
    """Raised by the alarm of a time limit; never leaves `StopRequest.limited`."""


@dataclass
class TimeLimit:
    """Whether the steps under a time limit were ended by it."""

    exceeded: bool = False


class StopRequest:
    """While active, SIGINT and SIGTERM raise TrainingInterrupted wherever the program is.

    Where that would leave something half done (`deferred`), they do so at the end of it; a second SIGINT does not wait.
    One call of torch, a backward pass for instance, ends before Python hears of a signal.

    Attributes:
        signal_number: the signal that asked, None before.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._former: dict[int, object] = {}
        self._deferring = 0
        self._limit: TimeLimit | None = None
        self._alarm_rang = False
        self._former_hook = sys.unraisablehook

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
            self._former_hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._former:
            sys.unraisablehook = self._former_hook
        self._former.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What stands in this context is finished before a signal, or a time limit, is obeyed."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if not self._deferring:
            self.check()
            if self._alarm_rang and self._limit is not None:
                raise _TimeIsUp

    @contextlib.contextmanager
    def limited(self, seconds: float | None) -> Iterator[TimeLimit]:
        """Leave this context when so many seconds are over; the limit that it gives says whether that was so.

        Without a number, in other threads, and on systems without interval timers there is no limit.
        """
        limit = TimeLimit()
        if seconds is None or not self._former or not hasattr(signal, "setitimer"):
            yield limit
            return
        if self._limit is not None:
            raise RuntimeError("time limits do not nest; leave the first one before the next")
        former = signal.signal(signal.SIGALRM, self._on_alarm)
        self._limit, self._alarm_rang = limit, False
        signal.setitimer(signal.ITIMER_REAL, max(seconds, LEAST_LIMIT_S))
        try:
            try:
                yield limit
            finally:
                self._limit = None  # from here on the alarm does nothing
        except _TimeIsUp:
            limit.exceeded = True
        finally:
            self._limit = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)

    def check(self) -> None:
        """Raise TrainingInterrupted where a signal has come while it was deferred, or nothing listened to it."""
        if self.signal_number is not None:
            raise TrainingInterrupted(self.signal_number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.signal_number is not None
        self.signal_number = number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._deferring and not again:
            raise TrainingInterrupted(number)

    def _on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """What is raised while Python cleans an object away goes no further; it is remembered for `check`."""
        if not isinstance(lost.exc_value, (TrainingInterrupted, _TimeIsUp)):
            self._former_hook(lost)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._alarm_rang = True
        if self._limit is None or self._deferring:
            return
        if frame is not None and (frame.f_globals.get("__name__") in (__name__, "contextlib") or _is_importing(frame)):
            # Where a context is entered or left nothing catches it, and a package that is left half imported cannot be
            # used any more; it rings again after that.
            signal.setitimer(signal.ITIMER_REAL, LEAST_LIMIT_S)
            return
        raise _TimeIsUp


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
