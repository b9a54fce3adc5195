"""What a command shows: lines, errors as paragraphs; and while the library works its log, and its progress as a bar or
as few plain lines.
"""

from __future__ import annotations

import logging
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unisegdiff_pipeline.core.progress import Listener, Progress, format_duration, telling

MESSAGE_WIDTH = 110
SECONDS_BETWEEN_LINES = 10.0
RUN_LOG = "unisegdiff_pipeline.training.log"  # whose lines carry the time of day
ON_STDERR = "unisegdiff_pipeline.inference"


def say(text: str) -> None:
    """Print a line for the user at once, also where stdout is a pipe."""
    print(text, flush=True)


def report_error(message: str, kind: str = "error") -> None:
    """Print each line of a message as a paragraph of its own on stderr."""
    print(
        "\n".join(wrap(f"{kind}: {line}") for line in message.splitlines() if line.strip()), file=sys.stderr, flush=True
    )


def wrap(paragraph: str) -> str:
    """Break a paragraph into lines; paths are never broken."""
    return textwrap.fill(paragraph, MESSAGE_WIDTH, break_long_words=False, break_on_hyphens=False)


@contextmanager
def showing() -> Iterator[None]:
    """Show log and progress of all that is called within the block."""
    package, lines = logging.getLogger("unisegdiff_pipeline"), _Lines()
    former_level = package.level
    package.addHandler(lines)
    package.setLevel(logging.INFO)
    bars = Bars()
    listener: Listener = bars if sys.stderr.isatty() else PlainLines()
    try:
        with telling(listener):
            yield
    finally:
        bars.close()
        package.removeHandler(lines)
        package.setLevel(former_level)


class _Lines(logging.Handler):
    """Log records as lines: warnings as paragraphs on stderr, what prediction says there, too, all else on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            report_error(text, kind="warning")
            return
        if record.name == RUN_LOG:
            text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {text}"
        print(text, file=sys.stderr if record.name.startswith(ON_STDERR) else sys.stdout, flush=True)


class PlainLines:
    """Progress as a line every ten seconds, with an estimate of the time left, and one at the end; for log files."""

    def __init__(self) -> None:
        self._start = self._last = 0.0

    def __call__(self, state: Progress) -> None:
        now = time.monotonic()
        if state.is_finished:
            self._say(f"{state.description}: {state.done} done in {format_duration(now - self._start)}")
        elif state.done == 0:
            self._start = self._last = now
        elif now - self._last >= SECONDS_BETWEEN_LINES and state.done != state.total:
            self._last = now
            self._say(f"{state.description}: {_so_far(state, now - self._start)}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bars:
    """Progress as a bar in a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, state: Progress) -> None:
        if state.done == 0 and not state.is_finished:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=state.total, desc=state.description, file=sys.stderr, dynamic_ncols=True)
        elif state.is_finished:
            self.close()
        else:
            self._bar.update()

    def close(self) -> None:
        """End the line of a bar, that of a loop that an error ended, too."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _so_far(state: Progress, elapsed: float) -> str:
    if state.total is None:
        return f"{state.done} done, {format_duration(elapsed)} so far"
    remaining = elapsed / state.done * (state.total - state.done)
    return f"{state.done} of {state.total}, about {format_duration(remaining)} left"
