"""Starting processes that a Ctrl-C does not reach before they have settled."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back from this thread, and from all processes that it starts meanwhile, for as long as they live.

    Ctrl-C reaches every process of a terminal. One that is still importing answers with a traceback; one that was
    forked, with the handlers of its parent. A child that is to hear of these signals takes them up with `take_up`.
    Systems without signal masks do as they please.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def take_up(*numbers: signal.Signals) -> None:
    """Let signals through that were held back when this process was started."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
