"""Where voxels lie in space, and whether two grids agree.

Arrays are (C, Z, Y, X). Spacings follow the array, (Z, Y, X); origin and direction follow the files, (x, y, z) in
the LPS convention of ITK, so that they survive reading and writing unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from unisegdiff_pipeline.core.bounds import Cosine, Finite, Length, SpacingMm

Shape = tuple[int, ...]
IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
MAX_DISPLACEMENT_VOXELS = 0.1  # between the corners of grids that count as one


@dataclass(frozen=True)
class Geometry:
    """Position of a voxel grid in space.

    Example:
        >>> usd.Geometry((3.0, 1.0, 1.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)).orientation
        'RAS'

    Attributes:
        spacing_mm: distance of neighbouring voxels along the array's axes (Z, Y, X).
        origin_mm: centre of the first voxel (x, y, z), ITK's convention (LPS).
        direction: cosines as ITK gives them, 3 x 3, row major.
        is_2d: the file holds a 2D image; the Z axis (one slice, 1 mm, unit direction) was added when reading.
    """

    spacing_mm: tuple[SpacingMm, SpacingMm, SpacingMm] = (1.0, 1.0, 1.0)
    origin_mm: Annotated[tuple[Finite, ...], Length(3, 3)] = (0.0, 0.0, 0.0)
    direction: Annotated[tuple[Cosine, ...], Length(9, 9)] = IDENTITY_DIRECTION
    is_2d: bool = False

    @property
    def orientation(self) -> str:
        """Where the axes x, y, z point: "LPS", "RAS", ...; of an oblique image what each is nearest to."""
        cosines = np.reshape(self.direction, (3, 3))
        nearest = np.abs(cosines).argmax(axis=0).tolist()
        return "".join(("LR", "PA", "SI")[row][int(cosines[row, axis] < 0)] for axis, row in enumerate(nearest))

    def describe(self, shape: Shape) -> str:
        """Shape, spacing and orientation of a grid (Z, Y, X) in a few words, without Z of a 2D image."""
        first = int(self.is_2d)
        axes, where = ("(Y, X)", "") if self.is_2d else ("(Z, Y, X)", f", orientation {self.orientation}")
        return f"shape {tuple(shape[first:])} {axes}, spacing {_numbers(self.spacing_mm[first:])} mm{where}"

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; of 2D images its area in mm2, because their Z spacing is 1."""
        z, y, x = self.spacing_mm
        return z * y * x


@dataclass(frozen=True)
class Volume:
    """An image or a label map with its geometry; `array` is (C, Z, Y, X), Z = 1 for 2D images.

    Example:
        >>> usd.Volume(np.zeros((1, 20, 64, 64)), usd.Geometry((3.0, 1.0, 1.0)))
        Volume(1 channel of float64, shape (20, 64, 64) (Z, Y, X), spacing (3, 1, 1) mm, orientation LPS)
    """

    array: np.ndarray
    geometry: Geometry

    def __repr__(self) -> str:
        channels = self.array.shape[0]
        grid = self.geometry.describe(self.array.shape[1:])
        return f"Volume({channels} channel{'s' * (channels != 1)} of {self.array.dtype}, {grid})"


def geometry_differences(a: Geometry, b: Geometry, shape: Sequence[int]) -> list[str]:
    """Say in words how two geometries of one shape differ; empty where their voxels lie at the same places.

    What counts is where voxels end up: the geometries agree where no corner of the grid moves by
    `MAX_DISPLACEMENT_VOXELS` or more. Rounded headers and cosines that were made orthonormal again pass, and a small
    rotation of a large image, which moves its far corner, does not.

    Args:
        a: geometry of the first file; displacements are counted in its voxels.
        b: geometry of the second file.
        shape: (Z, Y, X), the voxels of both.
    """
    displacement = corner_displacement(a, b, shape)
    if displacement < MAX_DISPLACEMENT_VOXELS:
        return []
    fields = (
        ("spacing_mm", f"spacing {_numbers(a.spacing_mm)} against {_numbers(b.spacing_mm)} mm (Z, Y, X)"),
        ("origin_mm", f"origin {_numbers(a.origin_mm)} against {_numbers(b.origin_mm)} mm (x, y, z)"),
        ("direction", f"direction {_numbers(a.direction)} against {_numbers(b.direction)}"),
    )
    # Named is what alone moves a corner visibly; several small differences may only do so together.
    differences = [
        words
        for name, words in fields
        if corner_displacement(a, replace(a, **{name: getattr(b, name)}), shape) >= MAX_DISPLACEMENT_VOXELS / 3
    ]
    return [*differences, f"a corner lies {displacement:.3g} voxels off (allowed is {MAX_DISPLACEMENT_VOXELS})"]


