"""Noise that belongs to (seed, case, sample) and a place, not to a batch, a tile or a device.

Every block of voxels has a Philox stream of its own, keyed by the names and the block's place, so that any part of a
volume can be made alone and is bitwise the same (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
Noise is made on the CPU and moved to the device that needs it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

KERNEL_REACH = 3.5  # standard deviations at which the kernel of a smooth field ends


class BlockNoise:
    """Standard normal noise of blocks that are named by their place.

    One generator is set anew for each block, which costs a quarter of a new one; it is not to be shared by threads.

    Args:
        seed, case, sample, stream: name the noise; independent for each, equal for equal ones.
    """

    def __init__(self, seed: int, case: str, sample: int, stream: str) -> None:
        self._name = f"{seed}|{case}|{sample}|{stream}"
        self._bits = np.random.Philox(key=np.zeros(2, np.uint64))
        self._fresh = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def block(self, place: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """Noise of the block at a place (any integers), fp32."""
        name = f"{self._name}|{','.join(map(str, place))}"
        key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        self._fresh["state"]["key"][:] = np.frombuffer(key, np.uint64)
        self._bits.state = self._fresh
        return self._generator.standard_normal(tuple(shape), dtype=np.float32)


def kernel_radius(length: float) -> int:
    """Voxels that the kernel of a smooth field reaches to either side, 0 for no smoothing."""
    return math.ceil(KERNEL_REACH * length) if length > 0 else 0


def smooth_field(white: np.ndarray, lengths_voxels: Sequence[float]) -> np.ndarray:
    """Smooth white noise (C, *spatial) with a Gaussian (standard deviations in voxels) to unit variance.

    Voxels d apart along an axis of standard deviation s then correlate by exp(-d^2 / (4 s^2)), 1/e at d = 2 s.

    Returned is the part that the kernel does not hang over: `kernel_radius` voxels less at both ends of every axis.
    """
    # Products with a band matrix take half the time, but their last digit depends on the box that is asked for.
    from scipy import ndimage

    for axis, length in enumerate(lengths_voxels, start=1):
        radius = kernel_radius(length)
        if radius == 0:
            continue
        kernel = _unit_variance_kernel(length)
        inner = [slice(None)] * white.ndim
        inner[axis] = slice(radius, white.shape[axis] - radius)
        white = ndimage.convolve1d(white, kernel.astype(np.float32), axis=axis, mode="constant")[tuple(inner)]
    return np.ascontiguousarray(white)


def neighbour_correlation(length: float) -> float:
    """Correlation of neighbouring voxels of a smooth field along an axis with this length."""
    kernel = _unit_variance_kernel(length)
    return float((kernel[1:] * kernel[:-1]).sum())


def _unit_variance_kernel(length: float) -> np.ndarray:
    radius = kernel_radius(length)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / length) ** 2)
    return kernel / np.sqrt((kernel**2).sum())
