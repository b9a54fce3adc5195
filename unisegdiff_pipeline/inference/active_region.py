"""Where in a volume samples are worth drawing: around everything the segmenter does not rule out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.inference.sliding_window import Index, TileGrid

ACTIVE_PROBABILITY = 0.005
BLOCK = 8  # voxels an axis


def foreground(probabilities: Tensor, coding: Coding) -> Tensor:
    """Probability of any foreground, (C, *spatial) => (*spatial); for regions that of the likeliest region."""
    return 1 - probabilities[0] if coding == "softmax" else probabilities.amax(dim=0)


@dataclass(frozen=True)
class ActiveRegion:
    """Voxels worth sampling, known by whole blocks: a volume of booleans would be as large as a mask.

    Attributes:
        blocks: boolean, (Z, Y, X) divided by `size` and rounded up.
        size: voxels of a block along each axis.
    """

    blocks: Tensor
    size: Index

    def within(self, place: Sequence[slice]) -> Tensor:
        """The region in a box of the volume, as a boolean of its shape."""
        full = self.blocks
        for axis, (edge, part) in enumerate(zip(self.size, place, strict=True)):
            first = part.start // edge
            full = full.narrow(axis, first, (part.stop - 1) // edge + 1 - first).repeat_interleave(edge, dim=axis)
            full = full.narrow(axis, part.start - first * edge, part.stop - part.start)
        return full

    def touches(self, place: Sequence[slice]) -> bool:
        """Whether a box of the volume holds an active voxel."""
        z, y, x = (slice(p.start // e, (p.stop - 1) // e + 1) for p, e in zip(place, self.size, strict=True))
        return bool(self.blocks[z, y, x].any())


def active_region(
    probabilities: Tensor,
    coding: Coding,
    block: Sequence[int],
    reach: Sequence[float],
    release: Callable[[], None] | None = None,
) -> ActiveRegion:
    """Blocks that hold a voxel whose foreground is above `ACTIVE_PROBABILITY`, dilated.

    Args:
        probabilities: (K, Z, Y, X).
        coding: of their channels.
        block: voxels of a block along each axis.
        reach: voxels to dilate by along each axis, rounded up to whole blocks.
        release: called when rows of `probabilities` have been looked at and need not be in memory any more.
    """
    size = _triple(block)
    layers = []
    for z in range(0, probabilities.shape[1], size[0]):
        p = foreground(probabilities[:, z : z + size[0]].float(), coding)
        layers.append(functional.max_pool3d(p[None, None], size, size, ceil_mode=True)[0, 0] > ACTIVE_PROBABILITY)
        if release is not None:
            release()
    blocks = torch.cat(layers)
    radius = [math.ceil(r / b) for r, b in zip(reach, size, strict=True)]
    kernel = _triple([2 * r + 1 for r in radius])
    grown = functional.max_pool3d(blocks[None, None].float(), kernel, 1, _triple(radius)) > 0
    return ActiveRegion(grown[0, 0], size)


def active_tiles(active: ActiveRegion, grid: TileGrid) -> list[int]:
    """Indices of the tiles that hold at least one active voxel of the padded volume."""
    return [i for i in range(len(grid.starts)) if active.touches(grid.slices(i))]


def connected_tiles(tiles: Sequence[int], grid: TileGrid) -> list[list[int]]:
    """Split tiles into groups that share no voxel with one another; each group can be sampled on its own."""
    by_start = {grid.starts[t]: t for t in tiles}
    neighbours = [_close_starts({start[axis] for start in by_start}, grid.window[axis]) for axis in range(3)]
    groups, left = [], set(tiles)
    while left:
        group, border = [], [min(left)]
        left.discard(border[0])
        while border:
            tile = border.pop()
            group.append(tile)
            around = itertools.product(*(near[s] for near, s in zip(neighbours, grid.starts[tile], strict=True)))
            reached = {by_start[start] for start in around if start in by_start} & left
            left -= reached
            border += reached
        groups.append(sorted(group))
    return groups


def _close_starts(starts: set[int], window: int) -> dict[int, list[int]]:
    """For each start along one axis, the starts whose windows overlap its own."""
    return {a: [b for b in starts if abs(a - b) < window] for a in starts}


def extent_of_tiles(tiles: Sequence[int], grid: TileGrid) -> tuple[Index, Index]:
    """(start, extent) of the smallest box around some tiles."""
    starts = torch.tensor([grid.starts[i] for i in tiles])
    low, high = starts.amin(dim=0), starts.amax(dim=0) + torch.tensor(grid.window)
    return _triple(low.tolist()), _triple((high - low).tolist())


def _triple(values: Sequence[int]) -> Index:
    z, y, x = values
    return int(z), int(y), int(x)
