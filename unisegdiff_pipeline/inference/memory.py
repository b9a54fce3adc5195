"""How much memory a prediction on a CPU may take, all told, and what is left of it.

What cannot be cut into slabs sets a floor: the libraries, the network with one call, the mask of the image with the
numbers of its lesions, and the image while it is read (in another process). Arrays of the volume's size beyond that
are in memory as far as the budget goes, and else in temporary files; samples are drawn in turns, slab by slab.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.parallel import available_memory_gb
from unisegdiff_pipeline.inference.limits import ARRAY_FRACTION, FRACTION_OF_FREE_MEMORY

WORK_GB = 0.5  # the process that reads images, and a network's call on one tile; the least beside what is loaded
SMALLEST_GB = 0.05  # to work with, where the budget is spent already


@dataclass(frozen=True)
class MemoryBudget:
    """Gigabytes (1e9 bytes) that this process and the one that reads its images may take."""

    max_gb: float

    @classmethod
    def of(cls, max_memory_gb: float | None) -> MemoryBudget:
        """The budget asked for; None is what the process has, and half of what is free now.

        Raises:
            UsdError: not a positive number.
        """
        if max_memory_gb is None:
            return cls(_taken_gb() + FRACTION_OF_FREE_MEMORY * available_memory_gb())
        if not max_memory_gb > 0:
            raise UsdError(f"max_memory_gb (--max-memory) is {max_memory_gb:g}; allowed is a number above 0, in GB.")
        return cls(max_memory_gb)

    def require_room(self) -> None:
        """Refuse a budget that the libraries and the loaded model leave nothing of.

        Raises:
            UsdError: with the least that is allowed.
        """
        taken = _taken_gb()
        least = math.ceil(10 * (taken + WORK_GB)) / 10
        if self.max_gb < least:
            raise UsdError(
                f"max_memory_gb (--max-memory) is {self.max_gb:g}, but the libraries and the model alone take "
                f"{taken:.2f} GB; allowed is {least:g} GB or more."
            )

    def free_gb(self) -> float:
        """What is left now."""
        return max(SMALLEST_GB, self.max_gb - _taken_gb())

    def for_arrays(self) -> float:
        """Bytes that the arrays of one case may take in memory."""
        return ARRAY_FRACTION * self.free_gb() * 1e9


def _taken_gb() -> float:
    """Of this process and those it started, which read images."""
    import psutil

    taken = 0
    for process in (psutil.Process(), *psutil.Process().children()):
        with contextlib.suppress(psutil.Error):  # it ended just now
            taken += process.memory_info().rss
    return taken / 1e9
