"""Noise of any box of a volume: the same number at a voxel, whatever box, tile, batch or device asks for it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.noise import STEPS, NamedNoise, standard_normal

# Voxels side by side of which a sequence of noise holds a row of cells: along Y and X it is so wide and runs along Z;
# in slices, whose boxes may be one of them, it runs along Y.
WIDTH, WIDTH_IN_SLICES = (16, 16), (1, 32)
KERNEL_REACH = 3.5  # standard deviations at which the kernel of a smooth field ends
LARGEST = 5  # standard deviations to which smooth values are limited on the way
CHUNK = 64  # voxels an axis that are smoothed by one matrix
EXACT = 1 << 24  # whole numbers up to here are exact in fp32


def noise_in_box(
    noise: NamedNoise,
    channels: Sequence[int],
    start: Sequence[int],
    extent: Sequence[int],
    *,
    slices_only: bool = False,
) -> Tensor:
    """Standard normal noise (channels, *extent) of the box that begins at `start`, fp32 on the CPU.

    The volume has no borders, `start` may be negative.

    Args:
        noise: its name.
        channels: numbers of those to make; each is the same whatever others are made.
        start, extent: (Z, Y, X).
        slices_only: for 2D networks, whose boxes may be a single slice; other noise than without.
    """
    order = (1, 0, 2) if slices_only else (0, 1, 2)  # axes: the one that sequences run along, and those across
    width = WIDTH_IN_SLICES if slices_only else WIDTH
    cell = math.prod(width)
    (first, *low), (count, *size) = ([values[axis] for axis in order] for values in (start, extent))
    bits = np.empty((len(channels), *extent), np.uint16)
    target = bits.transpose(0, *(axis + 1 for axis in order))
    ranges = (range(a // w, (a + n - 1) // w + 1) for a, n, w in zip(low, size, width, strict=True))
    for place in itertools.product(*ranges):
        inside, source = [], []
        for index, w, a, n in zip(place, width, low, size, strict=True):
            begin, end = max(index * w, a), min((index + 1) * w, a + n)
            inside.append(slice(begin - a, end - a))
            source.append(slice(begin - index * w, end - index * w))
        for i, channel in enumerate(channels):
            sequence = noise.bits((channel, *place), first * cell, count * cell).reshape(count, *width)
            target[i][(slice(None), *inside)] = sequence[(slice(None), *source)]
    return standard_normal(bits)


def smooth_field_in_box(
    noise: NamedNoise,
    channels: Sequence[int],
    start: Sequence[int],
    extent: Sequence[int],
    lengths_voxels: Sequence[float],
    *,
    slices_only: bool = False,
) -> Tensor:
    """A smooth standard normal field of a box, (channels, *extent): bitwise the same in every box that holds a voxel.

    White noise is smoothed with a Gaussian (standard deviations in voxels) to unit variance. Voxels d apart along an
    axis of standard deviation s then correlate by exp(-d^2 / (4 s^2)), 1/e at d = 2 s. The noise lies on nodes as far
    apart as s rounded down: by Poisson's sum this changes no correlation of s >= 1 by more than 4 exp(-pi^2) = 2e-4;
    that the kernel ends changes some by 2e-3. Noise of voxels that lie farther apart than s correlates less.

    Smoothing is a product with a matrix an axis. It is exact, in whatever order a product adds up: noise and weights
    are whole numbers whose sums stay below 2^24, and what an axis leaves is rounded to such numbers again.

    Args:
        noise, channels, start, extent, slices_only: as for `noise_in_box`.
        lengths_voxels: standard deviations along (Z, Y, X), 0 for no smoothing.
    """
    smoothings = [_Smoothing(a, n, s) for a, n, s in zip(start, extent, lengths_voxels, strict=True)]
    low, size = [s.first for s in smoothings], [s.last - s.first + 1 for s in smoothings]
    values = noise_in_box(noise, channels, low, size, slices_only=slices_only).mul_(STEPS)
    for axis, smoothing in enumerate(smoothings, start=1):
        if smoothing.length > 0:
            values.round_().clamp_(-LARGEST * STEPS, LARGEST * STEPS)
            values = smoothing.along(values, axis)
    return values.div_(STEPS)


class _Smoothing:
    """Smoothing of nodes to the voxels [start, start + count) along one axis; node n lies at voxel n * step.

    Attributes:
        length: standard deviation in voxels.
        first, last: nodes that it needs.
    """

    def __init__(self, start: int, count: int, length: float) -> None:
        self.length, self._start, self._count = length, start, count
        self.first, self.last = _nodes(start, start + count - 1, length)

    def along(self, values: Tensor, axis: int) -> Tensor:
        """Smooth an axis of whole numbers (..., last - first + 1, ...) => (..., count, ...), of the same variance."""
        shape = (*values.shape[:axis], self._count, *values.shape[axis + 1 :])
        inner = math.prod(values.shape[axis + 1 :])
        values = values.reshape(-1, values.shape[axis], inner)
        out = values.new_empty((len(values), self._count, inner))
        for low in range(0, self._count, CHUNK):
            high = min(low + CHUNK, self._count)
            first, weights, scale = _weights(self._start + low, high - low, self.length)
            nodes = values[:, first - self.first : first - self.first + weights.shape[1]]
            if inner == 1:
                torch.mul(nodes[..., 0] @ weights.T, scale, out=out[:, low:high, 0])
            else:
                torch.mul(weights @ nodes, scale[:, None], out=out[:, low:high])
        return out.reshape(shape)


def _step(length: float) -> int:
    return max(1, int(length))


def _nodes(low: int, high: int, length: float) -> tuple[int, int]:
    """First and last node that reach the voxels from low to high."""
    reach, step = KERNEL_REACH * length, _step(length)
    return math.ceil((low - reach) / step), math.floor((high + reach) / step)


@functools.lru_cache(maxsize=64)  # the fields of all samples take the same
def _weights(start: int, count: int, length: float) -> tuple[int, Tensor, Tensor]:
    """First node, whole weights (voxels, nodes), and what keeps the variance of each voxel (voxels,)."""
    step, (first, last) = _step(length), _nodes(start, start + count - 1, length)
    distance = np.arange(start, start + count)[:, None] - np.arange(first, last + 1) * step
    sum_of_weights = 1 + math.sqrt(2 * math.pi) * length / step  # at most, rounded ones too
    unit = 2 ** int(math.log2(EXACT / (LARGEST * STEPS * sum_of_weights)))
    weights = np.round(unit * np.exp(-0.5 * (distance / length) ** 2))
    weights[np.abs(distance) > KERNEL_REACH * length] = 0
    scale = 1 / np.sqrt(np.square(weights).sum(axis=1))
    return first, torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
