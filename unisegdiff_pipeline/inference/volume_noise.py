"""Noise of any box of a volume: the same number at a voxel, whatever box, tile, batch or device asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.noise import BlockNoise, kernel_radius, smooth_field

BLOCK = 16  # voxels an axis


def noise_in_box(
    seed: int, case: str, sample: int, stream: str, channels: int, start: Sequence[int], extent: Sequence[int],
    *, slices_only: bool = False,
) -> Tensor:  # fmt: skip
    """Standard normal noise (channels, *extent) of the box that begins at `start`, fp32 on the CPU.

    The volume is made of blocks that are named by their place and drawn alone; it has no borders, `start` may be
    negative. `slices_only` makes the blocks one slice thick, for 2D networks, whose boxes may be a single slice.
    """
    edge = (1, BLOCK, BLOCK) if slices_only else (BLOCK, BLOCK, BLOCK)
    noise = BlockNoise(seed, case, sample, stream)
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
    seed: int, case: str, sample: int, stream: str, channels: int, start: Sequence[int], extent: Sequence[int],
    lengths_voxels: Sequence[float], *, slices_only: bool = False,
) -> Tensor:  # fmt: skip
    """A smooth standard normal field of the box, (channels, *extent): the same for every box that holds a voxel.

    White noise is drawn beyond the box as far as the kernel reaches, beyond the volume's borders too.
    """
    margin = [kernel_radius(length) for length in lengths_voxels]
    low = [a - m for a, m in zip(start, margin, strict=True)]
    size = [e + 2 * m for e, m in zip(extent, margin, strict=True)]
    white = noise_in_box(seed, case, sample, stream, channels, low, size, slices_only=slices_only)
    return torch.from_numpy(smooth_field(white.numpy(), lengths_voxels))
