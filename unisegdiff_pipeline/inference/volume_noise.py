"""Noise of any box of a volume: the same number at a voxel, whatever box, tile, batch or device asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.noise import BlockNoise, kernel_radius, neighbour_correlation, smooth_field

BLOCK = 16  # voxels an axis
# Linear interpolation between two nodes a length is off by at most 2.2, 3.1 and 3.8 % of a standard deviation (RMS)
# with one, two and three coarse axes.
NODES_PER_LENGTH = 2


def noise_in_box(
    noise: BlockNoise, channels: int, start: Sequence[int], extent: Sequence[int], *, slices_only: bool = False
) -> Tensor:
    """Standard normal noise (channels, *extent) of the box that begins at `start`, fp32 on the CPU.

    The volume is made of blocks that are named by their place and drawn alone; it has no borders, `start` may be
    negative. `slices_only` makes the blocks one slice thick, for 2D networks, whose boxes may be a single slice.
    """
    edge = (1, BLOCK, BLOCK) if slices_only else (BLOCK, BLOCK, BLOCK)
    out = torch.empty((channels, *extent))
    target = out.numpy()
    ranges = (range(a // e, (a + n - 1) // e + 1) for a, n, e in zip(start, extent, edge, strict=True))
    for place in itertools.product(*ranges):
        block = noise.block(place, (channels, *edge))
        inside, source = [], []
        for index, size, low, length in zip(place, edge, start, extent, strict=True):
            first, last = max(index * size, low), min((index + 1) * size, low + length)
            inside.append(slice(first - low, last - low))
            source.append(slice(first - index * size, last - index * size))
        target[(slice(None), *inside)] = block[(slice(None), *source)]
    return out


def smooth_field_in_box(
    noise: BlockNoise,
    channels: int,
    start: Sequence[int],
    extent: Sequence[int],
    lengths_voxels: Sequence[float],
    *,
    slices_only: bool = False,
    only: Sequence[int] | None = None,
) -> Tensor:
    """A smooth standard normal field of the box, (channels, *extent): the same for every box that holds a voxel.

    `only` names the channels to return, rising; None: all.

    A long field is drawn on a coarser grid, `NODES_PER_LENGTH` nodes a length, and interpolated. White noise is drawn
    beyond the box as far as the kernel reaches, beyond the volume's borders too.
    """
    steps = [max(1, int(length / NODES_PER_LENGTH)) for length in lengths_voxels]
    lengths = [length / step for length, step in zip(lengths_voxels, steps, strict=True)]
    margin = [kernel_radius(length) for length in lengths]
    first = [a // step for a, step in zip(start, steps, strict=True)]
    last = [(a + n - 1) // step + (step > 1) for a, n, step in zip(start, extent, steps, strict=True)]
    low = [a - m for a, m in zip(first, margin, strict=True)]
    size = [b - a + 1 + 2 * m for a, b, m in zip(first, last, margin, strict=True)]
    # The first channels of a block are the same however many follow.
    white = noise_in_box(noise, channels if only is None else only[-1] + 1, low, size, slices_only=slices_only).numpy()
    field = smooth_field(white if only is None else white[list(only)], lengths)
    for axis, (step, length) in enumerate(zip(steps, lengths, strict=True)):
        if step > 1:
            # By whole numbers: a place between nodes is the same to the last digit, wherever a box begins.
            index = np.arange(start[axis], start[axis] + extent[axis])
            node, t = index // step - first[axis], (index % step) / step
            field = _interpolate(field, axis + 1, node, t, neighbour_correlation(length))
    return torch.from_numpy(np.ascontiguousarray(field))


def _interpolate(field: np.ndarray, axis: int, node: np.ndarray, t: np.ndarray, correlation: float) -> np.ndarray:
    """Values of a field along an axis, the part t of the way behind a node, of unit variance as at the nodes.

    Linear interpolation of two values with this correlation has variance (1 - t)^2 + t^2 + 2 t (1 - t) correlation.
    """
    scale = 1 / np.sqrt((1 - t) ** 2 + t**2 + 2 * t * (1 - t) * correlation)
    shape = [1] * field.ndim
    shape[axis] = len(node)
    before, behind = (np.reshape(w * scale, shape).astype(np.float32) for w in (1 - t, t))
    return field.take(node, axis) * before + field.take(node + 1, axis) * behind
