"""Arrays over a case whose rows are made when they are asked for, so that the whole never exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROW_BYTES = 1 << 25  # of rows that are made at once


@dataclass(frozen=True)
class LazyRows:
    """An array (K, Z, Y, X), float32.

    Attributes:
        shape: of the whole.
        make: (first, last) => rows [first, last) of all channels, (K, rows, Y, X).
        channels: the part of the channels that this array is; None for all.
    """

    shape: tuple[int, ...]
    make: Callable[[int, int], torch.Tensor]
    channels: slice | None = None

    @property
    def ndim(self) -> int:
        """Four."""
        return len(self.shape)

    def __getitem__(self, key: slice | tuple[slice, slice]) -> LazyRows | torch.Tensor:
        """Some channels, [a:b], as such an array; or rows of all channels, [:, a:b], as a tensor."""
        if isinstance(key, slice):
            return replace(self, shape=(len(range(self.shape[0])[key]), *self.shape[1:]), channels=key)
        return self.rows(key[1].start, key[1].stop)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """The rows [first, last), (K, rows, Y, X)."""
        made = self.make(first, last)
        return made if self.channels is None else made[self.channels]

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are small enough to be made at once."""
        channels, size, height, width = self.shape
        step = max(1, ROW_BYTES // (4 * channels * height * width))
        for first in range(0, size, step):
            yield first, min(first + step, size)
