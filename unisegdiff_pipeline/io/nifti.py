"""NIfTI files: the geometry as SimpleITK sees it, else from the affine; the voxels by nibabel.

Voxels are not read by SimpleITK, because it fills the end of a truncated file with arbitrary values and says nothing;
nibabel raises, and is several times faster on small files.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.io import itk
from unisegdiff_pipeline.io.errors import UsdError, unreadable
from unisegdiff_pipeline.io.geometry import Geometry, Shape, Volume


def header(path: Path) -> tuple[Shape, Geometry]:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        return _nifti_shape(image.shape), _nifti_geometry(path, image)
    except UsdError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


def read(path: Path, as_labels: bool) -> Volume:
    import nibabel

    image: Any = nibabel.load(path)
    geometry = _nifti_geometry(path, image)
    if path.suffix.lower() == ".gz":
        # Decompressing to the end of the file compares its checksum, which reading only the voxels would not reach.
        image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    # Unscaled voxels keep their integer type; scaled ones need no float64 copy of the volume.
    scaled = (slope, intercept) != (1, 0)
    array: np.ndarray = np.asarray(image.dataobj, dtype=np.float32 if scaled else None)
    if array.dtype.fields:  # RGB(A) voxels
        array = np.stack([array[str(name)] for name in array.dtype.fields], axis=-1).reshape(*array.shape[:3], -1)
    return Volume(np.ascontiguousarray(array.T).reshape(_nifti_shape(array.shape)), geometry)


def _nifti_shape(shape: Shape) -> Shape:
    """(X, Y, Z, ...) of the file as (C, Z, Y, X); all axes beyond the third are channels."""
    x, y, z = (*shape[:3], 1, 1)[:3]
    return (int(np.prod(shape[3:], dtype=int)), z, y, x)


def _nifti_geometry(path: Path, image: Any) -> Geometry:
    try:
        return itk.header(path)[1]
    except UsdError as cause:  # above all "only supports orthonormal direction cosines"
        try:
            return _affine_geometry(path, image.affine, is_2d=len(image.shape) == 2)
        except UsdError as error:
            raise error from cause


def _affine_geometry(path: Path, affine: np.ndarray, is_2d: bool) -> Geometry:
    """Geometry from nibabel's RAS affine, with the directions made orthonormal where they nearly are.

    Raises:
        UsdError: a sheared grid, which spacing and rotation cannot describe.
    """
    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # RAS -> LPS
    spacing = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise UsdError(f"{path} has no valid affine in its header; write spacing, origin and direction into it.")
    u, _, vt = np.linalg.svd(matrix / spacing)
    direction = u @ vt
    shear = float(np.abs(direction - matrix / spacing).max())
    if shear > 0.02:
        raise UsdError(
            f"{path} has a sheared grid (directions are off orthogonal by {shear:.3f}, allowed is 0.02); resample it "
            "onto an orthogonal grid."
        )
    origin = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3]
    z, y, x = spacing[::-1].tolist()
    return Geometry((z, y, x), tuple(origin.tolist()), tuple(direction.ravel().tolist()), is_2d=is_2d)
