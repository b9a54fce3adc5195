"""Progress with an estimate of the time left: a bar in a terminal, few plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def progress(iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """Yield from `iterable` while showing progress on stderr.

    Args:
        iterable: anything to go through.
        total: number of items, None where it is not known.
        description: what is done, shown before the numbers.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=description, file=sys.stderr, dynamic_ncols=True)
    else:
        yield from _plain_lines(iterable, total, description)


def counted(number: int, noun: str) -> str:
    """ "1 case", "2 cases"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(seconds: float) -> str:
    """A duration for people: "8.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _plain_lines(iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done != total:
            last = now
            _print(f"{description}: {_state(done, total, now - start)}")
    _print(f"{description}: {done} done in {format_duration(time.monotonic() - start)}")


def _state(done: int, total: int | None, elapsed: float) -> str:
    if total is None:
        return f"{done} done, {format_duration(elapsed)} so far"
    remaining = elapsed / done * (total - done)
    return f"{done} of {total}, about {format_duration(remaining)} left"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
