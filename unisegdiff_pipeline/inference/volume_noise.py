"""Noise of any box of a volume: the same number at a voxel, whatever box, tile, batch or device asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.noise import BLOCK, gaussian_noise, smooth_field
from unisegdiff_pipeline.inference.sliding_window import Index


def noise_in_box(
    seed: int, case: str, sample: int, stream: str, channels: int, start: Sequence[int], extent: Sequence[int],
    *, slices_only: bool = False,
) -> Tensor:  # fmt: skip
    """Standard normal noise (channels, *extent) of the box that begins at `start`, fp32 on the CPU.

    The volume is made of blocks that are named by their place and drawn alone; `slices_only` makes them one slice
    thick, for 2D networks, whose boxes may be a single slice.
    """
    edge = (1, BLOCK, BLOCK) if slices_only else (BLOCK, BLOCK, BLOCK)
    out = torch.empty((channels, *extent))
    ranges = (range(a // e, (a + n - 1) // e + 1) for a, n, e in zip(start, extent, edge, strict=True))
    for place in itertools.product(*ranges):
        name = f"{stream}@{','.join(map(str, place))}"
        shape = edge[1:] if slices_only else edge
        block = gaussian_noise(seed, case, sample, name, channels, shape).reshape(channels, *edge)
        target, source = [], []
        for index, size, low, length in zip(place, edge, start, extent, strict=True):
            first, last = max(index * size, low), min((index + 1) * size, low + length)
            target.append(slice(first - low, last - low))
            source.append(slice(first - index * size, last - index * size))
        out[(slice(None), *target)] = block[(slice(None), *source)]
    return out


def smooth_field_in_box(
    seed: int, case: str, sample: int, stream: str, channels: int, start: Index, extent: Index, shape: Index,
    lengths_voxels: Sequence[float], *, slices_only: bool = False,
) -> Tensor:  # fmt: skip
    """A smooth standard normal field of the box, (channels, *extent): the same for every box that holds a voxel.

    White noise is drawn beyond the box as far as the kernel reaches, up to the borders of the volume `shape`, where
    it wraps around within the box that was drawn; voxels nearer to a border than the kernel reaches depend on the box.
    """
    margin = [int(4 * length + 0.5) + 1 if length > 0 else 0 for length in lengths_voxels]
    low = [max(0, a - m) for a, m in zip(start, margin, strict=True)]
    high = [min(n, a + e + m) for a, e, m, n in zip(start, extent, margin, shape, strict=True)]
    white = noise_in_box(
        seed, case, sample, stream, channels, low, [h - a for h, a in zip(high, low, strict=True)],
        slices_only=slices_only,
    )  # fmt: skip
    smooth = smooth_field(white, lengths_voxels)
    inner = tuple(slice(a - b, a - b + e) for a, b, e in zip(start, low, extent, strict=True))
    return smooth[(slice(None), *inner)]
