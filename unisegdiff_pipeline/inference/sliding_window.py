"""Tiles over a volume: where they lie, how they are weighted, how their values become one volume again.

Everything here is (Z, Y, X), also for 2D networks, whose windows are one slice thick. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Index = tuple[int, int, int]
Slices = tuple[slice, slice, slice]

# A weight below this share of the largest is raised to it: far corners of a window get e^-24, which serves nothing
# where other tiles overlap and only loses digits where none does.
SMALLEST_WEIGHT = 1e-4

# A prediction needs less memory than a training step, and sees more with larger windows. Up to twice the patch along an
# axis was measured (documentation/explanation/measurements.md); four patches in a call take no more memory than a step.
LARGEST_STRETCH = 2
MOST_PATCHES = 4


@dataclass(frozen=True)
class TileGrid:
    """Windows that cover a volume, after padding it to at least one window.

    Attributes:
        shape: the volume without padding (Z, Y, X).
        padded_shape: the volume the windows lie in.
        pad_before: voxels padded at the low end of each axis; the rest is padded at the high end.
        window: extent of every tile (Z, Y, X).
        starts: lowest corner of every tile in the padded volume, first axis slowest.
    """

    shape: Index
    padded_shape: Index
    pad_before: Index
    window: Index
    starts: tuple[Index, ...]

    def slices(self, tile: int) -> Slices:
        """Slices of one tile in the padded volume."""
        return box_slices(self.starts[tile], self.window)

    @property
    def inner(self) -> Slices:
        """Slices of the unpadded volume in the padded one."""
        return box_slices(self.pad_before, self.shape)


def box_slices(start: Sequence[int], extent: Sequence[int]) -> Slices:
    """Slices of the box that begins at `start`."""
    z, y, x = (slice(a, a + n) for a, n in zip(start, extent, strict=True))
    return z, y, x


def network_window(patch_size: Sequence[int]) -> Index:
    """Window (Z, Y, X) of a network's patch: a 2D patch (Y, X) is one slice thick."""
    if len(patch_size) == 2:
        return 1, patch_size[0], patch_size[1]
    if len(patch_size) == 3:
        return patch_size[0], patch_size[1], patch_size[2]
    raise ValueError(f"patch_size {tuple(patch_size)} has {len(patch_size)} axes; a patch has 2 or 3")


def prediction_window(patch_size: Sequence[int], shape: Sequence[int], divisor: Sequence[int]) -> Index:
    """Window (Z, Y, X) for an image of `shape` (Z, Y, X): the patch, but the whole image along axes it nearly covers.

    Along these one tile takes the place of overlapping ones: more context, and less to compute.

    Args:
        patch_size: of the plan, two numbers for a 2D network.
        shape: of the image.
        divisor: what the network's input must divide by along each axis of the patch.
    """
    patch = network_window(patch_size)
    window = list(patch)
    first = 3 - len(patch_size)  # slices of a 2D network stay slices
    whole = {axis: math.ceil(shape[axis] / d) * d for axis, d in enumerate(divisor, start=first)}
    for axis in sorted(whole, key=lambda axis: (whole[axis] / patch[axis], -axis)):
        grown = list(window)
        grown[axis] = whole[axis]
        small_enough = math.prod(grown) <= MOST_PATCHES * math.prod(patch)
        if patch[axis] < whole[axis] <= LARGEST_STRETCH * patch[axis] and small_enough:
            window = grown
    return _index(window)


def tile_starts(size: int, window: int, step: float = 0.5) -> list[int]:
    """Starts of windows along one axis: first and last touch the ends, steps are even and at most step * window.

    Raises:
        ValueError: if the window is larger than the axis (pad first) or `step` is outside (0, 1].
    """
    if window > size:
        raise ValueError(f"window {window} exceeds the axis of {size} voxels; pad the axis to at least the window")
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; allowed is a share of the window in (0, 1]")
    count = math.ceil((size - window) / max(1.0, window * step)) + 1
    if count == 1:
        return [0]
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def plan_tiles(shape: Sequence[int], window: Sequence[int], step: float = 0.5) -> TileGrid:
    """Lay windows over a volume (Z, Y, X); axes shorter than the window are padded evenly at both ends."""
    padded = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
    before = tuple((p - n) // 2 for p, n in zip(padded, shape, strict=True))
    zs, ys, xs = (tile_starts(p, w, step) for p, w in zip(padded, window, strict=True))
    starts = tuple((z, y, x) for z in zs for y in ys for x in xs)
    return TileGrid(_index(shape), _index(padded), _index(before), _index(window), starts)


def pad_volume(volume: Tensor, grid: TileGrid, value: float = 0.0) -> Tensor:
    """Pad (C, Z, Y, X) to the grid's padded shape; returns the input itself where nothing is to be padded."""
    if grid.shape == grid.padded_shape:
        return volume
    widths: list[int] = []
    for size, padded, before in reversed(list(zip(grid.shape, grid.padded_shape, grid.pad_before, strict=True))):
        widths += [before, padded - size - before]
    return torch.nn.functional.pad(volume, widths, value=value)


def gaussian_weights(window: Sequence[int], sigma: float = 0.125) -> Tensor:
    """Blending weights (Z, Y, X), float32, 1 at the centre; `sigma` is a share of each edge.

    The product of three one-dimensional Gaussians, never below `SMALLEST_WEIGHT`.
    """
    weights = torch.ones(1)
    for size in window:
        offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        profile = torch.exp(-0.5 * (offset / (sigma * size)) ** 2)
        weights = weights[..., None] * (profile / profile.max()).float()
    return weights[0].clamp_min(SMALLEST_WEIGHT)


def weight_sum(starts: Iterable[Sequence[int]], weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum of the weights of all tiles in each voxel, (Z, Y, X); 0 where no tile lies."""
    total = torch.zeros(tuple(shape), dtype=weights.dtype, device=weights.device)
    for start in starts:
        total[box_slices(start, weights.shape)] += weights
    return total


def blend(tiles: Iterable[tuple[Sequence[int], Tensor]], weights: Tensor, total: Tensor, out: Tensor) -> Tensor:
    """Weighted mean of overlapping tiles, written into `out` where at least one tile lies.

    Args:
        tiles: (start, values (..., *window)) one after the other; they may come from a generator.
        weights: (Z, Y, X) of the window.
        total: `weight_sum` of the same tiles.
        out: (..., Z, Y, X), all zeros; voxels without a tile keep the zero.
    """
    for start, values in tiles:
        out[(..., *box_slices(start, weights.shape))] += values * weights
    return out.div_(total.clamp_min(torch.finfo(total.dtype).tiny))


def _index(values: Iterable[int]) -> Index:
    z, y, x = (int(v) for v in values)
    return z, y, x
