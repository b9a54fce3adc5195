"""Volumes as the case viewer gets them: turned to the nearest (right, anterior, superior) axes, small, as NIfTI."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices, grow_box, nonzero_box
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.case_pictures import filled_around, filled_value

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_WINDOW_MARGIN_MM = 20.0
_GREY_STEPS = 255
_MOST_LEVELS = 32767
_SUBSAMPLE = 2_000_000  # voxels that percentiles are taken from
_COMPRESSION = 6


@dataclass(frozen=True)
class ViewerGrid:
    """The grid of the page's volumes, and how it came from the file's.

    Attributes:
        orientation: nibabel's: for each axis (x, y, z) of the file the axis that it becomes, and 1 or -1 (flipped).
        factors: voxels of the file that become one, along the page's axes (x, y, z).
        shape: voxels along the page's axes (x, y, z).
        affine: voxel of the page => mm (RAS), 4 x 4.
        to_file: voxel of the page => voxel (x, y, z) of the file, 4 x 4; fractions where factors are even.
    """

    orientation: np.ndarray
    factors: tuple[int, int, int]
    shape: tuple[int, int, int]
    affine: np.ndarray
    to_file: np.ndarray

    @classmethod
    def of(cls, geometry: Geometry, shape_zyx: Sequence[int], max_voxels: int) -> ViewerGrid:
        """Grid for images of a shape (Z, Y, X), with factors so that at most max_voxels are left."""
        from nibabel.orientations import inv_ornt_aff, io_orientation

        file_affine = _affine(geometry)
        orientation = io_orientation(file_affine)
        shape_xyz = tuple(shape_zyx[::-1])
        turned = [0, 0, 0]
        for axis, (target, _) in enumerate(orientation):
            turned[int(target)] = shape_xyz[axis]
        to_file = inv_ornt_aff(orientation, shape_xyz)
        spacing = np.linalg.norm((file_affine @ to_file)[:3, :3], axis=0)
        factors = _factors(turned, spacing, max_voxels)
        blocks = np.diag([*factors, 1.0])
        blocks[:3, 3] = [(f - 1) / 2 for f in factors]
        to_file = to_file @ blocks
        x, y, z = (math.ceil(n / f) for n, f in zip(turned, factors, strict=True))
        return cls(orientation, factors, (x, y, z), file_affine @ to_file, to_file)

    @property
    def factors_zyx(self) -> tuple[int, int, int]:
        """Factors along the file's axes (Z, Y, X)."""
        x, y, z = (self.factors[int(target)] for target, _ in self.orientation)
        return (z, y, x)

    @property
    def file_axes(self) -> list[int]:
        """For each axis of the page the axis of the file (0 = x) that it is."""
        targets = [int(target) for target, _ in self.orientation]
        return [targets.index(axis) for axis in range(3)]

    def largest(self, array: np.ndarray) -> np.ndarray:
        """(Z, Y, X) of the file => (X, Y, Z) of the page; each voxel has the largest value of those that it covers."""
        return self._reduced(array, np.maximum)

    def mean(self, array: np.ndarray) -> np.ndarray:
        """(Z, Y, X) of the file => (X, Y, Z) of the page, float32 where it averages."""
        if self.factors == (1, 1, 1):
            return self._turned(array)
        total = self._reduced(array.astype(np.float32, copy=False), np.add)
        for axis, factor in enumerate(self.factors):
            size = self._turned(array).shape[axis]
            starts = np.arange(0, size, factor)
            counts = np.minimum(starts + factor, size) - starts
            total = total / counts.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float32)
        return total

    def _turned(self, array: np.ndarray) -> np.ndarray:
        from nibabel.orientations import apply_orientation

        return apply_orientation(array.T, self.orientation)

    def _reduced(self, array: np.ndarray, combine: np.ufunc) -> np.ndarray:
        turned = self._turned(array)
        for axis, factor in enumerate(self.factors):
            if factor > 1:
                turned = combine.reduceat(turned, np.arange(0, turned.shape[axis], factor), axis=axis)
        return turned


@dataclass(frozen=True)
class GreyScale:
    """How grey values of one channel are stored, value = inter + slope * stored, and which are shown first.

    Attributes:
        low: smallest value kept; smaller ones are stored as this one.
        high: largest value kept.
        window_low: value shown black at first.
        window_high: value shown white at first.
        step: distance of stored values.
        filled: value around the image, stored as 0, below all others, so that it is black; None where there is none.
    """

    low: float
    high: float
    window_low: float
    window_high: float
    step: float
    filled: float | None = None

    @property
    def dtype(self) -> type[np.uint8] | type[np.int16]:
        """Type that holds the stored values."""
        return np.uint8 if round((self.high - self.low) / self.step) <= _GREY_STEPS else np.int16