def on_grid_of(volume: Volume, like: Volume) -> Volume:
    """A plane that one file stores as 2D and another with a third axis of size 1, in the form of `like`.

    H x W beside H x W x 1 or 1 x H x W holds the same pixels. Everything else is returned unchanged, and its grid may
    differ from that of `like`.
    """
    shape, like_shape = volume.array.shape[1:], like.array.shape[1:]
    if not same_plane(shape, volume.geometry, like_shape, like.geometry):
        return volume
    return Volume(volume.array.reshape(-1, *like_shape), like.geometry)


def same_plane(a_shape: Sequence[int], a: Geometry, b_shape: Sequence[int], b: Geometry) -> bool:
    """Whether one of two files is 2D, the other one plane of the same pixels, and their spacings agree.

    Args:
        a_shape: (Z, Y, X) of the first.
        a: geometry of the first.
        b_shape: (Z, Y, X) of the second.
        b: geometry of the second.
    """
    if a.is_2d == b.is_2d:
        return False
    flat_shape, flat, shape, geometry = (a_shape, a, b_shape, b) if a.is_2d else (b_shape, b, a_shape, a)
    for axis in range(3):
        kept = [i for i in range(3) if i != axis]
        if shape[axis] == 1 and [shape[i] for i in kept] == list(flat_shape[1:]):
            if axis == 0:
                return not geometry_differences(flat, geometry, flat_shape)
            y, x = (geometry.spacing_mm[i] for i in kept)  # in another plane the headers share no other facts
            return not geometry_differences(_in_plane(flat, placed=False), Geometry((1.0, y, x)), flat_shape)
    return False


def corner_displacement(a: Geometry, b: Geometry, shape: Sequence[int]) -> float:
    """Largest distance, in voxels of `a` along one axis, between a corner voxel of `a` and the same one of `b`.

    A 2D file knows no third coordinate. Beside a single slice its plane is compared: spacing always, origin and
    direction where the slice is axial, because only then the first two coordinates mean the same in both.

    Args:
        a: geometry of the first file.
        b: geometry of the second file.
        shape: (Z, Y, X), the voxels of both.
    """
    if a.is_2d or b.is_2d:
        axial = all(abs(geometry.direction[8]) > 0.99 for geometry in (a, b))
        a, b = _in_plane(a, axial), _in_plane(b, axial)
    z, y, x = (max(size - 1, 0) for size in shape)
    corners = np.array([(i, j, k) for i in (0, x) for j in (0, y) for k in (0, z)], dtype=float).T  # (3, 8)
    matrix_a, origin_a = _index_to_mm(a)
    matrix_b, origin_b = _index_to_mm(b)
    moved = np.linalg.solve(matrix_a, matrix_b @ corners + (origin_b - origin_a)[:, None]) - corners
    return float(np.abs(moved).max())


def _index_to_mm(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and origin that turn a voxel's index (x, y, z) into its place in mm."""
    direction = np.reshape(geometry.direction, (3, 3))
    return direction * np.array(geometry.spacing_mm[::-1]), np.array(geometry.origin_mm, dtype=float)


def _in_plane(geometry: Geometry, placed: bool) -> Geometry:
    """The plane of the first two axes; `placed` keeps origin and direction."""
    spacing_mm = (1.0, *geometry.spacing_mm[1:])
    if not placed:
        return Geometry(spacing_mm, is_2d=True)
    x, y, *_ = geometry.origin_mm
    xx, xy, _, yx, yy, *_ = geometry.direction
    return Geometry(spacing_mm, (x, y, 0.0), (xx, xy, 0.0, yx, yy, 0.0, 0.0, 0.0, 1.0), is_2d=True)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
