"""Noise that belongs to (seed, case, sample) and a place, not to a batch, a tile or a device.

Every block of 16 voxels an axis has a Philox stream of its own, keyed by the names and the block's position, so that
any part of the volume can be made alone and is bitwise the same (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"). Noise is made on the CPU and moved to the device that needs it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

BLOCK = 16


def gaussian_noise(seed: int, case: str, sample: int, stream: str, channels: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (channels, *shape), fp32; independent for each argument, equal for equal arguments."""
    out = np.empty((channels, *shape), np.float32)
    for corner in itertools.product(*(range(0, length, BLOCK) for length in shape)):
        box = tuple(slice(c, min(c + BLOCK, n)) for c, n in zip(corner, shape, strict=True))
        block = _block(seed, case, sample, stream, corner, channels, len(shape))
        out[(slice(None), *box)] = block[(slice(None), *(slice(0, b.stop - b.start) for b in box))]
    return torch.from_numpy(out)


def _block(
    seed: int, case: str, sample: int, stream: str, corner: Sequence[int], channels: int, dims: int
) -> np.ndarray:
    name = f"{seed}|{case}|{sample}|{stream}|{','.join(map(str, corner))}"
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal((channels, *(BLOCK,) * dims), dtype=np.float32)


def smooth_field(white: Tensor, lengths_voxels: Sequence[float]) -> Tensor:
    """Smooth white noise (C, *spatial) with a Gaussian of the given lengths (standard deviation) to unit variance.

    The volume is treated as periodic, so that every voxel has variance one exactly, at the borders too and on axes
    shorter than the kernel.
    """
    values = white.numpy()
    for axis, length in enumerate(lengths_voxels):
        size = values.shape[axis + 1]
        if length <= 0 or size == 1:
            continue
        radius = int(np.ceil(4 * length))
        offsets = np.arange(-radius, radius + 1)
        periodic = np.zeros(size)
        np.add.at(periodic, offsets % size, np.exp(-0.5 * (offsets / length) ** 2))
        periodic /= np.sqrt((periodic**2).sum())
        kernel = np.roll(periodic, size // 2).astype(np.float32)
        values = ndimage.convolve1d(values, kernel, axis=axis + 1, mode="wrap")
    return torch.from_numpy(np.ascontiguousarray(values))
