"""Where voxels lie in space, and the small pure functions on boxes and grids that everything else uses.

Arrays are (C, Z, Y, X). Spacings follow the array, (Z, Y, X); origin and direction follow the files, (x, y, z) in
the LPS convention of ITK, so that they survive reading and writing unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Geometry:
    """Position of a voxel grid in space.

    Attributes:
        spacing_mm: distance of neighbouring voxels along the array's axes (Z, Y, X).
        origin_mm: centre of the first voxel (x, y, z), ITK's convention (LPS).
        direction: cosines as ITK gives them, 3 x 3, row major.
        is_2d: the file holds a 2D image; the Z axis (one slice, 1 mm, unit direction) was added when reading.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY_DIRECTION
    is_2d: bool = False

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; of 2D images its area in mm2, because their Z spacing is 1."""
        z, y, x = self.spacing_mm
        return z * y * x


@dataclass(frozen=True)
class Volume:
    """An image or a label map with its geometry; `array` is (C, Z, Y, X), Z = 1 for 2D images."""

    array: np.ndarray
    geometry: Geometry


def geometry_differences(a: Geometry, b: Geometry, tolerance: float = 1e-3) -> list[str]:
    """Say in words how two geometries differ; an empty list means that their voxels lie at the same places.

    Args:
        a: geometry of the first file.
        b: geometry of the second file.
        tolerance: largest difference let pass: of spacings as a share of the spacing, of origins as a share of the
            largest voxel edge, of direction cosines as such. The default is far below a visible shift and above
            what float32 headers and conversions between formats lose.
    """
    differences = []
    if a.is_2d != b.is_2d:
        differences.append(f"one is {_dimension(a)}, the other {_dimension(b)}")
    spacing_a, spacing_b = np.array(a.spacing_mm), np.array(b.spacing_mm)
    if np.any(np.abs(spacing_a - spacing_b) > tolerance * np.maximum(spacing_a, spacing_b)):
        differences.append(f"spacing {_numbers(a.spacing_mm)} against {_numbers(b.spacing_mm)} mm (Z, Y, X)")
    origin_a, origin_b = np.array(a.origin_mm), np.array(b.origin_mm)
    rounding_mm = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(origin_a), np.abs(origin_b))
    if np.any(np.abs(origin_a - origin_b) > tolerance * max(a.spacing_mm) + rounding_mm):
        differences.append(f"origin {_numbers(a.origin_mm)} against {_numbers(b.origin_mm)} mm (x, y, z)")
    if np.any(np.abs(np.array(a.direction) - np.array(b.direction)) > tolerance):
        differences.append(f"direction {_numbers(a.direction)} against {_numbers(b.direction)}")
    return differences


def nonzero_box(array: np.ndarray) -> Box:
    """Smallest box (lo, hi), hi exclusive, along (Z, Y, X) that holds every voxel which is non-zero in any channel.

    An image that is zero everywhere gives the whole extent, so that there is always something to work on.

    Args:
        array: (C, Z, Y, X) or (Z, Y, X).
    """
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise ValueError(f"array has shape {array.shape}; expected (C, Z, Y, X) or (Z, Y, X)")
    # One axis at a time, each on what the last one left: the bulk of an empty border is looked at only once.
    box = [(0, size) for size in array.shape[1:]]
    for axis in range(3):
        inner = array[(slice(None), *(slice(lo, hi) for lo, hi in box))]
        others = tuple(i for i in range(4) if i != axis + 1)
        hits = np.flatnonzero(inner.any(axis=others))
        if hits.size == 0:
            return ((0, array.shape[1]), (0, array.shape[2]), (0, array.shape[3]))
        box[axis] = (int(hits[0]), int(hits[-1]) + 1)
    return (box[0], box[1], box[2])


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """The box as slices of the three spatial axes: `array[..., *box_slices(box)]`."""
    (z0, z1), (y0, y1), (x0, x1) = box
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def _dimension(geometry: Geometry) -> str:
    return "2D" if geometry.is_2d else "3D"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
