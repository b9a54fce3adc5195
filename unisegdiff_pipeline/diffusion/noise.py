"""Noise that belongs to (seed, case, sample) and a place, not to a batch, a tile or a device.

Every block of voxels has a Philox stream of its own, keyed by the names and the block's place, so that any part of a
volume can be made alone and is bitwise the same (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
Noise is made on the CPU and moved to the device that needs it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np

KERNEL_REACH = 3.5  # standard deviations at which the kernel of a smooth field ends
BAND_ROWS, BAND_COLUMNS = 16, 512  # places along an axis, and of others, that are convolved at once: in caches


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
    for axis, length in enumerate(lengths_voxels, start=1):
        if kernel_radius(length) > 0:
            white = _convolved(white, _unit_variance_kernel(length).astype(np.float32), axis)
    return np.ascontiguousarray(white)


def _convolved(values: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """The part of a convolution by a symmetric kernel along an axis that the kernel does not hang over, fp32.

    Products with a band matrix take half the time of the taps one by one. In double precision, so that what is rounded
    to fp32 does not hang on how the rest is taken together (a last digit in some ten million places).
    """
    hangs = len(kernel) - 1
    lead, size, behind = math.prod(values.shape[:axis]), values.shape[axis], math.prod(values.shape[axis + 1 :])
    flat, out = values.reshape(lead, size, behind), np.empty((lead, size - hangs, behind), np.float32)
    band = sum(np.eye(BAND_ROWS, BAND_ROWS + hangs, tap) * weight for tap, weight in enumerate(kernel.astype(float)))
    columns = min(behind, BAND_COLUMNS)
    corners = itertools.product(
        range(0, lead, BAND_COLUMNS // columns), range(0, size - hangs, BAND_ROWS), range(0, behind, columns)
    )
    for i, first, j in corners:
        outer, last, inner = slice(i, i + BAND_COLUMNS // columns), first + BAND_ROWS, slice(j, j + columns)
        part = flat[outer, first : last + hangs, inner].astype(float)
        here = band[: part.shape[1] - hangs, : part.shape[1]]
        if behind > 1:
            out[outer, first:last, inner] = here @ part
        else:
            out[outer, first:last, 0] = part[..., 0] @ here.T
    return out.reshape(*values.shape[:axis], size - hangs, *values.shape[axis + 1 :])


def neighbour_correlation(length: float) -> float:
    """Correlation of neighbouring voxels of a smooth field along an axis with this length."""
    kernel = _unit_variance_kernel(length)
    return float((kernel[1:] * kernel[:-1]).sum())


def _unit_variance_kernel(length: float) -> np.ndarray:
    radius = kernel_radius(length)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / length) ** 2)
    return kernel / np.sqrt((kernel**2).sum())
