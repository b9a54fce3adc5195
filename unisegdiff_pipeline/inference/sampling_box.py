"""The box around a group of tiles that samples are drawn in: where it lies, and the pieces that it is worked in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from unisegdiff_pipeline.inference.active_region import ActiveRegion, extent_of_tiles
from unisegdiff_pipeline.inference.sliding_window import Index, window_slices
from unisegdiff_pipeline.inference.tiled_case import TiledCase

PIECE_VOXELS = 1 << 15  # of what is computed voxel by voxel at once
SLAB_VOXELS = 1 << 22  # of noise and fields made at once: much more than what they are made of beyond the slab
LEAST_ROWS, LARGEST_SLAB_VOXELS = 16, 1 << 25  # also of many classes, whose fields begin beyond a slab, too


class SamplingBox:
    """The smallest box around some tiles of a case.

    What is computed voxel by voxel is computed for one sample and in pieces of rows that the box alone decides, so that
    no last digit depends on how many samples or rows are under way at once.

    Args:
        case: the case.
        tiles: numbers of the tiles.
        p_det: of the whole case (K, Z, Y, X), padded.

    Attributes:
        tiles: in the order of the case.
        start, extent: of the box (Z, Y, X), in the padded volume; `place` the same as slices.
        p_det: of the box (K, *box).
        piece: rows of a piece.
    """

    def __init__(self, case: TiledCase, tiles: Sequence[int], p_det: Tensor) -> None:
        self.case = case
        self.tiles = [tile for tile in case.order if tile in set(tiles)]
        self.start, self.extent = extent_of_tiles(tiles, case.grid)
        self.place = window_slices(self.start, self.extent)
        self.p_det = p_det[(slice(None), *self.place)]
        voxels = self.extent[1] * self.extent[2]
        self.piece = max(1, PIECE_VOXELS // voxels) if case.device.type == "cpu" else self.extent[0]

    def rows_of_samples(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(sample, first row, last row) of slabs that noise and fields are made for at once."""
        voxels = self.p_det.shape[0] * self.extent[1] * self.extent[2]
        rows = max(SLAB_VOXELS // voxels, min(LEAST_ROWS, LARGEST_SLAB_VOXELS // voxels), 1)
        rows = math.ceil(rows / self.piece) * self.piece
        for i in range(count):
            for first in range(0, self.extent[0], rows):
                yield i, first, min(first + rows, self.extent[0])

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows; on the way, what has been touched of arrays on disk leaves memory."""
        slab = max(1, SLAB_VOXELS // (self.piece * self.extent[1] * self.extent[2]))
        for number, a in enumerate(range(first, last, self.piece), start=1):
            yield a, min(a + self.piece, last)
            if number % slab == 0:
                self.case.scratch.release()

    def rows_of_box(self, first: int, last: int) -> tuple[list[int], list[int]]:
        """Start and extent of some rows of the box in the volume."""
        return [self.start[0] + first, *self.start[1:]], [last - first, *self.extent[1:]]

    def start_in_box(self, tile: int) -> Index:
        z, y, x = (a - b for a, b in zip(self.case.grid.starts[tile], self.start, strict=True))
        return z, y, x

    def inside(self, active: ActiveRegion) -> Tensor:
        """What is active and under a tile, boolean (*box)."""
        inside = self.empty((), np.bool_)
        covered = torch.zeros(self.extent[1:], dtype=torch.bool)
        by_layer: dict[int, list[Index]] = {}
        for tile in self.tiles:
            start = self.start_in_box(tile)
            by_layer.setdefault(start[0], []).append(start)
        depth = self.case.grid.window[0]
        for row in self.case.scratch.rows(self.extent[0]):
            covered.fill_(False)
            for layer, starts in by_layer.items():
                if layer <= row < layer + depth:
                    for start in starts:
                        covered[window_slices(start, self.case.grid.window)[1:]] = True
            z, y, x = self.place
            here = active.within((slice(z.start + row, z.start + row + 1), y, x))[0]
            inside[row] = here.cpu() & covered
        self.case.scratch.release()
        return inside

    def empty(self, leading: tuple[int, ...], dtype: DTypeLike = np.float32) -> Tensor:
        return torch.from_numpy(self.case.scratch.empty((*leading, *self.extent), dtype))

    def kept_part(self, values: Tensor, first: int, last: int) -> tuple[slice, Tensor]:
        """Rows of the box as (rows, values) of the part that lies in the unpadded case."""
        offset, size = self._offset(), self.cropped_shape()
        a, b = max(first, offset[0]), min(last, offset[0] + size[0])
        rows = slice(a - offset[0], max(a, b) - offset[0])
        z, y, x = slice(a - first, max(a, b) - first), *(slice(offset[i], offset[i] + size[i]) for i in (1, 2))
        return rows, values[:, z, y, x]

    def cropped_shape(self) -> tuple[int, ...]:
        low, high = self.bounds()
        return tuple(b - a for a, b in zip(low, high, strict=True))

    def cropped(self, values: Tensor) -> Tensor:
        """The part of (..., *box) that lies in the unpadded case."""
        return values[(..., *window_slices(self._offset(), self.cropped_shape()))]

    def _offset(self) -> list[int]:
        """Where the unpadded case begins in the box."""
        low, _ = self.bounds()
        return [a + p - s for a, p, s in zip(low, self.case.grid.pad_before, self.start, strict=True)]

    def bounds(self) -> tuple[list[int], list[int]]:
        """The box in coordinates of the unpadded case, clipped to it."""
        low, high = [], []
        for start, extent, before, size in zip(
            self.start, self.extent, self.case.grid.pad_before, self.case.grid.shape, strict=True
        ):
            low.append(max(0, start - before))
            high.append(min(size, start + extent - before))
        return low, high
