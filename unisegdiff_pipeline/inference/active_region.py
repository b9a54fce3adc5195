"""Where in a volume samples are worth drawing: around everything the segmenter does not rule out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.inference.sliding_window import Index, TileGrid
from unisegdiff_pipeline.io.labels import Coding

ACTIVE_PROBABILITY = 0.005
BLOCK = 8  # voxels an axis


def foreground(probabilities: Tensor, coding: Coding) -> Tensor:
    """Probability of any foreground, (C, *spatial) => (*spatial); for regions that of the likeliest region."""
    return 1 - probabilities[0] if coding == "softmax" else probabilities.amax(dim=0)


def active_region(probability: Tensor, block: Sequence[int], reach: Sequence[float]) -> Tensor:
    """Blocks that hold a voxel above `ACTIVE_PROBABILITY`, dilated, as a boolean (Z, Y, X).

    Args:
        probability: of any foreground (Z, Y, X).
        block: voxels of a block along each axis.
        reach: voxels to dilate by along each axis, rounded up to whole blocks.
    """
    size = _triple(block)
    blocks = functional.max_pool3d(probability[None, None].float(), size, size, ceil_mode=True) > ACTIVE_PROBABILITY
    radius = [math.ceil(r / b) for r, b in zip(reach, size, strict=True)]
    kernel = _triple([2 * r + 1 for r in radius])
    grown = functional.max_pool3d(blocks.float(), kernel, 1, _triple(radius)) > 0
    full = grown[0, 0]
    for axis, edge in enumerate(size):
        full = full.repeat_interleave(edge, dim=axis).narrow(axis, 0, probability.shape[axis])
    return full


def active_tiles(active: Tensor, grid: TileGrid) -> list[int]:
    """Indices of the tiles that hold at least one active voxel; `active` is (Z, Y, X) of the padded volume."""
    return [i for i in range(len(grid.starts)) if bool(active[grid.slices(i)].any())]


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


def bounding_box(tiles: Sequence[int], grid: TileGrid) -> tuple[Index, Index]:
    """(start, extent) of the smallest box around some tiles."""
    starts = torch.tensor([grid.starts[i] for i in tiles])
    low, high = starts.amin(dim=0), starts.amax(dim=0) + torch.tensor(grid.window)
    return _triple(low.tolist()), _triple((high - low).tolist())


def _triple(values: Sequence[int]) -> Index:
    z, y, x = values
    return int(z), int(y), int(x)
