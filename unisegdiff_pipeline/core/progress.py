"""Progress of long calls, told to a listener: commands show it, library calls are silent unless asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far a loop has come; what `on_progress` is called with.

    Example:
        >>> def show(progress: usd.Progress) -> None:
        ...     print(f"{progress.description}: {progress.done} of {progress.total}")
        >>> show(usd.Progress("predicting", 3, 10))
        predicting: 3 of 10

    Attributes:
        description: what is done, for example "predicting".
        done: items that are finished; 0 when the loop begins.
        total: number of items, None where it is not known.
        is_finished: the loop has ended, and nothing more is told of it.
    """

    description: str
    done: int
    total: int | None
    is_finished: bool = False


Listener = Callable[[Progress], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def telling(listener: Listener | None) -> Iterator[None]:
    """Tell `listener` of all loops that this thread begins within the block; None changes nothing."""
    token = _listener.set(_listener.get() if listener is None else listener)
    try:
        yield
    finally:
        _listener.reset(token)


def progress(iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """Yield from `iterable`, and tell the listener after each item.

    Args:
        iterable: anything to go through.
        total: number of items, None where it is not known.
        description: what is done, shown before the numbers.
    """
    listener = _listener.get() or _nobody
    done = 0
    listener(Progress(description, done, total))
    for item in iterable:
        yield item
        done += 1
        listener(Progress(description, done, total))
    listener(Progress(description, done, total, is_finished=True))


def counted(number: int, noun: str) -> str:
    """ "1 case", "2 cases"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_or_are(number: int) -> str:
    """The verb after `counted`."""
    return "is" if number == 1 else "are"


def format_duration(seconds: float) -> str:
    """A duration for people: "8.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _nobody(state: Progress) -> None:
    """The listener where there is none."""