def grey_scale(channel: np.ndarray, box: Box | None) -> GreyScale:
    """Choose what is kept of a channel (Z, Y, X).

    Kept is what lies between the percentiles 0.1 and 99.9; shown first is what lies between the percentiles 1 and 99 of
    the box around the masks (of the image where there are none), so that a CT opens with the window of the organ and
    not with that of air and metal. The step is a 255th of that window, and 1 for whole numbers if that is coarser.
    """
    filled = filled_value(channel)
    values = _finite_subsample(channel, filled)
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    near = values if box is None else _finite_subsample(channel[box_slices(box)], filled)
    window_low, window_high = (float(v) for v in np.percentile(near, (1, 99)))
    if window_high <= window_low:
        window_low, window_high = low, high
    if window_high <= window_low:
        window_high = window_low + 1.0
    low, high = min(low, window_low), max(high, window_high)
    step = (window_high - window_low) / _GREY_STEPS
    if np.array_equal(values, np.rint(values)):
        step = max(step, 1.0)
    return GreyScale(low, high, window_low, window_high, max(step, (high - low) / _MOST_LEVELS), filled)


def image_volume(grid: ViewerGrid, channel: np.ndarray, scale: GreyScale, dtype: type) -> bytes:
    """A channel (Z, Y, X) as gzipped NIfTI of grey values in steps."""
    turned = grid.mean(channel)
    stored = np.subtract(turned, scale.low, dtype=np.float32)
    np.nan_to_num(stored, copy=False, nan=0.0)
    np.divide(stored, scale.step, out=stored)
    lowest = 0 if scale.filled is None else 1
    np.clip(np.rint(stored, out=stored), lowest, round((scale.high - scale.low) / scale.step), out=stored)
    if scale.filled is not None:
        stored[filled_around(turned, scale.filled)] = 0
    return _gzipped_nifti(stored.astype(dtype), grid, slope=scale.step, inter=scale.low)


def label_volume(grid: ViewerGrid, labels: np.ndarray) -> bytes:
    """A label map (Z, Y, X) as gzipped NIfTI of 8 or 16 bits.

    Raises:
        ValueError: values that are negative or above 32767.
    """
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > _MOST_LEVELS:
        raise ValueError(f"label values go from {low} to {high}; the viewer shows 0 to {_MOST_LEVELS}")
    stored = labels.astype(np.uint8 if high < 256 else np.int16, copy=False)
    return _gzipped_nifti(grid.largest(stored), grid)


def fraction_volume(grid: ViewerGrid, values: np.ndarray) -> bytes:
    """A map (Z, Y, X) of values in [0, 1] as gzipped NIfTI of 8 bits."""
    stored = np.rint(np.clip(np.nan_to_num(values, nan=0.0), 0, 1) * 255).astype(np.uint8)
    return _gzipped_nifti(grid.largest(stored), grid, slope=1 / 255)


def box_around(mask: np.ndarray, spacing_mm: Sequence[float]) -> Box | None:
    """Box of what is non-zero in (Z, Y, X) with 20 mm on each side; None for an empty mask."""
    box = nonzero_box(mask)
    return box and grow_box(box, [math.ceil(_WINDOW_MARGIN_MM / s) for s in spacing_mm], mask.shape)


def _affine(geometry: Geometry) -> np.ndarray:
    """Voxel (x, y, z) of the file => mm (RAS)."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing_mm[::-1])
    affine[:3, 3] = geometry.origin_mm
    return _LPS_TO_RAS @ affine


def _factors(shape: Sequence[int], spacing: np.ndarray, max_voxels: int) -> tuple[int, int, int]:
    factors = [1, 1, 1]
    while math.prod(math.ceil(n / f) for n, f in zip(shape, factors, strict=True)) > max_voxels:
        axis = min((a for a in range(3) if shape[a] > factors[a]), key=lambda a: float(spacing[a]) * factors[a])
        factors[axis] += 1
    return (factors[0], factors[1], factors[2])


def _finite_subsample(values: np.ndarray, filled: float | None) -> np.ndarray:
    flat = values.ravel()[:: max(1, values.size // _SUBSAMPLE)]
    finite = flat[np.isfinite(flat)]
    finite = finite if filled is None else finite[finite != filled]
    return finite if finite.size else np.zeros(1, np.float32)


def _gzipped_nifti(array: np.ndarray, grid: ViewerGrid, slope: float = 1.0, inter: float = 0.0) -> bytes:
    """(X, Y, Z) as a gzipped NIfTI-1 file; equal arrays give equal bytes."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_zooms(np.linalg.norm(grid.affine[:3, :3], axis=0))
    header.set_sform(grid.affine, code="scanner")
    header.set_xyzt_units("mm")
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = slope, inter
    content = header.binaryblock + bytes(4) + array.tobytes(order="F")
    return gzip.compress(content, _COMPRESSION, mtime=0)
