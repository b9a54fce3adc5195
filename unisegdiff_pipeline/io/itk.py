"""Files that SimpleITK reads and writes: NRRD, MHA and GIPL; of NIfTI it reads the geometry and writes the files."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume
from unisegdiff_pipeline.io.declared import check_declared
from unisegdiff_pipeline.io.itk_headers import Declared, read_declared, require_data

_NIFTI_HEADER_BYTES = 352  # with the four bytes that say that no extension follows


def simple_itk() -> Any:
    """The module, silent about details of headers that do not matter here."""
    import SimpleITK

    # Its readers print to stderr about header details that do not matter here; real problems are raised.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def geometry_from_itk(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Geometry:
    """Geometry from ITK's own order (x, y, z); dimensions above three are dropped, a missing third is added."""
    dims = len(spacing)
    matrix = np.eye(max(3, dims))
    matrix[:dims, :dims] = np.reshape(direction, (dims, dims))
    padded_spacing = [*map(float, spacing), 1.0][:3]
    padded_origin = [*map(float, origin), 0.0][:3]
    z, y, x = padded_spacing[::-1]
    return Geometry((z, y, x), tuple(padded_origin), tuple(matrix[:3, :3].ravel().tolist()), is_2d=dims == 2)


def information(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry as SimpleITK sees them, not checked."""
    reader = simple_itk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    size = reader.GetSize()
    geometry = geometry_from_itk(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    channels = reader.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1)
    return (channels, *((*size[:3], 1)[:3][::-1])), geometry


def header(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry of an MHA, NRRD or GIPL file, checked."""
    _, shape, geometry = _checked(path)
    return shape, geometry


def read(path: Path, as_labels: bool) -> Volume:
    """Voxels (C, Z, Y, X) of an MHA, NRRD or GIPL file."""
    declared, _, geometry = _checked(path)
    require_data(path, declared)
    return Volume(_voxels(path), geometry)


def _checked(path: Path) -> tuple[Declared, Shape, Geometry]:
    declared = read_declared(path)
    shape, geometry = information(path)
    if math.prod(shape) != math.prod(declared.sizes):
        raise UsdError(
            f"{path} declares the sizes {declared.sizes}, but is read with the shape {shape} (C, Z, Y, X); its header "
            "is damaged, export it again."
        )
    check_declared(path, shape, declared.bytes_per_value, geometry)
    return declared, shape, geometry


def _voxels(path: Path) -> np.ndarray:
    return voxels_of(simple_itk().ReadImage(str(path)))


def voxels_of(image: Any) -> np.ndarray:
    """Voxels (C, Z, Y, X) of a SimpleITK image."""
    array: np.ndarray = simple_itk().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    elif image.GetDimension() < 4:
        array = array[None]
    return array[:, None] if image.GetDimension() == 2 else array


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    sitk = simple_itk()
    if geometry.is_2d:
        image = sitk.GetImageFromArray(array[0])
        image.SetSpacing(geometry.spacing_mm[:0:-1])
        image.SetOrigin(geometry.origin_mm[:2])
        image.SetDirection(np.reshape(geometry.direction, (3, 3))[:2, :2].ravel().tolist())
    else:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(geometry.spacing_mm[::-1])
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())[-300:]) from error
    if not _is_complete(path, array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _is_complete(path: Path, array: np.ndarray) -> bool:
    """Whether a file that ITK has written holds the whole array; on a full disk ITK cuts it short and says nothing.

    The size says so for NIfTI, that of the content being the last four bytes of a gzip file. Other formats are read
    back.
    """
    size = _NIFTI_HEADER_BYTES + array.nbytes
    if path.suffix.lower() == ".nii":
        return path.stat().st_size == size
    if path.suffix.lower() == ".gz":
        with open(path, "rb") as stream:
            stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
            return int.from_bytes(stream.read(), "little") == size % (1 << 32)
    try:
        return _voxels(path).tobytes() == array.tobytes()
    except RuntimeError:
        return False
