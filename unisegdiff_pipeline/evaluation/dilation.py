"""Growing a mask by a distance in mm, exact and fast enough for every case and class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, grow_box, nonzero_box

# Headers hold spacings as float32, so that 0.1 mm are 0.100000001 and fifty of them would miss a radius of 5 mm.
SPACING_ROUNDING = 1e-6


def dilated(mask: np.ndarray, radius: float, spacing: Sequence[float]) -> np.ndarray:
    """All voxels whose centre lies within `radius` of the centre of a voxel of the mask, borders included.

    The same as `distance_transform_edt(~mask, sampling=spacing) <= radius`, at a fraction of time and memory: the ball
    is a stack of lines along X, the mask is grown along X and laid over itself for every line, eight voxels a byte.
    Time grows with the voxels of the box around the result times the lines in the ball (81 for 5 mm at 1 mm).

    Args:
        mask: boolean, (Z, Y, X). An axis of length 1 plays no part, so 2D images are grown in their plane.
        radius: in the unit of the spacing; 0 returns the mask.
        spacing: one positive value per axis of the mask.

    Returns:
        boolean mask of the same shape; all False for an empty mask.

    Raises:
        ValueError: for a negative radius or a spacing that is not positive.
    """
    if radius < 0 or min(spacing) <= 0:
        raise ValueError(f"radius {radius} must be at least 0, and every spacing of {tuple(spacing)} above 0")
    grown = np.zeros(mask.shape, bool)
    box = nonzero_box(mask)
    if box is None:
        return grown
    reach = [_steps(radius, step, size) for step, size in zip(spacing, mask.shape, strict=True)]
    wide = box_slices(grow_box(box, reach, mask.shape))
    grown[wide] = _dilated_box(mask[wide], radius, spacing, reach)
    return grown


def _dilated_box(mask: np.ndarray, radius: float, spacing: Sequence[float], reach: Sequence[int]) -> np.ndarray:
    lines: dict[int, list[tuple[int, int]]] = {}
    for dz, dy, half_width in _lines(radius, spacing, reach):
        lines.setdefault(half_width, []).append((dz, dy))
    row, num_x = mask.copy(), mask.shape[2]
    grown = np.packbits(row, axis=2)
    for half_width in range(max(lines) + 1):
        if half_width:
            row[:, :, half_width:] |= mask[:, :, : num_x - half_width]
            row[:, :, : num_x - half_width] |= mask[:, :, half_width:]
        packed = np.packbits(row, axis=2)
        for dz, dy in lines.get(half_width, ()):
            (to_z, from_z), (to_y, from_y) = _shifted(dz, mask.shape[0]), _shifted(dy, mask.shape[1])
            grown[to_z, to_y] |= packed[from_z, from_y]
    return np.unpackbits(grown, axis=2, count=num_x).view(bool)


def _lines(radius: float, spacing: Sequence[float], reach: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The ball as lines along X: offset in Z, offset in Y, and voxels to either side of the centre."""
    limit = (radius * (1 + SPACING_ROUNDING)) ** 2
    for dz in range(-reach[0], reach[0] + 1):
        for dy in range(-reach[1], reach[1] + 1):
            left = limit - (dz * spacing[0]) ** 2 - (dy * spacing[1]) ** 2
            if left >= 0:
                yield dz, dy, min(reach[2], int(math.sqrt(left) / spacing[2]))


def _steps(radius: float, step: float, size: int) -> int:
    return min(size - 1, int(radius * (1 + SPACING_ROUNDING) / step))


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    """Target and source of a shift by `offset` along an axis."""
    if offset >= 0:
        return slice(offset, size), slice(0, size - offset)
    return slice(0, size + offset), slice(-offset, size)
