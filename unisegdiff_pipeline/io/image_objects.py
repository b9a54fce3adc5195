"""Images that Python users hold in memory, as a `Volume`: numpy arrays, SimpleITK and nibabel images, channel lists.

The order of axes, once for all: arrays are (C, Z, Y, X), of 2D images (C, Y, X), and spacings (Z, Y, X) or (Y, X), in
millimetres. An array needs its spacing, and its direction where it does not lie as the training images do. Image
objects know both, and need neither; nibabel's (X, Y, Z) is turned here.

SimpleITK and nibabel are recognised without being imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.arrays import plain_array
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry, Volume, geometry_differences, on_grid_of
from unisegdiff_pipeline.io import itk, nifti
from unisegdiff_pipeline.io.declared import check_geometry
from unisegdiff_pipeline.io.images import read_image

KINDS = "a numpy array, a path, a SimpleITK or nibabel image, a Volume, or a list of these, one for each channel"


def is_path(image: object) -> bool:
    """Whether an image is given as a file, or as a list of files."""
    several = isinstance(image, (list, tuple)) and len(image) > 0
    return all(isinstance(i, (str, Path)) for i in image) if several else isinstance(image, (str, Path))  # type: ignore[attr-defined]


def volume_of(
    image: Any, spacing_mm: Sequence[float] | None = None, direction: Sequence[float] | None = None
) -> Volume:
    """An image in memory as a volume with float32 voxels (C, Z, Y, X).

    Args:
        image: see the module; a list is one single-channel image for each channel.
        spacing_mm: of an array, (Z, Y, X) or (Y, X) in mm; image objects must come without.
        direction: of an array, nine cosines of the axes x, y, z as in `Geometry`.

    Raises:
        TypeError: neither an array nor an image.
        ValueError: an array of another rank, without spacing, or with hidden voxels (`numpy.ma`); an image object
            with a spacing.
        UsdError: channels on different grids, or a spacing or direction that no grid can have.
    """
    if isinstance(image, (list, tuple)):
        return _joined([_channel(part, spacing_mm, direction) for part in image])
    volume = _one(image, spacing_mm, direction)
    if min(volume.array.shape) < 1:
        raise ValueError(f"image has shape {volume.array.shape} (C, Z, Y, X), so it holds no voxels")
    check_geometry(Path("the image"), volume.geometry)
    return volume


def _one(image: Any, spacing_mm: Sequence[float] | None, direction: Sequence[float] | None) -> Volume:
    if isinstance(image, np.ndarray):
        return _of_array(plain_array(image, "image"), spacing_mm, direction)
    library = _library(image)
    if library is None and not isinstance(image, Volume):
        raise TypeError(f"image is a {type(image).__name__}; allowed is {KINDS}")
    if spacing_mm is not None or direction is not None:
        raise ValueError("spacing_mm and direction go with arrays; an image object says them itself, leave them out")
    if isinstance(image, Volume):
        return replace(image, array=image.array.astype(np.float32, copy=False))
    if library == "SimpleITK":
        return _of_simpleitk(image)
    return _of_nibabel(image)


def _library(image: object) -> str | None:
    """The library that an image object belongs to, subclasses included."""
    roots = {kind.__module__.partition(".")[0] for kind in type(image).__mro__}
    return next((name for name in ("SimpleITK", "nibabel") if name in roots), None)


def _of_array(image: np.ndarray, spacing_mm: Sequence[float] | None, direction: Sequence[float] | None) -> Volume:
    is_2d = image.ndim == 3
    if image.ndim not in (3, 4):
        raise ValueError(f"image has shape {image.shape}; expected (C, Z, Y, X), or (C, Y, X) for a 2D image")
    if image.dtype.kind not in "buif":
        raise ValueError(f"image has voxels of type {image.dtype}; allowed are integers and real numbers")
    if spacing_mm is None:
        raise ValueError(f"an array of shape {image.shape} needs its spacing; give spacing_mm in the order of its axes")
    if np.ndim(spacing_mm) != 1:
        raise ValueError(f"spacing_mm is {spacing_mm!r}; expected is one number for each axis of the image but C")
    if len(spacing_mm) != image.ndim - 1:
        one = "; an image of one channel is image[None]" if len(spacing_mm) == image.ndim else ""
        raise ValueError(f"spacing_mm {tuple(spacing_mm)} has {len(spacing_mm)} values for an image {image.shape}{one}")
    z, y, x = (1.0, *map(float, spacing_mm))[-3:]
    cosines = np.asarray(IDENTITY_DIRECTION if direction is None else direction, float).ravel()
    if cosines.size != 9 or not np.isfinite(cosines).all():
        raise ValueError(f"direction is {direction}; expected are the nine cosines of the axes x, y, z, row major")
    array = image[:, None] if is_2d else image
    geometry = Geometry((z, y, x), direction=tuple(cosines.tolist()), is_2d=is_2d)
    return Volume(array.astype(np.float32), geometry)


def _of_simpleitk(image: Any) -> Volume:
    geometry = itk.geometry_from_itk(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(itk.voxels_of(image).astype(np.float32), geometry)


def _of_nibabel(image: Any) -> Volume:
    """By way of a temporary file, so that the header means what it means in a file."""
    nifti.load_nibabel()
    import nibabel

    if not isinstance(image, nibabel.Nifti1Pair):
        image = nibabel.Nifti1Image.from_image(image)
    if image.get_data_dtype().fields is None:  # not colours
        header = image.header.copy()
        header.set_data_dtype(np.float32)  # stored as integers, scaled voxels would be rounded
        header.set_slope_inter(1, 0)
        image = type(image)(_voxels_of(image.dataobj), image.affine, header)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii"
        nibabel.save(image, path)
        return read_image([path])


def _voxels_of(stored: Any) -> np.ndarray:
    """Voxels (X, Y, Z, ...), float32, scaled as they are when a file is read."""
    nifti.load_nibabel()
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.volumeutils import apply_read_scaling

    if not isinstance(stored, ArrayProxy) or (stored.slope, stored.inter) == (1, 0):
        return np.asanyarray(stored).astype(np.float32)
    unscaled = np.asanyarray(stored.get_unscaled()).astype(np.float32)
    return np.asarray(apply_read_scaling(unscaled, np.float32(stored.slope), np.float32(stored.inter)))


def _channel(part: Any, spacing_mm: Sequence[float] | None, direction: Sequence[float] | None) -> Volume:
    """One image of a list; an array is (Z, Y, X) or (Y, X) there."""
    if isinstance(part, (list, tuple)):
        raise TypeError(f"image is a list of lists; allowed is {KINDS}")
    return volume_of(part[None] if isinstance(part, np.ndarray) else part, spacing_mm, direction)


def _joined(channels: Sequence[Volume]) -> Volume:
    if not channels:
        raise ValueError("image is an empty list; give one image for each channel")
    first = channels[0]
    for number, other in enumerate(channels):
        other = on_grid_of(other, first)
        shape, expected = other.array.shape[1:], first.array.shape[1:]
        if other.array.shape[0] != 1:
            raise UsdError(f"image {number} of the list has {other.array.shape[0]} channels; each stands for one.")
        if shape != expected:
            raise UsdError(f"image {number} of the list has shape {shape} (Z, Y, X), the first one {expected}.")
        if differences := geometry_differences(first.geometry, other.geometry, shape):
            raise UsdError(
                f"image {number} of the list lies elsewhere than the first one: {'; '.join(differences)}. Resample the "
                f"channels of a case onto one grid."
            )
    arrays = [volume.array.reshape(1, *first.array.shape[1:]) for volume in channels]
    return Volume(np.concatenate(arrays), first.geometry)
