"""How long a phase lasts, in iterations or in seconds, and the learning rate that follows from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

WARMUP_ITERATIONS = 20


@dataclass(frozen=True)
class PhaseBudget:
    """Length of one phase; exactly one of the two is given."""

    iterations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.seconds is None):
            raise ValueError(f"give iterations ({self.iterations}) or seconds ({self.seconds}), one of them")

    def progress(self, iteration: int, seconds: float) -> float:
        """Fraction of the phase that is done, 0 to 1."""
        if self.iterations is not None:
            return min(1.0, iteration / self.iterations) if self.iterations else 1.0
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds) if self.seconds > 0 else 1.0


class Stopwatch:
    """Seconds of work over several sessions: what earlier ones took, plus this one, which began at `began`."""

    def __init__(self, began: float | None = None) -> None:
        self._earlier_s = 0.0
        self._began = time.monotonic() if began is None else began

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._earlier_s + time.monotonic() - self._began

    def add(self, earlier_s: float) -> None:
        """Count seconds of earlier sessions, too."""
        self._earlier_s += earlier_s


class Allowance:
    """Keeps something that is done again and again within a fraction of the time: it is due when that has been earned.

    Args:
        fraction: of the time; 0.01 lets what took a second be due again after 100 seconds.
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be done now; true at first."""
        return time.monotonic() >= self._due_at

    @contextlib.contextmanager
    def spent(self) -> Iterator[None]:
        """Put it into this context whenever it is done."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self._due_at = end + (end - start) / self._fraction


def risen(warmup: float, progress: float) -> float:
    """How far a rate has risen, 0 to 1, that rises evenly over the first `warmup` of a phase (0: at once)."""
    return 1.0 if progress >= warmup else progress / warmup


def learning_rate(base: float, iteration: int, progress: float) -> float:
    """Polynomial decay (1 - progress)^0.9 as nnU-Net, after a linear warm-up of a few iterations for AdamW."""
    warmup = min(1.0, (iteration + 1) / WARMUP_ITERATIONS)
    return base * warmup * max(0.0, 1.0 - progress) ** 0.9
