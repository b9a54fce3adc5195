"""Tiles over a volume: where they lie, how they are weighted, how their values become one volume again.

Everything here is (Z, Y, X), also for 2D networks, whose windows are one slice thick. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Index = tuple[int, int, int]
Slices = tuple[slice, slice, slice]

# A weight below this fraction of the largest is raised to it: far corners of a window get e^-24, which serves nothing
# where other tiles overlap and only loses digits where none does.
SMALLEST_WEIGHT = 1e-4
SIGMA = 0.125

# A prediction needs less memory than a training step, and sees more with larger windows. Up to twice the patch along an
# axis was measured (documentation/benchmarks/decisions.md); four patches in a call take no more memory than a step.
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
        return window_slices(self.starts[tile], self.window)

    @property
    def inner(self) -> Slices:
        """Slices of the unpadded volume in the padded one."""
        return window_slices(self.pad_before, self.shape)


def window_slices(start: Sequence[int], extent: Sequence[int]) -> Slices:
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
        raise ValueError(f"step is {step}; allowed is a fraction of the window in (0, 1]")
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


def cut_padded(volume: Tensor, start: Sequence[int], grid: TileGrid, value: float = 0.0) -> Tensor:
    """The tile (C, *window) that begins at `start` of the padded volume, cut from the volume (C, Z, Y, X) itself."""
    inside: list[slice] = []
    missing: list[tuple[int, int]] = []  # voxels before and after the volume
    for a, before, n, size in zip(start, grid.pad_before, grid.window, grid.shape, strict=True):
        first, last = a - before, a - before + n
        inside.append(slice(max(first, 0), min(last, size)))
        missing.append((max(-first, 0), max(last - size, 0)))
    tile = volume[(slice(None), *inside)]
    if not any(map(any, missing)):
        return tile
    return functional.pad(tile, [voxels for axis in reversed(missing) for voxels in axis], value=value)


def gaussian_weights(window: Sequence[int]) -> Tensor:
    """Blending weights (Z, Y, X), float32, 1 at the centre and never below `SMALLEST_WEIGHT`.

    The product of three one-dimensional Gaussians, whose standard deviation is `SIGMA` times the edge.
    """
    weights = torch.ones(1)
    for size in window:
        offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        profile = torch.exp(-0.5 * (offset / (SIGMA * size)) ** 2)
        weights = weights[..., None] * (profile / profile.max()).float()
    return weights[0].clamp_min(SMALLEST_WEIGHT)


def blend(
    tiles: Iterable[tuple[Sequence[int], Tensor]], weights: Tensor, shape: Sequence[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Weighted mean of overlapping tiles, a slab of rows (first axis) as soon as no further tile reaches them.

    So the memory is that of one layer of tiles, and the caller may change what later tiles are made of
    from the slab's last row on.

    Args:
        tiles: (start, values (..., *window)), rising along the first axis; they may come from a generator.
        weights: (Z, Y, X) of the window.
        shape: (Z, Y, X) of the volume, which the tiles cover along the first axis.

    Yields:
        first row; mean (..., rows, Y, X); sum of weights (rows, Y, X), 0 where no tile lies, and there the mean is 0.
        Both are overwritten when the next slab is asked for.
    """
    depth, row = weights.shape[0], 0
    tiny = torch.finfo(weights.dtype).tiny
    mean: Tensor | None = None
    total = torch.zeros((depth, *shape[1:]), dtype=weights.dtype, device=weights.device)
    for start, values in tiles:
        if mean is None:
            mean = torch.zeros((*values.shape[:-3], depth, *shape[1:]), dtype=values.dtype, device=values.device)
        if start[0] > row:
            done = start[0] - row
            assert done <= depth, f"no tile covers rows {row + depth} to {start[0]}"
            mean[..., :done, :, :].div_(total[:done].clamp_min(tiny))
            yield row, mean[..., :done, :, :], total[:done]
            for values_or_weights in (mean, total):
                for i in range(depth - done):
                    values_or_weights[..., i, :, :] = values_or_weights[..., i + done, :, :]
                values_or_weights[..., depth - done :, :, :] = 0
            row = start[0]
        _, y, x = window_slices(start, weights.shape)
        mean[..., y, x] += values * weights
        total[..., y, x] += weights
    assert mean is not None
    assert row + depth == shape[0], f"the last tile ends at row {row + depth} of {shape[0]}"
    mean.div_(total.clamp_min(tiny))
    yield row, mean, total


def _index(values: Iterable[int]) -> Index:
    z, y, x = (int(v) for v in values)
    return z, y, x
