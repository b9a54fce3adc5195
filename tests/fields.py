"""Smooth fields of given white noise by a convolution, to compare with those of `inference.volume_noise`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from unisegdiff_pipeline.inference.volume_noise import KERNEL_REACH


def kernel_radius(length: float) -> int:
    """Voxels that the kernel of a smooth field reaches to either side, 0 for no smoothing."""
    return math.ceil(KERNEL_REACH * length) if length > 0 else 0


def smooth_field(white: np.ndarray, lengths_voxels: Sequence[float]) -> np.ndarray:
    """Smooth white noise (C, *spatial) with a Gaussian (standard deviations in voxels) to unit variance.

    Voxels d apart along an axis of standard deviation s then correlate by exp(-d^2 / (4 s^2)), 1/e at d = 2 s.

    Returned is the part that the kernel does not hang over: `kernel_radius` voxels less at both ends of every axis.
    """
    for axis, length in enumerate(lengths_voxels, start=1):
        radius = kernel_radius(length)
        if radius == 0:
            continue
        kernel = _unit_variance_kernel(length)
        inner = [slice(None)] * white.ndim
        inner[axis] = slice(radius, white.shape[axis] - radius)
        white = ndimage.convolve1d(white, kernel.astype(np.float32), axis=axis, mode="constant")[tuple(inner)]
    return np.ascontiguousarray(white)


def _unit_variance_kernel(length: float) -> np.ndarray:
    radius = kernel_radius(length)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / length) ** 2)
    return kernel / np.sqrt((kernel**2).sum())
