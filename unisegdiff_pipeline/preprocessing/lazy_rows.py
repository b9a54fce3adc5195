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
        first_channel: of what is made, where this array begins.
    """

    shape: tuple[int, ...]
    make: Callable[[int, int], torch.Tensor]
    first_channel: int = 0

    @property
    def ndim(self) -> int:
        """Four."""
        return len(self.shape)

    def __getitem__(self, key: slice | tuple[slice, slice]) -> LazyRows | torch.Tensor:
        """Some channels, [a:b], as such an array; or rows of all channels, [:, a:b], as a tensor."""
        if isinstance(key, slice):
            part = range(self.shape[0])[key]
            shape = (len(part), *self.shape[1:])
            return replace(self, shape=shape, first_channel=self.first_channel + part.start)
        return self.rows(key[1].start, key[1].stop)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """The rows [first, last), (K, rows, Y, X)."""
        return self.make(first, last)[self.first_channel : self.first_channel + self.shape[0]]

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are small enough to be made at once."""
        channels, size, height, width = self.shape
        step = max(1, ROW_BYTES // (4 * channels * height * width))
        for first in range(0, size, step):
            yield first, min(first + step, size)
