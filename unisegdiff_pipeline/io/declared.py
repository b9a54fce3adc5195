"""What a file's header declares is checked here, for every format, before a library reads or decompresses voxels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry, Shape

MIN_SPACING_MM, MAX_SPACING_MM = 1e-7, 1e5  # 0.1 nm, less than an atom, and 100 m
MAX_ORIGIN_MM = 1e9
MAX_VALUES_PER_BYTE = 200_000  # above what deflate (8 x 1032 bits) and blank fax pages reach
MAX_SHEAR = 0.02  # of the direction cosines
_FLOAT32_BYTES = 4
_UNCHECKED_BYTES = 1 << 26  # asking for the free memory costs more than reading smaller files


def check_declared(path: Path, shape: Shape, bytes_per_value: float, geometry: Geometry) -> None:
    """Refuse sizes and geometry that no image can have, and sizes that this machine cannot hold.

    Args:
        path: the file, for the message.
        shape: (C, Z, Y, X) as the header declares it.
        bytes_per_value: of the voxels in the file; the array of float32 that is made of them is added.
        geometry: as the header declares it.

    Raises:
        UsdError: names the file, the value and what is allowed.
    """
    if min(shape) < 1:
        raise UsdError(f"{path} has the shape {shape} (C, Z, Y, X), so it holds no voxels; export it again.")
    values, size = math.prod(shape), path.stat().st_size
    if values > MAX_VALUES_PER_BYTE * size:
        raise UsdError(
            f"{path} declares the shape {shape} (C, Z, Y, X), which cannot be held by its {size} bytes; it is "
            "truncated or damaged, copy or export it again."
        )
    needed = values * (bytes_per_value + _FLOAT32_BYTES)
    if needed > _UNCHECKED_BYTES:
        from unisegdiff_pipeline.core.parallel import available_memory_gb

        free_gb = available_memory_gb()
        if needed > free_gb * 1e9:
            raise UsdError(
                f"{path} declares the shape {shape} (C, Z, Y, X), which needs {needed / 1e9:.1f} GB, but "
                f"{free_gb:.1f} GB of memory are free; check that its header is right, crop the image, or use a "
                "machine with more memory."
            )
    check_geometry(path, geometry)


def nearest_rotation(path: Path, directions: np.ndarray) -> np.ndarray:
    """The orthonormal matrix that is nearest to the direction cosines, (3, 3) or smaller.

    Raises:
        UsdError: the directions are no grid at all, or sheared, which spacing and rotation cannot describe.
    """
    if not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < 1e-6:
        raise UsdError(
            f"{path} has no valid geometry: its directions {_numbers(directions)} span no volume; write spacing, "
            "origin and direction into its header."
        )
    u, _, vt = np.linalg.svd(directions)
    rotation: np.ndarray = u @ vt
    shear = float(np.abs(rotation - directions).max())
    if shear > MAX_SHEAR:
        raise UsdError(
            f"{path} has a sheared grid (directions are off orthogonal by {shear:.3f}, allowed is {MAX_SHEAR}); "
            "resample it onto an orthogonal grid."
        )
    return rotation


def check_geometry(path: Path, geometry: Geometry) -> None:
    """Refuse a spacing, origin or directions that no grid can have; `path` is named in the message.

    Raises:
        UsdError: names the value and what is allowed.
    """
    spacing, origin = np.array(geometry.spacing_mm), np.array(geometry.origin_mm)
    # Comparisons with NaN are false, so each is written as what must hold.
    if not ((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM)).all():
        raise UsdError(
            f"{path} has no valid geometry: the spacing is {_numbers(spacing)} mm (Z, Y, X), allowed is "
            f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}; write the true spacing into its header."
        )
    if not (np.abs(origin) <= MAX_ORIGIN_MM).all():
        raise UsdError(
            f"{path} has no valid geometry: the origin is {_numbers(origin)} mm (x, y, z), allowed is up to "
            f"{MAX_ORIGIN_MM:g}; write the true origin into its header."
        )
    if geometry.direction != IDENTITY_DIRECTION:
        nearest_rotation(path, np.reshape(geometry.direction, (3, 3)))


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in np.ravel(values)) + ")"
